"""What a block has to mean: the same statements where they stand, on values of plain hooks.

A `Reference` stands where a wrapped model stands. Its `trace(...)` opens a block that plain Python
runs; a value is recorded by a run of the bare module, in which hooks put back what was read or
replaced before. So an edit reaches what is computed after it, and a value is the same object each
time it is asked for. Asked for too late, it is refused as in a block.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from nnsight_dsl import NotCalledError, NotRunningError, OutOfOrderError

_PORTS = ("output", "input", "inputs")
_Call = Callable[..., dict[str, Any]]


class Reference:
    """The stand-in of a wrapped model, or of one of its modules."""

    def __init__(
        self, module: nn.Module, path: str = "", root: Reference | None = None, encode: _Call = dict
    ) -> None:
        self._module = module
        self._path = path
        self._root = root or self
        self._encode = encode
        self._run: _Run | None = None

    def trace(self, *args: Any) -> _Run:
        """Open a block."""
        if args and isinstance(args[0], str):
            return _Run(self, (), self._encode(*args))
        return _Run(self, args, {})

    def _below(self, name: str) -> Reference:
        path = f"{self._path}.{name}" if self._path else name
        return Reference(self._module.get_submodule(name), path, self._root)

    def __getattr__(self, name: str) -> Any:
        if name in self._module._modules:
            return self._below(name)
        return getattr(self._module, name)

    def __getitem__(self, item: int | slice) -> Any:
        names = list(self._module._modules)
        if isinstance(item, slice):
            return [self._below(name) for name in names[item]]
        return self._below(names[item])

    def __iter__(self) -> Iterator[Reference]:
        return iter([self._below(name) for name in self._module._modules])

    def __len__(self) -> int:
        return len(self._module._modules)

    def __call__(self, *args: Any) -> Any:
        return self._module(*args)

    def _current(self) -> _Run:
        run = self._root._run
        if run is None:
            raise NotRunningError("no block is open")
        return run

    @property
    def output(self) -> Any:
        return self._current().value((self._path, "output"))

    @output.setter
    def output(self, value: Any) -> None:
        self._current().replace((self._path, "output"), value)

    @property
    def input(self) -> Any:
        return self._current().value((self._path, "input"))

    @input.setter
    def input(self, value: Any) -> None:
        self._current().replace((self._path, "input"), value)


_Location = tuple[str, str]


class _Run:
    """One run of a module, begun anew for each value that is asked for."""

    def __init__(self, model: Reference, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._model = model
        self._args = args
        self._kwargs = kwargs
        self._held: dict[_Location, Any] = {}
        self._order: dict[_Location, int] = {}
        self._at = -1

    def __enter__(self) -> _Run:
        self._model._run = self
        self._recorded()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._model._run = None
        if kind is None:
            # the model runs to its end: an edit may fail in what comes after it
            self._recorded()

    def value(self, location: _Location) -> Any:
        self._reach(location)
        if location not in self._held:
            self._held[location] = self._recorded()[location]
        return self._held[location]

    def replace(self, location: _Location, value: Any) -> None:
        self._reach(location)
        self._held[location] = value

    def _reach(self, location: _Location) -> None:
        number = self._order.get(location)
        if number is None:
            self._at = len(self._order)
            raise NotCalledError(location)
        if number < self._at:
            raise OutOfOrderError(location)
        self._at = number

    def _recorded(self) -> dict[_Location, Any]:
        """Run the bare module; note what its modules are given and return, and in which order."""
        seen: dict[_Location, Any] = {}

        def before(path: str) -> Any:
            def hook(_: nn.Module, args: tuple[Any, ...]) -> Any:
                self._order.setdefault((path, "input"), len(self._order))
                if not args:
                    return None
                first = self._held.get((path, "input"), args[0])
                seen[path, "input"] = first
                return (first, *args[1:])

            return hook

        def after(path: str) -> Any:
            def hook(_: nn.Module, __: Any, output: Any) -> Any:
                self._order.setdefault((path, "output"), len(self._order))
                seen[path, "output"] = self._held.get((path, "output"), output)
                return seen[path, "output"]

            return hook

        module = self._model._module
        handles = []
        for path, below in module.named_modules():
            handles.append(below.register_forward_pre_hook(before(path)))
            handles.append(below.register_forward_hook(after(path)))
        try:
            module(*self._args, **self._kwargs)
        finally:
            for handle in handles:
                handle.remove()
        return seen


class _WithoutSave(ast.NodeTransformer):
    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "save" and not node.args:
            return node.func.value
        return node


def without_save(text: str, filename: str) -> Any:
    """Compile a text in which `x.save()` means `x`, as it does where nothing has to leave."""
    return compile(_WithoutSave().visit(ast.parse(text)), filename, "exec", dont_inherit=True)


def kept(value: Any) -> Any:
    """Copy tensors, as they are now."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: kept(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(kept(one) for one in value)
    return value
