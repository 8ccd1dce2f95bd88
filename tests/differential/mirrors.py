"""What stands for a wrapped model and for a tracer in a block that plain Python runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import TYPE_CHECKING, Any

from torch import nn

from nnsight_dsl.errors import NotRunningError

if TYPE_CHECKING:
    from tests.differential.oracle import Machine, Run


class Mirror:
    """What stands for a wrapped model, or for one of its modules, in a block."""

    def __init__(self, module: nn.Module, path: str = "", root: Mirror | None = None) -> None:
        own = self.__dict__
        own["_module"], own["_path"], own["_root"] = module, path, root or self
        if root is None:
            own["_runs"] = []

    def _below(self, name: str) -> Mirror:
        path = f"{self._path}.{name}" if self._path else name
        return Mirror(self._module.get_submodule(name), path, self._root)

    def __getattr__(self, name: str) -> Any:
        if name in self._module._modules:
            return self._below(name)
        return getattr(self._module, name)

    def __getitem__(self, item: int | slice) -> Any:
        names = list(self._module._modules)
        if isinstance(item, slice):
            return [self._below(name) for name in names[item]]
        return self._below(names[item])

    def __iter__(self) -> Iterator[Mirror]:
        return iter([self._below(name) for name in self._module._modules])

    def __len__(self) -> int:
        return len(self._module._modules)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._module.forward(*args, **kwargs)

    def _run(self) -> Run:
        runs: list[Run] = self._root._runs
        if not runs:
            raise NotRunningError("no block is open")
        return runs[-1]

    def _ask(self, verb: str, port: str, value: Any = None) -> Any:
        return self._run().ask((verb, self._module, port, value))

    @property
    def output(self) -> Any:
        return self._ask("read", "output")

    @output.setter
    def output(self, value: Any) -> None:
        self._ask("write", "output", value)

    @property
    def input(self) -> Any:
        return self._ask("read", "input")

    @input.setter
    def input(self, value: Any) -> None:
        self._ask("write", "input", value)

    @property
    def inputs(self) -> Any:
        return self._ask("read", "inputs")

    @inputs.setter
    def inputs(self, value: Any) -> None:
        self._ask("write", "inputs", value)

    @property
    def generator(self) -> Any:
        return _Generator(self._run())

    @property
    def source(self) -> _Source:
        return _Source(self)

    def skip(self, value: Any) -> None:
        self._ask("skip", "inputs", value)


class _Source:
    """Operations of a layer, each of which is followed by a module."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    def __getattr__(self, name: str) -> Mirror:
        return self._mirror._below(f"after_{name}")


class _Generator:
    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def output(self) -> Any:
        return self._run.ask(("result",))


class Tracer:
    """What stands for the tracer in a block."""

    def __init__(self, run: Run, save: Callable[[Any], Any]) -> None:
        self._run = run
        self._save = save

    @property
    def result(self) -> Any:
        return self._run.ask(("result",))

    @property
    def iter(self) -> _Steps:
        return _Steps(self._run)

    def all(self) -> Iterator[int]:
        return self.iter[:]

    def stop(self) -> None:
        self._run.ask(("stop",))

    def cache(self) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        self._run.cache = found
        self._save(found)
        return found

    def next(self) -> Tracer:
        machine = self._run.machine()
        machine.step += 1
        return self

    def barrier(self, participants: int) -> Callable[[], None]:
        arrived: list[Machine] = []
        return lambda: self._run.ask(("meet", participants, arrived))


class _Steps:
    def __init__(self, run: Run) -> None:
        self._run = run

    def __getitem__(self, key: Any) -> Iterator[int]:
        if isinstance(key, int):
            return self._loop(iter([key]), False)
        if isinstance(key, slice):
            start, stride = key.start or 0, key.step or 1
            if key.stop is None:
                return self._loop(count(start, stride), True)
            return self._loop(iter(range(start, key.stop, stride)), False)
        return self._loop(iter(key), False)

    def _loop(self, numbers: Iterator[int], is_open: bool) -> Iterator[int]:
        machine = self._run.machine()
        before = machine.step
        try:
            for number in numbers:
                if not self._run.ask(("step", number)):
                    return
                machine.step = number
                yield number
        finally:
            machine.step = before
