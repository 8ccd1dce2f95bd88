"""Last uses of a model's values, for the checks at the entry of a run.

The check for late edits (`write-too-late`) needs to know when each output is last used, which
takes a recorded run. The user's model must not be called for that, so a model of transformers is
built a second time from its config, on the meta device, and the copy is run on fake tensors. Other
models may have side effects when they are built or called, so nothing is recorded for them; the
linter's `--model` takes a factory instead.

A model that was changed after it was built (adapters, replaced modules) differs from a copy made
from its config, and is not recorded either.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .model_facts import Structure
from .recording import recorded, token_input

_known: WeakKeyDictionary[nn.Module, Structure | None] = WeakKeyDictionary()
"""Recorded facts of each model, None if it could not be recorded."""


def structure_with_uses(module: nn.Module) -> Structure | None:
    """Return the facts recorded from a copy of a model, None if it cannot be recorded."""
    if module not in _known:
        try:
            _known[module] = _recorded_copy(module)
        except Exception:
            # the model cannot be built from its config, or not be run on fake tensors
            _known[module] = None
    return _known[module]


def _recorded_copy(module: nn.Module) -> Structure | None:
    cls: Any = type(module)
    if not cls.__module__.startswith("transformers.models."):
        return None
    with torch.device("meta"):
        copy: nn.Module = cls._from_config(module.config)
    copy.train(module.training)
    if _classes(copy) != _classes(module):
        # the user has added adapters or replaced modules
        return None
    structure = recorded(copy, *token_input(copy))
    return structure if structure.is_ordered else None


def _classes(module: nn.Module) -> list[tuple[str, str]]:
    # compared by name, because a run gives tapped modules generated classes of the same name
    return [(path, type(one).__qualname__) for path, one in module.named_modules()]
