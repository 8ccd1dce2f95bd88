"""When a model last uses its values, for the rules at a run's entry.

A model of transformers is built a second time from its config, on the meta device, and run there
on fake tensors: the user's own is not called. Any other model may do more in a call than compute,
so nothing is known of its values here; the linter's `--model` takes a factory for it.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .model_facts import Structure
from .recording import recorded, token_input

_known: WeakKeyDictionary[nn.Module, Structure | None] = WeakKeyDictionary()


def structure_with_uses(module: nn.Module) -> Structure | None:
    """Return what a run of a model shows; None where it cannot be run without side effects."""
    if module not in _known:
        try:
            _known[module] = _recorded_copy(module)
        except Exception:
            # what cannot be built again, or run on fake tensors, is not known
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
        # adapters, or modules of the user's
        return None
    structure = recorded(copy, *token_input(copy))
    return structure if structure.is_ordered else None


def _classes(module: nn.Module) -> list[tuple[str, str]]:
    # by name: the classes of modules that a run taps are made for it
    return [(path, type(one).__qualname__) for path, one in module.named_modules()]
