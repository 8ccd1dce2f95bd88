"""Modules that compute what is inside them without calling it, while a run looks inside.

Two kinds of modules do so. `torch.nn.TransformerEncoderLayer` has a fast path: where no hook is
registered on it or in it, it computes everything in one kernel. A compiled module
(`module.compile()`, `torch.compile(module)`) runs a graph that was made of the calls inside it.

A run that does not look inside leaves both as they are, so that a trace computes what the plain
call computes. A run that does has the modules inside called one by one, as hooks would, for the
calls of this run only: torch's switches (`torch.backends.mha.set_fastpath_enabled`,
`torch.compiler.set_stance`) hold for the whole process, and other threads may run other models.
So the tapped class of such a module has properties in the place of the attributes by which torch
decides.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, Protocol

import torch
from torch import nn

_DYNAMO = "torch._dynamo.eval_frame"
"""Where torch compiles; it is not imported before that is used."""

COMPILED = "_compiled_call_impl"
"""Where `module.compile()` keeps the compiled call."""

_ACTIVATION = "activation_relu_or_gelu"
"""What an encoder layer's activation is, 0 for one that has no fast path."""

_dynamo: Any = getattr(getattr(torch._C, "_dynamo", None), "eval_frame", None)


def keep_from_compiling(function: Any) -> Any:
    """Have torch run a function, and all that it calls, as it is.

    A compiled function that calls a tapped module ends its graph there, and another one begins
    after it.
    """
    function._torchdynamo_disable = True
    function._torchdynamo_disable_msg = (
        "a trace looks at a module in a graph that has to be whole; run the trace under "
        "torch.compiler.set_stance('force_eager')"
    )
    # the mark is for who would trace the function with its caller, this for the function itself
    action = getattr(_dynamo, "_FrameAction", None)
    if action is not None:
        strategy = _dynamo._FrameExecStrategy(action.SKIP, action.SKIP)
        _dynamo.set_code_exec_strategy(function.__code__, strategy)
    return function


def has_compiled_function(module: nn.Module) -> bool:
    """Tell whether a module has a compiled function among its attributes."""
    return any(
        isinstance(value, FunctionType) and "_torchdynamo_orig_callable" in vars(value)
        for value in vars(module).values()
    )


def is_compiled_around(module: Any) -> bool:
    """Tell whether a module is one that `torch.compile` has put around another."""
    return type(module).__module__ == _DYNAMO


def is_fast_layer(module: Any) -> bool:
    """Tell whether a module may compute everything in one of torch's kernels."""
    return isinstance(module, nn.TransformerEncoderLayer)


def passes_over_parts(module: Any) -> bool:
    """Tell whether a module may compute what is inside it without calling it."""
    return is_fast_layer(module) or COMPILED in module.__dict__ or is_compiled_around(module)


class Looking(Protocol):
    """What a run does with a module that passes over its parts, as this thread asks."""

    @staticmethod
    def waits_inside(module: nn.Module) -> bool:
        """Tell whether something waits for what is inside of a module."""

    @staticmethod
    def visit(module: nn.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a call of a tapped module, as a visit unless one has begun with it."""

    @staticmethod
    def untapped(module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call something while a module and those inside have their classes of outside of runs.

        What was compiled for these would be compiled anew for others.
        """


def switches(cls: Any, run: type[Looking]) -> dict[str, Any]:
    """Return what the tapped class of a class has in the place of attributes of its modules."""

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
            # transformers asks for it before the steps of a generation, and calls it for each
            made = run.untapped(self, cls.get_compiled_call, self, *args, **kwargs)

            def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
                # within the visit: a step has begun, and blocks have said what they wait for
                if run.waits_inside(module):
                    return cls.__call__(module, *args, **kwargs)
                return run.untapped(module, made, *args, **kwargs)

            return lambda *args, **kwargs: run.visit(self, call, args, kwargs)

        names["get_compiled_call"] = get_compiled_call
    return names


def _switch(name: str, get: Callable[[Any], Any]) -> property:
    """Return a property in the place of an attribute, which stays in the module's `__dict__`."""

    def put(module: nn.Module, value: Any) -> None:
        module.__dict__[name] = value

    def remove(module: nn.Module) -> None:
        del module.__dict__[name]

    return property(get, put, remove)
