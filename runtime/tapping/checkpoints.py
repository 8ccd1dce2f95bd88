"""Activation checkpoints: parts of a forward that the backward pass computes again.

    model.gradient_checkpointing_enable()
    with model.trace("Hello"):
        model.transformer.h[1].mlp.output *= 2         # inside of a checkpointed layer
        with model.output.logits.sum().backward():     # runs that layer once more

A recomputation is not a new occurrence, so blocks are not run again. But it must yield the same
values as before, edits included, or the gradients are those of another model. So the changes that
blocks make to a value inside of a *region* (one checkpointed call) are noted with the region, and
replayed whenever the region is recomputed: during the run or after it, in any thread.

A region is found by the saved-tensor hooks by which `torch.utils.checkpoint` works. They are
popped while a block runs: tensors saved by its operations are not part of the region, and would be
missing in the recomputation.

This does not work for regions of the older form (`use_reentrant=True`): their graph is built in
the backward pass, without the earlier edits. An edit in such a region is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import get_ident
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils import checkpoint

from nnsight_dsl.runtime.errors import WriteError
from nnsight_dsl.runtime.machines.ambient import top_saved_hooks
from nnsight_dsl.runtime.record import Record, item_before, restore_item
from nnsight_dsl.transforms.requests import INPUTS, OUTPUT, SKIP

_MODULE = checkpoint.__name__
_FORWARD = "_checkpoint_hook"
_AGAIN = "_recomputation_hook"
_REENTRANT = checkpoint.CheckpointFunction.forward.__code__

_push_saved_hooks = torch._C._autograd._push_saved_tensors_default_hooks
_pop_saved_hooks = torch._C._autograd._pop_saved_tensors_default_hooks


@dataclass(frozen=True, slots=True)
class _Leaf:
    """One leaf of a value that blocks have changed.

    Attributes:
        number: its index among the leaves of the offered value, None for a new one.
        value: its content; a copy of a tensor, None for an unchanged leaf.
        needs_grad: whether the tensor required a gradient.
    """

    number: int | None
    value: Any
    needs_grad: bool


@dataclass(frozen=True, slots=True)
class _Change:
    """A value as changed by blocks, and the random state if they drew random numbers."""

    structure: Any
    leaves: tuple[_Leaf, ...]
    random_states: tuple[Any, ...] | None


class _Region:
    """One checkpointed call: the changes by blocks in it, by module, visit and phase."""

    def __init__(self) -> None:
        self.visits: dict[nn.Module, int] = {}
        self.changes: dict[nn.Module, dict[tuple[int, str], _Change]] = {}

    def begin_visit(self, module: nn.Module) -> int:
        number = self.visits.get(module, 0)
        self.visits[module] = number + 1
        return number

    def replay(self, compute: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Compute the region again, with the changes by blocks applied."""
        record = Record()
        try:
            for module, changes in self.changes.items():
                _install(module, changes, record)
            compute(*args)
        finally:
            try:
                record.undo()
            except BaseException:
                record.undo()
                raise


class Visit:
    """A visit to a module inside of one or more nested regions."""

    __slots__ = ("_module", "_regions")

    def __init__(self, module: nn.Module, regions: Sequence[_Region]) -> None:
        self._module = module
        self._regions = [(region, region.begin_visit(module)) for region in regions]

    def offered(self, phase: str, offer: Callable[[Any], Any], value: Any) -> Any:
        """Offer a value without the regions' hooks, and note the changes."""
        before = _versions(value)
        random_states = _random_states()
        hooks = _Hooks()
        try:
            hooks.take_off()
            new = offer(value)
        finally:
            try:
                hooks.put_back()
            except BaseException:
                hooks.put_back()
                raise
        self._note(phase, value, new, before, random_states)
        return new

    def skipped(self, value: Any) -> None:
        """Note that the module was skipped, and the value that replaced its output."""
        self._note(SKIP, (), value, {}, _random_states())

    def _note(
        self,
        phase: str,
        old: Any,
        new: Any,
        before: dict[int, int],
        random_states: tuple[Any, ...],
    ) -> None:
        old_leaves = pytree.tree_leaves(old)
        numbers = {id(leaf): number for number, leaf in enumerate(old_leaves)}
        new_leaves, structure = pytree.tree_flatten(new)
        leaves = tuple(_leaf(leaf, numbers, before) for leaf in new_leaves)
        after = _random_states()
        has_drawn = not _are_equal(random_states, after)
        is_same = len(leaves) == len(old_leaves) and all(
            leaf.number == number and leaf.value is None for number, leaf in enumerate(leaves)
        )
        if is_same and not has_drawn and phase != SKIP:
            return
        change = _Change(structure, leaves, after if has_drawn else None)
        for region, number in self._regions:
            region.changes.setdefault(self._module, {})[number, phase] = change


