"""`with loss.backward():` outside of a trace.

In a block the statement is recognised in the text. In a plain script it is met only when
`loss.backward()` is called, so from the first wrapped model on that method is replaced by one that
looks at its caller's next instruction: if that enters a `with` statement, it returns a block
instead of running the backward pass. Any other call goes to the original method at once.
"""

from __future__ import annotations

import opcode
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

import torch

from nnsight_dsl.blocks.block import Block
from nnsight_dsl.runtime.driving.gradients import Backward
from nnsight_dsl.runtime.machines.machine import Machine
from nnsight_dsl.runtime.machines.saved import Saved
from nnsight_dsl.tracing.saving import INJECTED
from nnsight_dsl.transforms.program import Program

_CACHE = opcode.opmap["CACHE"]
_BEFORE_WITH = opcode.opmap.get("BEFORE_WITH")
_original = torch.Tensor.backward


class BackwardBlock(Block):
    """The block of a backward pass."""

    def __init__(self, loss: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._given = loss, args, kwargs

    def _run(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> tuple[dict[str, Any], BaseException | None]:
        backward = Backward(*self._given)
        machine = Machine.start(program, user_globals, names, Saved(), INJECTED, is_plain=False)
        backward.run(machine)
        return machine.names, backward.failure


def _enters_with(frame: FrameType) -> bool:
    code = frame.f_code.co_code
    offset = frame.f_lasti + 2
    while offset < len(code) and code[offset] == _CACHE:
        offset += 2
    return offset < len(code) and code[offset] == _BEFORE_WITH


def backward(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Compute gradients as torch does; in a `with` statement, open a block."""
    if _enters_with(sys._getframe(1)):
        return BackwardBlock(self, args, kwargs)
    return _original(self, *args, **kwargs)


backward.__doc__ = _original.__doc__


def install() -> None:
    """Replace `torch.Tensor.backward`, once."""
    if torch.Tensor.backward is _original:
        torch.Tensor.backward = backward
