"""The engine as the parts below it see it.

`Engine` owns the runs, the taps and the slots, and passes itself to them. They import a protocol
with the few members that they use, and never `engine.py`, so the imports form no circle.
`request_driver.py`, `ranks.py` and `operations.py` have protocols like this one for their own use.
"""

from __future__ import annotations

from typing import Any, Protocol

from nnsight_dsl.modeling.vllm.engine.ranks import Leader
from nnsight_dsl.modeling.vllm.engine.request_driver import RequestDriver, TappingEngine
from nnsight_dsl.modeling.vllm.engine.time_limit import Limit
from nnsight_dsl.modeling.vllm.engine_places import EngineRoot


class EngineContext(TappingEngine, Protocol):
    """The engine as the programs of a request see it.

    Attributes:
        forward: number of the forward that is running, from 1.
        serving: the driver whose programs are running; set by `Run` for the length of a call into
            its programs, None at all other times.
        limit: time limit of a program between two requests for a value.
        n_tokens: size of the vocabulary.
    """

    forward: int
    serving: RequestDriver | None
    limit: Limit
    n_tokens: int

    @property
    def leader(self) -> Leader | None:
        """The commands to the other ranks; None if the model is on one device."""

    @property
    def weights(self) -> frozenset[int]:
        """Addresses of the storages of the model's weights and buffers."""

    def opened(self, payload: bytes) -> tuple[tuple[Any, ...], EngineRoot]:
        """Unpack a payload; return it with the envoy that its paths start from."""
