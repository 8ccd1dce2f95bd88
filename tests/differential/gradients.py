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

from nnsight_dsl.errors import GradientError
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
                self._hooks.append((tensor, tensor.register_hook(partial(self._come, tensor))))
            return

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


def backward(loss: Any, body: Callable[[], None]) -> None:
    """Go back from a tensor, with a block."""
    if not isinstance(loss, torch.Tensor) or not loss.requires_grad:
        raise GradientError("there is no graph")
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
