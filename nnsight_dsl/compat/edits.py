"""Edits of programs written for nnsight 0.8.

    with model.edit() as (tracer, edited):
        model.transformer.h[1].output[:, -1] = 0

An edit in place binds the tracer alone. In a generation an edit is made in the first step, unless
it loops over steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nnsight_dsl.compat.tracers import Tracer08
from nnsight_dsl.tracing.edit import Edit, KeptEdit


@dataclass(frozen=True, slots=True, eq=False)
class FirstVisitEdit(KeptEdit):
    """An edit that is made once in each run."""

    @property
    def is_for_each_step(self) -> bool:
        """False: later steps are those of its own loops."""
        return False


class EditingTracer(Tracer08):
    """The tracer of an edit, for its loops over steps."""


class EditedPair(tuple[Any, ...]):
    """The tracer of an edit, and the edited model; where it is bound to one name, the model."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self[1], name)


class Edit08(Edit):
    """The block of an edit."""

    _kept_class = FirstVisitEdit

    @cached_property
    def _bound(self) -> Any:
        tracer = EditingTracer(self._model, "trace", (), {})
        return tracer if self._is_inplace else EditedPair((tracer, self._model))

    def _bound_value(self) -> Any:
        return self._bound