_regions: WeakKeyDictionary[Any, _Region] = WeakKeyDictionary()


def visit_in_regions(module: nn.Module) -> Visit | None:
    """Return the visit that begins, None if it is part of a recomputation.

    To be called only while saved-tensor hooks are set.
    """
    standing = _standing_hooks()
    if any(_kind(pack) == _AGAIN for pack, _ in standing):
        return None
    return Visit(module, [_region_of(pack) for pack, _ in standing])


def is_reentrant() -> bool:
    """Return whether this thread is computing a region of the older form."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _REENTRANT:
            return True
        frame = frame.f_back
    return False


def is_computed_again() -> bool:
    """Return whether the backward pass is recomputing a region on this thread."""
    return any(_kind(pack) == _AGAIN for pack, _ in _standing_hooks())


def offered_in_reentrant(location: str, offer: Callable[[Any], Any], value: Any) -> Any:
    """Offer a value of a region of the older form, which may only be read.

    Raises:
        WriteError: a block has changed it.
    """
    new, is_changed = _offered_to_read(offer, value)
    if is_changed:
        raise WriteError(
            f"{location} was edited, and it lies in a part of the model that is checkpointed with "
            "use_reentrant=True, whose gradients would be those without the edit; write "
            "gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})"
        )
    return new


def offered_unchanged(location: str, offer: Callable[[Any], Any], value: Any) -> Any:
    """Offer an operation's value, which in a region may only be read: an edit is not replayed.

    Raises:
        WriteError: a block has changed it.
    """
    hooks = _Hooks()
    try:
        hooks.take_off()
        new, is_changed = _offered_to_read(offer, value)
    finally:
        try:
            hooks.put_back()
        except BaseException:
            hooks.put_back()
            raise
    if is_changed and hooks.were_any:
        raise WriteError(
            f"{location} was edited, and it is an operation inside of a checkpointed part, which "
            "the backward pass computes again without the edit; edit the output of a module, or "
            "switch checkpointing off (model.gradient_checkpointing_disable())"
        )
    return new


def _offered_to_read(offer: Callable[[Any], Any], value: Any) -> tuple[Any, bool]:
    before = _versions(value)
    new = offer(value)
    return new, new is not value or _versions(value) != before


def _kind(pack: Any) -> str | None:
    function = getattr(pack, "__wrapped__", pack)
    if getattr(function, "__module__", None) != _MODULE:
        return None
    return str(function.__qualname__).partition(".")[0]


class _Hooks:
    """The saved-tensor hooks of all current regions, to be popped for a while.

    Attributes:
        were_any: True once `take_off` has popped one; `put_back` does not clear it.
    """

    __slots__ = ("_taken", "were_any")

    def __init__(self) -> None:
        self._taken: list[tuple[Any, Any]] = []
        self.were_any = False

    def take_off(self) -> list[tuple[Any, Any]]:
        """Pop the hooks; return them, topmost first."""
        while (top := top_saved_hooks(True)) is not None and _kind(top[0]) in (_FORWARD, _AGAIN):
            self._taken.append(top)
            self.were_any = True
            _pop_saved_hooks()
        return [*self._taken]

    def put_back(self) -> None:
        """Push the popped hooks again; to be called again if it is interrupted."""
        while self._taken:
            pack, unpack = self._taken[-1]
            top = top_saved_hooks(True)
            if top is None or top[0] is not pack or top[1] is not unpack:
                _push_saved_hooks(pack, unpack)
            self._taken.pop()


def _standing_hooks() -> list[tuple[Any, Any]]:
    """Return the hooks of all current regions, topmost first."""
    hooks = _Hooks()
    try:
        return hooks.take_off()
    finally:
        try:
            hooks.put_back()
        except BaseException:
            hooks.put_back()
            raise


def _region_of(pack: Any) -> _Region:
    """Return the region that a saved-tensor hook belongs to."""
    function = getattr(pack, "__wrapped__", pack)
    cells = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))
    frame = cells["frame"].cell_contents
    region = _regions.get(frame)
    if region is None:
        region = _regions[frame] = _Region()
        frame.recompute_fn = _replaying(frame.recompute_fn, region)
    return region


def _replaying(compute: Callable[..., Any], region: _Region) -> Callable[..., Any]:
    def compute_again(*args: Any) -> None:
        region.replay(compute, args)

    return compute_again


def _versions(value: Any) -> dict[int, int]:
    return {
        id(leaf): leaf._version
        for leaf in pytree.tree_leaves(value)
        if isinstance(leaf, torch.Tensor) and not leaf.is_inference()
    }


def _leaf(leaf: Any, numbers: dict[int, int], before: dict[int, int]) -> _Leaf:
    number = numbers.get(id(leaf))
    if not isinstance(leaf, torch.Tensor):
        return _Leaf(number, None if number is not None else leaf, False)
    if number is not None and before.get(id(leaf)) == leaf._version:
        return _Leaf(number, None, False)
    return _Leaf(number, leaf.detach().clone(), leaf.requires_grad)


def _random_states() -> tuple[Any, ...]:
    cpu = torch.get_rng_state()
    return (cpu, torch.cuda.get_rng_state()) if torch.cuda.is_initialized() else (cpu,)


def _are_equal(states: tuple[Any, ...], others: tuple[Any, ...]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(states, others, strict=False))


def _install(module: nn.Module, changes: dict[tuple[int, str], _Change], record: Record) -> None:
    """Make a module's calls on this thread repeat their changes, until the record is undone."""
    thread = get_ident()
    visit = -1

    def before(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        nonlocal visit
        if get_ident() != thread:
            return None
        visit += 1
        change = changes.get((visit, INPUTS))
        return None if change is None else _made_again(change, (args, kwargs))

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        change = changes.get((visit, OUTPUT)) if get_ident() == thread else None
        return None if change is None else _made_again(change, output)

    record.append((_remove_hooks, module, (before, after)))
    module.register_forward_pre_hook(before, prepend=True, with_kwargs=True)
    module.register_forward_hook(after)
    if any(phase == SKIP for _, phase in changes):
        forward = module.forward

        def skipping(*args: Any, **kwargs: Any) -> Any:
            change = changes.get((visit, SKIP)) if get_ident() == thread else None
            return forward(*args, **kwargs) if change is None else _made_again(change, ())

        own = module.__dict__
        record.append((restore_item, own, "forward", item_before(own, "forward")))
        own["forward"] = skipping


def _remove_hooks(module: nn.Module, hooks: Sequence[Any]) -> None:
    for name in ("_forward_pre_hooks", "_forward_hooks"):
        found: dict[int, Any] = module.__dict__[name]
        for key in [key for key, hook in found.items() if hook in hooks]:
            module.__dict__["_forward_pre_hooks_with_kwargs"].pop(key, None)
            del found[key]


def _made_again(change: _Change, value: Any) -> Any:
    """Apply the changes that blocks made the first time to a recomputed value."""
    found = pytree.tree_leaves(value)
    leaves = []
    for leaf in change.leaves:
        old = None if leaf.number is None else found[leaf.number]
        if leaf.value is None and leaf.number is not None:
            leaves.append(old)
        elif isinstance(old, torch.Tensor) and old.requires_grad == leaf.needs_grad:
            # in place, as the first time, so that other holders of the tensor see it
            with torch.no_grad():
                old.copy_(leaf.value)
            leaves.append(old)
        elif isinstance(leaf.value, torch.Tensor):
            leaves.append(leaf.value.clone().requires_grad_(leaf.needs_grad))
        else:
            leaves.append(leaf.value)
    if change.random_states is not None:
        torch.set_rng_state(change.random_states[0])
        for state in change.random_states[1:]:
            torch.cuda.set_rng_state(state)
    return pytree.tree_unflatten(leaves, change.structure)
