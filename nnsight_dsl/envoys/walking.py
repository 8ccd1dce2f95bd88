"""Methods of modules that lead to other modules, as `named_modules`, over envoys.

Outside of a run, `model.named_modules()` is PyTorch's: names without the root and modules, as code
expects it that counts parameters, registers hooks or looks for a class. In a block it iterates over
envoys under the same names, whose values can be read. Programs written for nnsight always get
envoys, see `nnsight_dsl/compat/envoys.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

CHANGING = frozenset(
    "apply bfloat16 cpu cuda double eval float half mtia requires_grad_ share_memory to to_empty "
    "train type xpu".split()
)
"""Methods of a module that change it and return it."""
WEIGHTS = frozenset("buffers named_buffers named_parameters parameters state_dict".split())
"""Methods of a module that lead to its weights."""
WALKING = frozenset("children get_submodule modules named_children named_modules".split())
"""Methods of a module that lead to other modules."""


def walking(envoy: Any, name: str) -> Callable[..., Any]:
    """Return a method that iterates over envoys where the module's iterates over modules."""

    paths: dict[int, str] = {}
    for path, one in envoy._fresh().named_modules():
        paths.setdefault(id(one), path)

    def envoy_of(module: nn.Module) -> Any:
        path = paths.get(id(module))
        return module if path is None else envoy._envoy_at(path)

    def walk(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for found in getattr(envoy._module, name)(*args, **kwargs):
            if isinstance(found, tuple):
                yield found[0], envoy_of(found[1])
            else:
                yield envoy_of(found)

    def look_up(target: str) -> Any:
        return envoy_of(envoy._module.get_submodule(target))

    return look_up if name == "get_submodule" else walk
