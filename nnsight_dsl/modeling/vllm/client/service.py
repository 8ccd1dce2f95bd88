"""The engine as the tracers of a model see it.

A tracer collects the requests of a block and hands them over; it does not know the wrapper that
started the engine. That keeps the imports in one direction: `model.py` makes the tracers and gives
each a `Service`, and the tracers import nothing of `model.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from nnsight_dsl.modeling.vllm.payload import Outcome, Part


@dataclass(slots=True)
class Sent:
    """One request of a trace.

    Attributes:
        part: the program of its block; None for a trace without a block.
        prompt: its prompt, in one of the forms of vLLM's prompts.
        options: its sampling parameters, by name.
        names: the names around its block, in the client.
        key: its id in the client; the payload carries it, since the worker uses another id.
        output: its latest `RequestOutput`.
        left: the pickled outcome of its programs; None until the worker has returned it.
        outcome: the same, unpickled.
    """

    part: Part | None
    prompt: Any
    options: dict[str, Any]
    names: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    output: Any = None
    left: bytes | None = None
    outcome: Outcome | None = None


class Service(Protocol):
    """The engine, started by the first request that is served."""

    @property
    def is_compiled(self) -> bool:
        """True if vLLM has compiled the model, so that no module is called."""

    @property
    def is_sharded(self) -> bool:
        """True if the model is split over several workers (tensor parallelism)."""

    def serve(self, sent: list[Sent], parts: list[Part], function: str) -> None:
        """Run requests to their ends, and fill in their outputs and outcomes.

        Args:
            sent: the requests.
            parts: programs to run before the block of each request.
            function: `"trace"` or `"generate"`, which sets the default number of tokens.
        """
