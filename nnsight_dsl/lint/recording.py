"""Recording of a model: its modules, and the events of one run on fake tensors.

The model is built on the meta device, so no weights are loaded. During one forward

- hooks on the modules record begin, end and output of each call;
- a dispatch mode records when the storage of each output was last used;
- a trace function records which lines of the forwards ran, to find idle operations.

Some models cannot be run like this: their control flow depends on values, or their input is
unknown. Of these only the modules are recorded. The input is a short sequence of token ids unless
a factory provides arguments, so a branch that depends on the length of the input may be recorded
wrongly.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from types import CodeType, FrameType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from nnsight_dsl.envoys.envoy import Envoy
from nnsight_dsl.runtime.locations import children_of
from nnsight_dsl.runtime.tapping.operations import function_inside
from nnsight_dsl.studies.scan import faked
from nnsight_dsl.transforms.bytecode.operations import LOCAL, operations_of

from .model_facts import Module, Structure

_TOKENS = 5
_MOST_ATTRIBUTES = 400


def token_input(module: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return example arguments: token ids, as the keyword arguments that the forward accepts."""
    accepted = inspect.signature(type(module).forward).parameters
    tokens = torch.zeros((1, _TOKENS), dtype=torch.long)
    kwargs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if getattr(getattr(module, "config", None), "is_encoder_decoder", False):
        kwargs["decoder_input_ids"] = tokens[:, :1]
    return (), {key: value for key, value in kwargs.items() if key in accepted}


