"""Every error class of this package, in one place.

All derive from `InterventionError`, but for those that are met before a block runs; each derives
from the built-in type that names its nature, too. `docs/errors/` has a page for each.
"""

from nnsight_dsl.runtime.errors import (
    BarrierError,
    BatchingError,
    CarriedCallError,
    EngineError,
    FreedGraphError,
    GenerationEndedError,
    GradientError,
    GradientOrderError,
    InputError,
    InternalError,
    InterventionArgumentError,
    InterventionError,
    InvokeError,
    NestedRunError,
    NoInputError,
    NoSourceError,
    NotCalledError,
    NotRunningError,
    OutOfOrderError,
    PathError,
    SharedNameError,
    StaleEditError,
    TokenizerNotFoundError,
    WriteError,
    WriteShapeError,
)
from nnsight_dsl.transforms.errors import (
    BlockNotFoundError,
    BlockUseError,
    UnsupportedSyntaxError,
)

__all__ = [
    "BarrierError",
    "BatchingError",
    "BlockNotFoundError",
    "BlockUseError",
    "CarriedCallError",
    "EngineError",
    "FreedGraphError",
    "GenerationEndedError",
    "GradientError",
    "GradientOrderError",
    "InputError",
    "InternalError",
    "InterventionArgumentError",
    "InterventionError",
    "InvokeError",
    "NestedRunError",
    "NoInputError",
    "NoSourceError",
    "NotCalledError",
    "NotRunningError",
    "OutOfOrderError",
    "PathError",
    "SharedNameError",
    "StaleEditError",
    "TokenizerNotFoundError",
    "UnsupportedSyntaxError",
    "WriteError",
    "WriteShapeError",
]
