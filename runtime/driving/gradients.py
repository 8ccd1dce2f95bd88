"""Gradients: a backward pass is a second run, over tensor hooks.

    with loss.backward():
        late = logits.grad
        early = hidden.grad

The body runs as a separate machine, whose locations are the gradients of tensors. They come in the
reverse order of the forward: autograd reaches a tensor once everything computed from it is done.
A tensor that a block was handed as the rows of a batch, or that it made by indexing, is not in the
graph itself; its gradient is a part of that of the tensor it is a view of.

Autograd's multithreading is off during the pass, so that hooks run on the caller's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from nnsight_dsl.runtime.errors import (
    FreedGraphError,
    GradientError,
    GradientOrderError,
    NoGraphError,
    RunAborted,
)
from nnsight_dsl.runtime.locations import Place, name_of
from nnsight_dsl.runtime.machines.ambient import restore_after_interrupt, state_outside
from nnsight_dsl.runtime.machines.machine import Machine, advanced, set_current
from nnsight_dsl.runtime.machines.steps import StepSpec, steps_of
from nnsight_dsl.runtime.record import Record
from nnsight_dsl.runtime.tracebacks import clean
from nnsight_dsl.runtime.values.elements import with_element
from nnsight_dsl.runtime.values.views import find_whole
from nnsight_dsl.transforms import requests
from nnsight_dsl.transforms.requests import Request

from .foreign import find_foreign
from .loop import PARKED, Loop

_backward = torch.Tensor.backward
_set_multithreading = torch._C._set_multithreading_enabled


class _Target:
    """Where a tensor's gradient arrives: at its own hook, or at that of the tensor it views."""

    __slots__ = ("hooked", "layout", "part")

    def __init__(
        self,
        hooked: torch.Tensor,
        part: Callable[[torch.Tensor], torch.Tensor] | None,
        layout: torch.Tensor | None = None,
    ) -> None:
        self.hooked = hooked
        self.part = part
        self.layout = layout

    def own_copy(self, grad: torch.Tensor) -> torch.Tensor:
        """Copy a gradient, in the base tensor's layout if a view's strides apply to it.

        Autograd may pass the same tensor on elsewhere, where an edit in place must not show.
        """
        if self.layout is None:
            return grad.clone()
        like = self.layout
        copy = torch.empty_strided(like.size(), like.stride(), dtype=grad.dtype, device=grad.device)
        return copy.copy_(grad)


