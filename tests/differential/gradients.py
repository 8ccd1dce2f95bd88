"""What a backward block means, made of plain tensor hooks.

The block runs on a greenlet of its own. Each gradient that it asks for is waited for by a hook on
that tensor, and what the block writes is what the hook returns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from greenlet import getcurrent

from nnsight_dsl.errors import GradientError, NoGraphError
from nnsight_dsl.runtime.machines.carrying import new_carrier


class _Pass:
    """One backward pass and its block."""

    def __init__(self, body: Callable[[], None]) -> None:
        self.block = new_carrier(body)
        self.block.backward_pass = self
        self.wanted: Any = None
        self.offered: Any = None
        self.value: Any = None
        self._hooks: list[tuple[Any, Any]] = []

    def resume(self, answer: Any = None, error: BaseException | None = None) -> None:
        while True:
            if error is not None:
                wanted = self.block.throw(error)
            else:
                wanted = self.block.switch(answer) if self.block else self.block.switch()
            answer = error = None
            if self.block.dead:
                self.wanted = None
                return
            verb, tensor, value = wanted
            if tensor is self.offered:
                if verb == "write":
                    self.value = value
                answer = self.value
                continue
            if not isinstance(tensor, torch.Tensor) or not tensor.requires_grad:
                error = GradientError("this has no gradient")
                continue
            self.wanted = wanted
            if all(one is not tensor for one, _ in self._hooks):
                row = _row_of(tensor)
                if row is None:
                    handle = tensor.register_hook(partial(self._come, tensor))
                else:
                    handle = tensor._base.register_hook(partial(self._come_to_row, tensor, row))
                self._hooks.append((tensor, handle))
            return

    def _come_to_row(self, tensor: torch.Tensor, row: int, grad: torch.Tensor) -> Any:
        found = self._come(tensor, grad[row])
        if found is None:
            return None
        whole = grad.clone()
        whole[row] = found
        return whole

    def _come(self, tensor: torch.Tensor, grad: torch.Tensor) -> Any:
        if self.wanted is None or self.wanted[1] is not tensor:
            return None
        verb, _, value = self.wanted
        self.offered, self.value = tensor, grad.clone() if verb == "read" else value
        try:
            self.resume(self.value)
        finally:
            self.offered = None
        return self.value

    def finish(self) -> None:
        while self.wanted is not None:
            self.wanted = None
            self.resume(error=GradientError("it never came"))

    def end(self) -> None:
        for _, hook in self._hooks:
            hook.remove()


def _row_of(tensor: torch.Tensor) -> int | None:
    """Return the number of the row that a block has taken out of a layer's output, as by `[0]`.

    The model goes on with the whole output, so the row is not in the graph of the loss. Its
    gradient is the row of the whole's. Only a row has one axis here.
    """
    base = tensor._base
    if tensor.dim() != 1 or base is None or base.dim() != 2:
        return None
    return (tensor.storage_offset() - base.storage_offset()) // base.stride(0)


def backward(loss: Any, body: Callable[[], None]) -> None:
    """Go back from a tensor, with a block."""
    if not isinstance(loss, torch.Tensor) or not loss.requires_grad:
        raise NoGraphError("there is no graph")
    run = _Pass(body)
    try:
        run.resume()
        loss.backward()
        run.finish()
    finally:
        run.end()


def read(tensor: Any) -> Any:
    """Ask for a gradient."""
    if not isinstance(tensor, torch.Tensor):
        return tensor.grad
    return getcurrent().parent.switch(("read", tensor, None))


def write(tensor: Any, value: Any) -> None:
    """Replace a gradient."""
    getcurrent().parent.switch(("write", tensor, value))
