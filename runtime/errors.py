"""What can go wrong while a program runs.

A message states the observed fact and, after a semicolon, what to do. The traceback ends at the
user's statement that made the request.
"""

from __future__ import annotations

from nnsight_dsl.transforms.errors import InternalError as InternalError
from nnsight_dsl.transforms.errors import InterventionError as InterventionError


class UnmetError(InterventionError, ValueError):
    """A value was asked for that does not come: the base of the two reasons for it."""


class OutOfOrderError(UnmetError):
    """A value was asked for after it had passed."""


class GenerationEndedError(OutOfOrderError):
    """A location inside the model was asked for after the last step of the generation."""


class NotCalledError(UnmetError):
    """A module was never called in this run, so that its value never came."""


class NotRunningError(InterventionError, ValueError):
    """A model value was asked for where no run of the model could give it."""


class NoInputError(InterventionError, ValueError):
    """A trace has neither an input nor an invoke, so there is nothing to run."""


class InvokeError(InterventionError, ValueError):
    """An invoke is in a wrong position: inside another one, or beside values of the trace."""


class InputError(InterventionError, ValueError, TypeError):
    """An input or an argument was given that the model cannot run on.

    Attributes:
        number: index of the input in its run, None if the error is about none of the inputs.
    """

    number: int | None = None


class NestedRunError(InterventionError, ValueError):
    """A run of a model was started inside a run of the same model."""


class GradientError(InterventionError, ValueError):
    """A gradient was asked for that this backward pass does not have."""


class GradientOrderError(GradientError, OutOfOrderError):
    """A gradient was asked for after it had passed."""


class NoGraphError(GradientError, NotImplementedError):
    """A backward pass was started from a tensor that no graph leads to."""


class FreedGraphError(GradientError, RuntimeError):
    """A backward pass reached a part of the graph that an earlier one had freed."""


class WriteError(InterventionError, ValueError):
    """A value that was written does not fit the place it was written to."""


class WriteShapeError(InterventionError, RuntimeError):
    """The model could not go on with a value that a block had written."""


class StaleEditError(InterventionError, RuntimeError):
    """A tensor was edited in place after another invoke had replaced it."""


class SharedNameError(InterventionError, NameError):
    """A name of another invoke was read that was not bound, or cannot be waited for."""


class BarrierError(InterventionError, ValueError):
    """A barrier was waited at by another number of invokes than it was made for."""


class PathError(InterventionError, AttributeError):
    """A path does not exist in the model."""


class NoSourceError(PathError):
    """The operations of a place were asked for that has none, or none that are known yet."""


class TokenizerNotFoundError(InterventionError, AttributeError):
    """A model was wrapped without the tokenizer that its input needs."""


class BatchingError(InterventionError, NotImplementedError):
    """Several inputs were given to a model that does not know how to make one batch of them."""


class EngineError(InterventionError, ValueError):
    """A program asked an engine for something that the engine cannot offer."""


class CarriedCallError(InterventionError, RuntimeError):
    """A call assumed to be plain asked for a model value; the block is carried from now on."""


class InterventionArgumentError(InterventionError, TypeError):
    """An intervention was given an argument that is missing, unknown or of another type."""


class RunEnded(BaseException):
    """Control flow, not an error: raised in a machine that is still parked when its run ends."""


class LoopOver(BaseException):
    """Control flow, not an error: ends a loop over steps that waits for a value that never came."""


class RunAborted(BaseException):
    """Control flow, not an error: takes a run out of the model's forward."""
