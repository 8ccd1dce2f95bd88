"""Where an envoy stands in the tree of its model, and what is found from there."""

from __future__ import annotations

from itertools import chain
from typing import Any, TypeVar

import torch
from torch import nn

from nnsight_dsl.envoys.ports import PORTS, Ports
from nnsight_dsl.modeling.offload import execution_device
from nnsight_dsl.runtime.errors import PathError
from nnsight_dsl.runtime.machines.machine import current_machine
from nnsight_dsl.runtime.tracebacks import towards_user

ROOT = "model"
"""Name of the root in paths that are shown."""

_Error = TypeVar("_Error", bound=Exception)


class Tree(Ports):
    """Base of envoys: their places."""

    _module: nn.Module
    # the envoys around it: the class `Envoy` is derived from this one
    _parent: Any
    _root: Any

    @property
    def path(self) -> str:
        """Dotted path of the envoy, which begins with the root: `"model.transformer.h.0"`."""
        return f"{ROOT}.{self._path}" if self._path else ROOT

    @property
    def parent(self) -> Any:
        """The envoy above, None for the wrapper of the model."""
        return self._parent

    @property
    def root(self) -> Any:
        """The wrapper of the model."""
        return self._root

    @property
    def device(self) -> torch.device:
        """Device of the module's first parameter or buffer.

        If accelerate has offloaded the weights, which are then on the meta device between calls,
        it is the device of the computation. For a model that is not loaded yet it is meta.
        """
        module = self._fresh()
        found = next(chain(module.parameters(), module.buffers()), None)
        if found is None:
            return torch.device("cpu")
        if found.is_meta:
            for below in module.modules():
                device = execution_device(below)
                if device is not None:
                    return device
        device = found.device
        return device

    @property
    def devices(self) -> set[torch.device]:
        """Devices of the module's parameters; empty without parameters."""
        return {one.device for one in self._fresh().parameters()}

    def get(self, path: str) -> Any:
        """Return what is at a dotted path below this envoy.

        Args:
            path: names of modules, numbers of list items and aliases, joined by dots. The last may
                be a parameter or another attribute of a module, and in a block a port.

        Returns:
            The envoy, the same object as by attributes; the attribute, or the value of the port.

        Raises:
            PathError: the module does not exist; the message has the nearest names.

        Example:
            >>> model.get("transformer.h.0") is model.transformer.h[0]
            True
            >>> model.get("lm_head.weight").shape
            torch.Size([50257, 768])
        """
        above, _, last = path.rpartition(".")
        found = self._envoy_at(above)
        child = found._child(last) or found._aliased(last) if last else found
        if child is None and (last in PORTS or hasattr(found._module, last)):
            return getattr(found, last)
        if child is None:
            raise self._raised(found._no_such(last))
        return child

    def _envoy_at(self, path: str) -> Any:
        raise NotImplementedError

    def _child(self, name: str) -> Any:
        raise NotImplementedError

    def _aliased(self, name: str) -> Any:
        raise NotImplementedError

    def _fresh(self) -> nn.Module:
        raise NotImplementedError

    def _no_such(self, name: str) -> PathError:
        raise NotImplementedError

    @staticmethod
    def _raised(error: _Error, *, may_be_asked: bool = False) -> _Error:
        """Prepare an error for the user's line; in a block the end of the run does that."""
        if current_machine() is None:
            towards_user(error, may_be_asked=may_be_asked)
        return error
