"""Places of an engine without a module: the logits, and the tokens sampled from them.

vLLM's model runner computes logits and samples outside of the model's modules, so a program cannot
reach them through an envoy. `EngineRoot`, the envoy of an engine's model, adds two places for them.
Each has one port, which can be left out:

    with model.trace("The Eiffel Tower is in"):
        model.logits.output[:, banned] = -torch.inf     # as for any other location
        best = model.logits.argmax(-1).save()           # `model.logits` is the tensor itself

Outside of a block, `model.logits` is the place. Operations on the tensor return plain tensors.
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

    `_module` is a placeholder that is never called: the engine offers the values itself. The driver
    keeps taps by the id of a place's module, so a place needs one.
    """

    _parent = None

    def __init__(self, path: str) -> None:
        self._path = path
        self._module = nn.Module()

    def __repr__(self) -> str:
        return f"<{self._path} of the engine>"

    @property
    def output(self) -> Any:
        """The value in this step of the engine; assign to it to replace it.

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
    """The tensor that `model.logits` returns in a block; `.output` is the same tensor.

    Operations on it return plain tensors (`__torch_function__` is disabled).
    """

    __torch_function__ = torch._C._disabled_torch_function_impl
    _place: EnginePlace

    @property
    def output(self) -> torch.Tensor:
        """The value as a plain tensor, so that both spellings have the same meaning."""
        return self.as_subclass(torch.Tensor)

    @output.setter
    def output(self, value: torch.Tensor) -> None:
        self._place.output = value


def _has_cache(module: nn.Module) -> bool:
    """Return whether there is a layer in a module that keeps a cache of the requests' tokens."""
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    return any(isinstance(one, AttentionLayerBase) for one in module.modules())


class EngineRoot(NNsight):
    """The root envoy of a model in an engine: its modules, and the places `logits` and `samples`.

    Both ends have one: the client's is `VLLM`, the worker's is made by `Engine.opened`.
    `_is_sharded` is True only in a worker with tensor parallelism, set there when the root is made.
    """

    _own = NNsight._own | frozenset({"_copies", "_is_sharded", "_places"})

    def __init__(self, module: nn.Module, **options: Any) -> None:
        super().__init__(module, **options)
        self._is_sharded = False
        # the weights that programs were handed: where they are, the copy, its version, the weight
        self._copies: dict[Machine, list[tuple[str, torch.Tensor, int, torch.Tensor]]] = {}
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
            # the code around invokes has no request, and so no value
            return place
        value = machine.request((requests.READ, place, "output"))
        # a tensor that knows its place, so that `model.logits.output = ...` writes there
        named = value.as_subclass(EngineValue)
        named._place = place
        return named

    def _weight(self, envoy: Envoy, name: str, value: torch.Tensor) -> torch.Tensor:
        machine = current_machine()
        if machine is None or machine.is_builder:
            return value
        self._check_use(envoy, f"the parameter {name!r}")
        with torch.inference_mode(False), torch.no_grad():
            copy = value.detach().clone()
        where = f"{envoy._path}.{name}".lstrip(".")
        self._copies.setdefault(machine, []).append((where, copy, copy._version, value))
        return copy

    def edited_weight(self, machine: Machine) -> str | None:
        """Forget the weights that a program was handed; return where one is that it has edited."""
        for where, copy, version, weight in self._copies.pop(machine, ()):
            if copy._version != version or not torch.equal(copy, weight):
                return where
        return None

    def _check_use(self, envoy: Envoy, what: str) -> None:
        machine = current_machine()
        if what.startswith((".", "a write", "a deletion")) and machine is not None:
            if not machine.is_builder:
                raise EngineError(
                    f"{what} of {envoy._path or 'the model'} was asked for in a block, and the "
                    "modules and weights of an engine belong to all its requests; read a weight by "
                    "its name, and write what modules are given and return"
                )
            return
        if what == "a call" and _has_cache(envoy._module):
            raise EngineError(
                f"{envoy._path or 'the model'} was called in a block, and there is an attention in "
                "it, which writes into the engine's cache for the tokens that the engine runs now; "
                "call modules without one, as a norm, an MLP or the logits_processor"
            )
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
