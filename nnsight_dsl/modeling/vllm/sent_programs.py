"""What stands for a program in the parameters of a request, which anybody may write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nnsight_dsl.modeling.vllm.client.effects import Reach
from nnsight_dsl.runtime.errors import EngineError

KEY = "nnsight_dsl"
"""Key of `SamplingParams.extra_args` that holds a payload."""

WHOLE = "whole"
"""Key beside the payload: True if the prompt must be computed in one piece."""


@dataclass(frozen=True, slots=True)
class SentProgram:
    """What stands under `KEY` in the parameters of a request.

    Attributes:
        key: the client's key of the request.
        payload: the programs, from `dump_parts`.
        reach: upper bound of the programs' effects.
        is_whole: True if the prompt must be computed in one piece.
    """

    key: str
    payload: bytes
    reach: Reach
    is_whole: bool

    def packed(self) -> dict[str, Any]:
        """Return it as plain values, which vLLM passes on to its engine."""
        reach = self.reach
        return {
            "key": self.key,
            "payload": self.payload,
            "reach": (reach.meets_prompt, reach.may_write),
            WHOLE: self.is_whole,
        }


def sent_in(extra_args: Any) -> SentProgram | None:
    """Return the program in the `extra_args` of a request; None without one.

    Raises:
        EngineError: what stands there is no program.
    """
    if not isinstance(extra_args, dict) or KEY not in extra_args:
        return None
    sent = extra_args[KEY]
    found = sent if isinstance(sent, dict) else {}
    key, payload = found.get("key"), found.get("payload")
    reach, is_whole = found.get("reach"), found.get(WHOLE)
    if isinstance(key, str) and isinstance(payload, bytes) and isinstance(is_whole, bool):
        match reach:
            # a list, if the engine runs in another process
            case [bool() as meets_prompt, bool() as may_write]:
                return SentProgram(key, payload, Reach(meets_prompt, may_write), is_whole)
    raise EngineError(
        f"extra_args[{KEY!r}] of this request is {sent!r:.80}, and not what a trace sends; open a "
        "trace on the model, or leave it out"
    )