def recorded(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Structure:
    """Record one run of a model; a model that cannot be run so is known by its modules alone."""
    modules = modules_of(module)
    record = _Record()
    handles = []
    for path, each in module.named_modules(remove_duplicate=False):
        handles += record.watch(path, each)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            run: Callable[..., Any] = faked(module)
            with record, record.lines:
                output = run(*args, **kwargs)
    except Exception:
        # cannot tell: what this model does depends on more than shapes
        return Structure(modules, needs_input=needs_input(module))
    finally:
        for handle in handles:
            handle.remove()
    returned = {_storage(leaf) for leaf in pytree.tree_leaves(output) if _is_tensor(leaf)}
    found = {}
    for path, one in modules.items():
        seen = record.outputs.get(path)
        found[path] = Module(
            one.children,
            one.attributes,
            _kind(seen[0]) if seen else "",
            one.was_tuple,
            tuple(record.visits.get(path, ())),
            record.last_use(seen[0], returned) if seen else None,
            one.operations,
            record.lines.idle(module.get_submodule(path)) if seen else (),
        )
    return Structure(found, is_ordered=True, needs_input=needs_input(module))


class _Lines:
    """Record which lines of the forwards run, by module, with a trace function."""

    def __init__(self) -> None:
        self._functions: dict[nn.Module, FunctionType] = {}
        self._codes: set[CodeType] = set()
        self._ran: dict[tuple[int, CodeType], set[int]] = {}
        self._outer: Any = None

    def watch(self, module: nn.Module) -> None:
        """Trace the lines of a module's forward."""
        function = function_inside(Envoy._of(module))
        if function is not None:
            self._functions[module] = function
            self._codes.add(function.__code__)

    def __enter__(self) -> None:
        self._outer = sys.gettrace()
        sys.settrace(self._at_call)

    def __exit__(self, *error: object) -> None:
        sys.settrace(self._outer)

    def idle(self, module: nn.Module) -> tuple[str, ...]:
        """Return the operations of which no line ran; empty if the forward did not run."""
        function = self._functions.get(module)
        ran = None if function is None else self._ran.get((id(module), function.__code__))
        if function is None or not ran:
            return ()
        return tuple(
            name
            for name, one in operations_of(function.__code__).items()
            if ran.isdisjoint(range(one.line, (one.end_line or one.line) + 1))
        )

    def _at_call(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code not in self._codes or not frame.f_code.co_argcount:
            return None
        owner = frame.f_locals.get(frame.f_code.co_varnames[0])
        ran = self._ran.setdefault((id(owner), frame.f_code), set())

        def at_line(frame: FrameType, event: str, arg: Any) -> Any:
            ran.add(frame.f_lineno)
            return at_line

        return at_line


class _Record(TorchDispatchMode):
    """Record when modules are called and storages used, in ticks of one counter."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = _Lines()
        self.visits: dict[str, list[tuple[int, int]]] = {}
        self.outputs: dict[str, list[Any]] = {}
        self._begun: dict[str, list[int]] = {}
        self._uses: dict[int, int] = {}
        self._time = 0

    def watch(self, path: str, module: nn.Module) -> list[Any]:
        """Record the calls of a module with hooks; return the hooks' handles."""
        self.lines.watch(module)

        def before(_module: nn.Module, _args: Any) -> None:
            self._begun.setdefault(path, []).append(self._tick())

        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            begin = self._begun[path].pop()
            # keeps the output alive, so that its storage is not reused by another tensor
            self.outputs.setdefault(path, []).append(output)
            self.visits.setdefault(path, []).append((begin, self._tick()))

        return [
            module.register_forward_pre_hook(before, prepend=True),
            module.register_forward_hook(after),
        ]

    def last_use(self, output: Any, returned: set[int]) -> int | None:
        """Return the tick at which an operation last used a tensor's storage.

        None if the model returns the tensor, since the caller uses it later, or if it was not used.
        """
        if not isinstance(output, torch.Tensor) or _storage(output) in returned:
            return None
        return self._uses.get(_storage(output))

    def _tick(self) -> int:
        self._time += 1
        return self._time

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        now = self._tick()
        for leaf in pytree.tree_leaves((args, kwargs)):
            if _is_tensor(leaf):
                self._uses[_storage(leaf)] = now
        return func(*args, **(kwargs or {}))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _storage(tensor: torch.Tensor) -> int:
    found: int = tensor.untyped_storage()._cdata
    return found


def _kind(output: Any) -> str:
    if isinstance(output, torch.Tensor):
        return "tensor"
    if isinstance(output, tuple) and type(output) is tuple:
        return "tuple"
    return type(output).__name__


def modules_of(module: nn.Module) -> dict[str, Module]:
    """Describe the modules of a model, without running it."""
    own = set(dir(nn.Module))
    by_class: dict[type, tuple[str, ...]] = {}
    found = {}
    for path, each in module.named_modules(remove_duplicate=False):
        cls = type(each)
        if cls not in by_class:
            by_class[cls] = tuple(sorted(set(dir(cls)) - own))[:_MOST_ATTRIBUTES]
        stored = set(vars(each)) | set(each._parameters) | set(each._buffers)
        was_tuple = any(base.__name__ == "GradientCheckpointingLayer" for base in cls.__mro__)
        found[path] = Module(
            tuple(name for name, child in children_of(each).items() if child is not None),
            tuple(sorted({*by_class[cls], *stored, *_COMMON})),
            was_tuple=was_tuple,
            operations=_operations(each),
        )
    return found


def needs_input(module: nn.Module) -> bool:
    """Tell whether a forward has an argument without a default; of transformers' all need one."""
    if hasattr(module, "config"):
        return True
    parameters = inspect.signature(type(module).forward).parameters.values()
    fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(one.default is one.empty and one.kind not in fixed for one in list(parameters)[1:])


def _operations(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the operations in a module's forward, aliases included."""
    function = function_inside(Envoy._of(module))
    if function is None:
        return ()
    found = operations_of(function.__code__)
    # the first assignment of a local `x` is called `x` and also `x_0`
    return (*found, *(f"{name}_0" for name, one in found.items() if one.kind == LOCAL))


_COMMON = tuple(name for name in dir(nn.Module) if not name.startswith("__"))
