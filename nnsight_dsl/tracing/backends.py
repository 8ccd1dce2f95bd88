"""Backends: what is done with a block in place of running it, and functions that are run.

class Logging(Backend):
    def __call__(self, tracer):
        print(tracer.info.code.co_filename)
        tracer.execute(tracer.info.code)

with model.trace("Hello", backend=Logging()):
    ...

class Looped(NNsight):
    @traceable
    def run(self, x):
        return self._module(self._module(x))

with model.run(x):
    ...
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

from nnsight_dsl.blocks.block import Block
from nnsight_dsl.blocks.callers import opens_block
from nnsight_dsl.runtime.errors import NotRunningError
from nnsight_dsl.runtime.machines.machine import current_machine
from nnsight_dsl.runtime.tracebacks import clean, released
from nnsight_dsl.transforms.program import Program


@dataclass(frozen=True, slots=True)
class BlockInfo:
    """A block that is handed to a backend.

    Attributes:
        code: the code that it was lowered to, with the name, file and lines of the block.
        frame: the user's frame with the block; None if it is one of another block.
    """

    code: CodeType
    frame: FrameType | None


class Backend:
    """What a trace does with its block; this one runs it. Subclasses do more, or something else."""

    def __call__(self, tracer: Any) -> None:
        """Run the block.

        Args:
            tracer: the tracer of the block, which has `info` and `execute`.
        """
        tracer.execute(tracer.info.code)


class HandedOver(Block):
    """A block that can be handed to a backend.

    Attributes:
        info: the block, while the backend is called.
    """

    info: BlockInfo | None = None
    _backend: Any = None
    _execute: Callable[[], None] | None = None

    @property
    def backend(self) -> Any:
        """The callable that was given as `backend=`, None if the block simply runs."""
        return self._backend

    def execute(self, code: CodeType) -> None:
        """Run the block that is handed to a backend: the model with it, and its names leave.

        Args:
            code: `tracer.info.code`; a block is lowered for its place, so it can be no other.

        Raises:
            NotRunningError: no block is handed over now.
            ValueError: the code is another block's.
        """
        if self._execute is None or self.info is None:
            raise NotRunningError(
                "tracer.execute() runs the block of a trace, while the backend= of that trace is "
                "called with the tracer; call it there"
            )
        if code is not self.info.code:
            raise ValueError(
                "tracer.execute() was given another code than tracer.info.code; a block is lowered "
                "for the place where it stands, and no other runs there"
            )
        self._execute()

    def _finished(
        self,
        program: Program,
        user_globals: dict[str, Any],
        names: Mapping[str, Any],
        frame: FrameType | None = None,
    ) -> tuple[dict[str, Any], BaseException | None]:
        if self._backend is None:
            return super()._finished(program, user_globals, names, frame)
        left: dict[str, Any] = {}

        def execute() -> None:
            found, failure = Block._finished(self, program, user_globals, names, frame)
            left.update(found)
            if failure is not None:
                raise released(failure)

        failure: BaseException | None = None
        self.info, self._execute = BlockInfo(program.code, frame), execute
        try:
            self._backend(self)
        except BaseException as error:
            clean(error)
            failure = error
        finally:
            # the frame is the user's, and refers to this tracer
            self.info = self._execute = None
        return left, failure


def traceable(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method of a wrapper's subclass open a block, as `trace` does.

    In a `with` statement, the block below reads and changes the model while the method runs; its
    arguments are those of the method, and its return value is `tracer.result`. Otherwise the
    method runs at once, with the edits of the wrapper.

    Args:
        method: the method; each call of the model in it is a visit.

    Returns:
        The method that opens a block.

    Example:
        >>> class Looped(NNsight):
        ...     @traceable
        ...     def run(self, x):
        ...         return self._module(self._module(x))
        >>> with Looped(module).run(x) as tracer:
        ...     for visit in tracer.iter[:2]:
        ...         hidden = model.layers[0].output.save()
    """

    @functools.wraps(method)
    def opening(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = functools.partial(method, self)
        if current_machine() is not None:
            return bound(*args, **kwargs)
        return self.trace(*args, fn=bound, trace=opens_block(), **kwargs)

    return opening
