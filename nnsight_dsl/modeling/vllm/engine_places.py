"""The places of an engine that are no modules: the logits, and the tokens sampled from them.

Both have one port, and can be named with it or without: `model.logits.output`, as every other
location, or `model.logits`, which in a block is the tensor itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nnsight_dsl.envoys.envoy import Envoy
from nnsight_dsl.modeling.base import NNsight
from nnsight_dsl.modeling.vllm.engine.shards import is_sharded
from nnsight_dsl.runtime.driving import messages
from nnsight_dsl.runtime.errors import EngineError
from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.runtime.machines.machine import Machine, current_machine
from nnsight_dsl.runtime.tracebacks import towards_user
from nnsight_dsl.transforms import requests

NAMES = ("logits", "samples")


class EnginePlace(Place):
    """`model.logits` or `model.samples`.

    The module behind it is a stand-in, which is never called: the engine offers the values itself.
    """

    _parent = None

    def __init__(self, path: str) -> None:
        self._path = path
        self._module = nn.Module()

    def __repr__(self) -> str:
        return f"<{self._path} of the engine>"

    @property
    def output(self) -> Any:
        """The value of the engine's step; assign to it to replace that.

        Raises:
            NotRunningError: no model is running.
        """
        return self._machine().request((requests.READ, self, "output"))

    @output.setter
    def output(self, value: Any) -> None:
        self._machine().request((requests.WRITE, value, self, "output"))

    def _machine(self) -> Machine:
        machine = current_machine()
        if machine is None:
            raise towards_user(messages.outside(f"{self._path}.output"))
        return machine

    def _absence(self) -> str:
        return "the engine has sampled no token for this prompt"


class EngineValue(torch.Tensor):
    """The tensor that `model.logits` is in a block; `.output` is the same tensor.

    What is computed from it is a plain tensor.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl
    _place: EnginePlace

    @property
    def output(self) -> torch.Tensor:
        """The value itself, so that both spellings mean the same."""
        return self.as_subclass(torch.Tensor)

    @output.setter
    def output(self, value: torch.Tensor) -> None:
        self._place.output = value


class EngineRoot(NNsight):
    """The envoy of a model that an engine runs: that of its modules, and two places more."""

    _own = NNsight._own | frozenset({"_is_sharded", "_places"})

    def __init__(self, module: nn.Module, **options: Any) -> None:
        super().__init__(module, **options)
        self._is_sharded = False
        self._places = {name: EnginePlace(name) for name in NAMES}

    @property
    def logits(self) -> Any:
        """The logits of the next token, of shape [1, vocabulary]; read and written."""
        return self._value("logits")

    @property
    def samples(self) -> Any:
        """The token that was sampled, of shape [1]; written, it is the one that is taken."""
        return self._value("samples")

    def _value(self, name: str) -> Any:
        place = self._places[name]
        machine = current_machine()
        if machine is None:
            return place
        if machine.is_builder:
            return place
        value = machine.request((requests.READ, place, "output"))
        named = value.as_subclass(EngineValue)
        named._place = place
        return named

    def _check_use(self, envoy: Envoy, what: str) -> None:
        if self._is_sharded and is_sharded(envoy._module):
            raise EngineError(
                f"{what} of {envoy._path or 'the model'} was asked for in a block, and each worker "
                "of an engine with tensor_parallel_size > 1 holds a part of its weights only; ask "
                "for its input and output, or make the engine with tensor_parallel_size=1"
            )

    def __setattr__(self, name: str, value: Any) -> None:
        if name in NAMES:
            self._places[name].output = value
        else:
            super().__setattr__(name, value)

    def _descend(self, item: str | int) -> Place | None:
        if item in NAMES:
            return self._places[str(item)]
        return super()._descend(item)
