"""Taps on modules of which each process computes a part: tensor parallelism.

    q_proj:  [rows, tokens, width / n] in each of n processes         (its output is split)
    o_proj:  the same as input, and a whole output after a reduction  (its input is split)

A tap gathers what is split before a block sees it, and splits what the model goes on with. Both are
done by all processes together, so each of them has to run the same blocks.

Gradients pass through. Each process goes on with its own part of a whole value, so the gradient of
the value is gathered from all of them, and that of a part is the part of the gradient.

A module between two of these, as an activation, may get parts or not; nothing says which, so it is
refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from nnsight_dsl.runtime.errors import InputError
from nnsight_dsl.runtime.locations import Place

from .offering import Offering
from .taps import Tap


@dataclass(frozen=True, slots=True)
class Split:
    """How the values of a module are split over processes, along the last dimension.

    Attributes:
        group: the processes.
        input: True if the first argument is split.
        output: True if the output is split.
        inside: True if the operations of its forward are on parts.
        is_known: False if nothing says whether its values are split.
    """

    group: Any
    input: bool = False
    output: bool = False
    inside: bool = False
    is_known: bool = True

    @property
    def is_on_parts(self) -> bool:
        """True if the module takes or returns a part, or may do so."""
        return self.input or self.output or not self.is_known


def may_be_part(place: Place) -> Exception:
    """Return the error for a place whose values may be parts."""
    return InputError(
        f"{place._path} may be a part of a value, in each process of this tensor parallel model "
        "another one, and nothing says whether it is; read the output of the linear layer before "
        "it, or the input of the one after it, which are whole here"
    )


class _Gather(torch.autograd.Function):
    """The parts of all processes, joined."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        parts = [torch.empty_like(part) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, part.contiguous(), group=group)
        return torch.cat(parts, dim=-1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return _own_part(gradient, ctx.group), None


class _Part(torch.autograd.Function):
    """The part of this process."""

    @staticmethod
    def forward(ctx: Any, whole: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return _own_part(whole, group)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return _Gather.apply(gradient.contiguous(), ctx.group), None


def _own_part(whole: torch.Tensor, group: Any) -> torch.Tensor:
    count = dist.get_world_size(group)
    return whole.chunk(count, dim=-1)[dist.get_rank(group)].contiguous()


def gathered(part: torch.Tensor, group: Any) -> torch.Tensor:
    """Return the parts of all processes, joined along the last dimension."""
    whole: torch.Tensor = _Gather.apply(part.contiguous(), group)
    return whole


def own_part(whole: torch.Tensor, group: Any) -> torch.Tensor:
    """Return this process's part of a value."""
    part: torch.Tensor = _Part.apply(whole, group)
    return part


class ShardedTap(Tap):
    """A tap on a module whose values are split: a block sees whole ones."""

    def __init__(
        self, place: Place, driver: Offering, split: Split, *, is_stepping: bool = False
    ) -> None:
        super().__init__(place, driver, is_stepping=is_stepping)
        self.split = split
        # to go by `visit`
        self.is_common = False
        if not split.is_known:
            self.can_refuse = True
            self.missing = may_be_part(place)

    def visit(self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run one call of the module, with whole values for the run and parts for the module."""
        split = self.split
        if self.driver.is_in_backward or not split.is_known:
            return call(module, *args, **kwargs)

        def on_parts(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if split.input:
                args = (own_part(args[0], split.group), *args[1:])
            output = call(module, *args, **kwargs)
            return gathered(output, split.group) if split.output else output

        if split.input:
            args = (gathered(args[0], split.group), *args[1:])
        output = super().visit(on_parts, module, args, kwargs)
        return own_part(output, split.group) if split.output else output
