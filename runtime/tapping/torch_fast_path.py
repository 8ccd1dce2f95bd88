"""Modules that run without calling their submodules, while a run looks inside.

Two kinds of modules do so. `torch.nn.TransformerEncoderLayer` has a fast path: without hooks on it
or in it, it computes everything in one kernel. A compiled module (`module.compile()`,
`torch.compile(module)`) runs a graph that was captured from the calls inside it.

A run that does not look inside leaves both unchanged, so that a trace computes the same as the
plain call. A run that does has the submodules called one by one, as hooks would, for the calls of
this run only: torch's switches (`torch.backends.mha.set_fastpath_enabled`,
`torch.compiler.set_stance`) hold for the whole process, and other threads may run other models.
So the tapped class of such a module replaces the attributes by which torch decides by properties.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, Protocol

import torch
from torch import nn

_DYNAMO = "torch._dynamo.eval_frame"
"""Module of torch's compiled wrappers; it is not imported before torch compiles."""

COMPILED = "_compiled_call_impl"
"""Attribute in which `module.compile()` keeps the compiled call."""

_ACTIVATION = "activation_relu_or_gelu"
"""Attribute of an encoder layer: its kind of activation, 0 for one without a fast path."""

_dynamo: Any = getattr(getattr(torch._C, "_dynamo", None), "eval_frame", None)


def keep_from_compiling(function: Any) -> Any:
    """Exclude a function, and all that it calls, from compilation.

    A compiled function that calls a tapped module has a graph break there.
    """
    function._torchdynamo_disable = True
    function._torchdynamo_disable_msg = (
        "a trace looks at a module in a graph that has to be whole; run the trace under "
        "torch.compiler.set_stance('force_eager')"
    )
    # the mark excludes the function from a graph of its caller, this from its own graph
    action = getattr(_dynamo, "_FrameAction", None)
    if action is not None:
        strategy = _dynamo._FrameExecStrategy(action.SKIP, action.SKIP)
        _dynamo.set_code_exec_strategy(function.__code__, strategy)
    return function


def has_compiled_function(module: nn.Module) -> bool:
    """Return whether a module has a compiled function among its attributes."""
    return any(
        isinstance(value, FunctionType) and "_torchdynamo_orig_callable" in vars(value)
        for value in vars(module).values()
    )


def is_compiled_around(module: Any) -> bool:
    """Return whether a module is the wrapper that `torch.compile` has put around another."""
    return type(module).__module__ == _DYNAMO


def is_fast_layer(module: Any) -> bool:
    """Return whether a module may compute everything in one kernel of torch."""
    return isinstance(module, nn.TransformerEncoderLayer)


def passes_over_parts(module: Any) -> bool:
    """Return whether a module may run without calling its submodules."""
    return is_fast_layer(module) or COMPILED in module.__dict__ or is_compiled_around(module)


class Looking(Protocol):
    """How this thread's run treats a module that may not call its submodules."""

    @staticmethod
    def waits_inside(module: nn.Module) -> bool:
        """Return whether a machine or a watcher waits for a value inside of a module."""

    @staticmethod
    def visit(module: nn.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a tapped module, as a visit unless this call has begun one."""

    @staticmethod
    def untapped(module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function while a module and its submodules have their untapped classes.

        A graph compiled for these would be compiled anew for the tapped ones.
        """


def switches(cls: Any, run: type[Looking]) -> dict[str, Any]:
    """Return the attributes by which a tapped class replaces those of its modules."""

    def compiled(module: nn.Module) -> Any:
        found = module.__dict__.get(COMPILED, cls._compiled_call_impl)
        if found is None:
            return None

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if run.waits_inside(module):
                return module._call_impl(*args, **kwargs)
            return run.untapped(module, found, *args, **kwargs)

        return lambda *args, **kwargs: run.visit(module, call, args, kwargs)

    names: dict[str, Any] = {COMPILED: _switch(COMPILED, compiled)}
    if issubclass(cls, nn.TransformerEncoderLayer):

        def activation(module: nn.Module) -> Any:
            return 0 if run.waits_inside(module) else module.__dict__[_ACTIVATION]

        names[_ACTIVATION] = _switch(_ACTIVATION, activation)
    if cls.__module__ == _DYNAMO:

        def forward(module: Any) -> Any:
            if run.waits_inside(module):
                return module._orig_mod
            return partial(run.untapped, module, module.__dict__["forward"])

        names["forward"] = _switch("forward", forward)
    if hasattr(cls, "get_compiled_call"):

        def get_compiled_call(self: Any, *args: Any, **kwargs: Any) -> Any:
            # transformers gets it once before a generation, and calls it for each step
            made = run.untapped(self, cls.get_compiled_call, self, *args, **kwargs)

            def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
                # asked within the visit: the step has begun, and its blocks are waiting
                if run.waits_inside(module):
                    return cls.__call__(module, *args, **kwargs)
                return run.untapped(module, made, *args, **kwargs)

            return lambda *args, **kwargs: run.visit(self, call, args, kwargs)

        names["get_compiled_call"] = get_compiled_call
    return names


def _switch(name: str, get: Callable[[Any], Any]) -> property:
    """Return a property that hides an attribute, which stays in the module's `__dict__`."""

    def put(module: nn.Module, value: Any) -> None:
        module.__dict__[name] = value

    def remove(module: nn.Module) -> None:
        del module.__dict__[name]

    return property(get, put, remove)