class Backward(Loop):
    """One backward pass, and the machine that reads its gradients."""

    def __init__(self, loss: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not isinstance(loss, torch.Tensor):
            raise GradientError(
                f"'with ....backward():' was given a {type(loss).__name__}; call it on a tensor"
            )
        if loss.grad_fn is None and not loss.requires_grad:
            raise NoGraphError(
                "this tensor has no graph to go back through: it was computed under "
                "torch.no_grad() (as all of model.generate is), or from nothing that requires a "
                "gradient; trace outside of no_grad, or call requires_grad_(True) on a value first"
            )
        self._loss = loss
        self._args = args
        self._kwargs = kwargs
        self._graph: _Graph | None = None
        self._ahead: torch.Tensor | None = None
        self._machine: Machine | None = None
        self._target: _Target | None = None
        self._arrived: _Target | None = None
        self._current: torch.Tensor | None = None
        self._value: torch.Tensor | None = None
        self._lines: dict[int, int] = {}
        self._hooked: list[torch.Tensor] = []

    def run(self, machine: Machine) -> None:
        """Run the pass; an error is left in `failure`."""
        self._machine = machine
        record = Record()
        record.append((set_current, advanced()))
        record.append((_set_multithreading, torch._C._is_multithreading_enabled()))
        outside = state_outside()
        record.append((lambda: restore_after_interrupt(outside, self.failure),))
        record.append((self._close, machine))
        try:
            set_current(None)
            self.drive(machine)
            _set_multithreading(False)
            _backward(self._loss, *self._args, **self._kwargs)
            _set_multithreading(record[1][1])
            if not machine.is_done and machine.pending is not None:
                self.drive(machine, error=self._never_came())
        except RunAborted:
            pass
        except BaseException as error:
            clean(error)
            self.failure = _explained(error)
        finally:
            try:
                record.undo()
            except BaseException:
                record.undo()
                raise

    def _close(self, machine: Machine) -> None:
        """End the machine, if it still waits, and remove the hooks from the tensors."""
        try:
            if not machine.is_done or machine.is_cut:
                machine.close()
        finally:
            for tensor in self._hooked:
                hooks: dict[int, Any] = tensor._backward_hooks or {}
                for key, hook in list(hooks.items()):
                    if getattr(hook, "func", None) == self._arrive:
                        del hooks[key]
            self._hooked.clear()
            self._machine = self._target = self._current = self._value = None

    def for_this_run(self, machine: Machine, request: Request) -> Request:
        """Answer requests on objects other than tensors, which are plain Python here."""
        while _tensor_of(request) is None and (foreign := find_foreign(request)):
            request = machine.call(*foreign)
        return request

    def answer(self, machine: Machine, request: Request) -> Any:
        """Return the answer to a request, PARKED if autograd has not reached its tensor yet."""
        verb = request[0]
        if verb == requests.END:
            machine.finish(is_stopped=False)
            return PARKED
        if verb == requests.STEPS and not isinstance(request[1], StepSpec):
            return steps_of(request[1], machine)
        tensor = _tensor_of(request)
        if tensor is None:
            raise GradientError(_refusal(request))
        arrived, self._arrived = self._arrived, None
        target = self._located(tensor) if arrived is None else arrived
        if self._value is None or target.hooked is not self._current:
            self._wait_for(machine, tensor, target)
            machine.wait(request)
            return PARKED
        if verb == requests.READ:
            return self._value if target.part is None else target.part(self._value)
        new = request[1]
        if verb == requests.ELEMENT:
            _, value, container, _, _, *path = request
            new = with_element(container, path, value)
        self._put(target, self._value, new)
        return None

    def _put(self, target: _Target, whole: torch.Tensor, new: Any) -> None:
        if target.part is None:
            self._value = new
        elif new is not whole:
            self._value = whole.clone()
            target.part(self._value).copy_(new)

    def _located(self, tensor: torch.Tensor) -> _Target:
        noted = find_whole(tensor)
        if noted is not None and self._is_in_graph(noted[0]):
            whole, start, length = noted
            return _Target(whole, lambda grad: grad.narrow(0, start, length))
        if self._is_in_graph(tensor):
            return _Target(tensor, None)
        base = tensor._base
        if base is not None and self._is_in_graph(base):
            size, strides, offset = tensor.size(), tensor.stride(), tensor.storage_offset()
            return _Target(base, lambda grad: grad.as_strided(size, strides, offset), base)
        if not tensor.requires_grad:
            raise GradientError(
                "a gradient was asked for of a tensor that does not require one; call "
                "requires_grad_(True) on it before the model uses it"
            )
        raise GradientError(
            "a gradient was asked for of a tensor that this loss was not computed from; read the "
            "value that the model goes on with, before the loss is computed"
        )

    def _is_in_graph(self, tensor: torch.Tensor) -> bool:
        if tensor is self._loss:
            return True
        if self._graph is not None and tensor not in self._graph:
            return False
        # Gradients asked for in order lie ahead of the current one, mostly near it. Walking the
        # whole graph for each would take as long as everything else.
        start = (self._loss if self._current is None else self._current).grad_fn
        node, self._ahead = tensor.grad_fn, None
        if node is not None and _leads_to(start, node):
            # of two results of one operation, neither is ahead of the other
            self._ahead = tensor if node is not start else None
            return True
        if not tensor.requires_grad:
            return False
        if self._graph is None:
            self._graph = _Graph(self._loss)
        return tensor in self._graph

    def _wait_for(self, machine: Machine, tensor: torch.Tensor, target: _Target) -> None:
        line = machine.line
        current, hooked = self._current, target.hooked
        is_checked = current is None or hooked is self._ahead or hooked is current
        if current is not None and not is_checked and current in _Graph(hooked):
            raise GradientOrderError(
                f"the gradient asked for at line {line} has already passed: the one of line "
                f"{self._lines.get(id(current), line)}, which came after it, is there now; ask for "
                "gradients in the reverse of the order in which the values were computed"
            )
        self._target = target
        self._lines[id(target.hooked)] = line
        self._hooked.append(target.hooked)
        target.hooked.register_hook(partial(self._arrive, target))

    def _arrive(self, target: _Target, grad: torch.Tensor) -> torch.Tensor | None:
        """Serve the machine, if it waits for the tensor that autograd has reached."""
        waiting = self._target
        if waiting is None or waiting.hooked is not target.hooked or self._machine is None:
            return None
        value = waiting.own_copy(grad)
        version = value._version
        outer = self._current, self._value
        self._current, self._value, self._target = target.hooked, value, None
        try:
            machine = self._machine
            if machine.pending is not None:
                # its place in the graph has been found already
                self._arrived = waiting
                self.drive(machine, request=machine.pending)
            result = self._value
        finally:
            self._current, self._value = outer
        return result if result is not value or value._version != version else None

    def _never_came(self) -> Exception:
        return GradientError(
            "a gradient was asked for that never came: autograd had gone past this tensor, or did "
            "not go through it; ask for gradients in the reverse of the order of the forward, of "
            "tensors that the loss was computed from"
        )


_SECOND_TIME = "backward through the graph a second time"


def _explained(error: BaseException) -> BaseException:
    if not isinstance(error, RuntimeError) or _SECOND_TIME not in str(error):
        return error
    found = FreedGraphError(
        "this backward pass came to a part of the graph that an earlier one had freed; write "
        "'with ....backward(retain_graph=True):' for every pass but the last, in all blocks of a "
        "batch together"
    )
    found.__cause__ = error
    return found


class _Graph:
    """The ancestors of a tensor, whose gradients come after that of the tensor."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._nodes: set[Any] = set()
        _leads_to(tensor.grad_fn, None, self._nodes)
        # leaves have no grad_fn; the accumulating nodes at the ends name them
        self._leaves = {id(node.variable) for node in self._nodes if hasattr(node, "variable")}

    def __contains__(self, tensor: torch.Tensor) -> bool:
        node = tensor.grad_fn
        return id(tensor) in self._leaves if node is None else node in self._nodes


def _leads_to(start: Any, node: Any, seen: set[Any] | None = None) -> bool:
    """Return whether a walk down from a node of a graph reaches another, where it ends.

    Args:
        start: the first node, None for an empty walk.
        node: the node to find, None to walk to all ends.
        seen: filled with the nodes that the walk has visited.
    """
    seen = set() if seen is None else seen
    todo = [] if start is None else [start]
    seen.update(todo)
    while todo:
        current = todo.pop()
        if current is node:
            return True
        for following, _ in current.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)
    return False


def _tensor_of(request: Request) -> torch.Tensor | None:
    target = requests.target_of(request)
    is_gradient = requests.port_of(request) == requests.GRAD
    return target if is_gradient and isinstance(target, torch.Tensor) else None


def _refusal(request: Request) -> str:
    place, port = requests.target_of(request), requests.port_of(request)
    if isinstance(place, Place) and port is not None:
        return (
            f"Cannot request {name_of(place, port)} in a backward pass, which has gradients only; "
            "read it before 'with ....backward():', and its '.grad' inside"
        )
    return (
        f"{request[0]!r} has no meaning in a backward pass, which has gradients only; do it "
        "outside of 'with ....backward():'"
    )
