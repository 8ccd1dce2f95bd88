"""The place of an envoy in its tree: `path`, `parent`, `root`, `device`, `devices`.

    model.transformer.h[0].path         # "model.transformer.h.0"
    model.transformer.h[0].parent       # model.transformer.h
    model.transformer.devices           # {device(type='cpu')}

A module may have attributes of these names, and then they are the module's: `FACTS` is asked only
for a name that the module does not have. Only `device` is known on every envoy, as it is on most
modules of libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn

from nnsight_dsl.envoys.ports import PORTS
from nnsight_dsl.modeling.offload import execution_device
from nnsight_dsl.runtime.errors import PathError
from nnsight_dsl.runtime.locations import ROOT, Place


def path_of(envoy: Place) -> str:
    """Return the dotted path of an envoy, which begins with the name of the root."""
    return f"{ROOT}.{envoy._path}" if envoy._path else ROOT


def device_of(module: nn.Module) -> torch.device | None:
    """Return the device of a module's first parameter or buffer, None if it has neither.

    Where accelerate has offloaded the weights, it is the device of the computation.
    """
    found = next(chain(module.parameters(), module.buffers()), None)
    if found is not None and found.is_meta:
        for below in module.modules():
            device = execution_device(below)
            if device is not None:
                return device
    return None if found is None else found.device


def devices_of(module: nn.Module) -> set[torch.device]:
    """Return the devices of a module's parameters."""
    return {parameter.device for parameter in module.parameters()}


FACTS: Mapping[str, Callable[[Any], Any]] = {
    "path": path_of,
    "parent": lambda envoy: envoy._parent,
    "root": lambda envoy: envoy._root,
    "devices": lambda envoy: devices_of(envoy._fresh()),
    "clear_edits": lambda envoy: envoy._root._part_of(envoy).clear_edits,
    "edit": lambda envoy: envoy._root._part_of(envoy).edit,
    "plan": lambda envoy: envoy._root._part_of(envoy).plan,
    "scan": lambda envoy: envoy._root._part_of(envoy).scan,
    "session": lambda envoy: envoy._root._part_of(envoy).session,
    "trace": lambda envoy: envoy._root._part_of(envoy).trace,
    "_children": lambda envoy: list(envoy._places_below()),
}
"""Attributes of envoys whose modules have no attribute of that name."""


def attribute_at(start: Any, path: str, found: Any, name: str) -> Any:
    """Return an attribute on the way of a path.

    Raises:
        PathError: the object has no such attribute.
    """
    try:
        return getattr(found, name)
    except PathError as error:
        raise start._raised(error) from None
    except AttributeError:
        kind = type(found).__name__
        nowhere = PathError(f"{path!r} leads nowhere; {kind} has no attribute {name!r}")
        raise start._raised(nowhere) from None


def how_to_reach(envoy: Place, name: str) -> str:
    """Say how a submodule is reached whose name something else has here."""
    kind = "its value" if name in PORTS else "what every module has here"
    return (
        f"{envoy._path or 'the model'} has a submodule named {name!r}, and .{name} is {kind}; "
        f"write [{name!r}] in place of .{name} for the submodule"
    )
