"""A trace changes no result: whatever a model was patched with, it computes what it does without.

Each setting is put up, then the plain model is called, then an empty trace runs it, one that reads
in the midst of it, and one that reads all; each has to come to the same bits, and to the same
gradients. The same once more with the setting put up and taken down between two traces, since a
run keeps nothing of the one before.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from nnsight_dsl import NNsight, NotCalledError, PathError
from tests.models import assert_same

X = torch.linspace(-1, 1, 12).reshape(3, 4)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Net(nn.Module):
    """Three layers; keeps what it has computed, so that nothing has to be asked of a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.head = nn.Linear(4, 2)
        self.call = lambda layer, x: layer(x)
        self.result: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = self.call(layer, x)
        self.result = self.head(x)
        return self.result


def new_net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Net()


Setting = Callable[[Net], AbstractContextManager[Any]]
SETTINGS: dict[str, Setting] = {}


def setting(function: Callable[[Net], Iterator[None]]) -> None:
    SETTINGS[function.__name__] = contextmanager(function)


def patched(owner: Any, name: str, new: Any) -> Any:
    return mock.patch.object(owner, name, new)


SETTINGS["nothing"] = lambda net: nullcontext()


@setting
def call_of_the_class(net: Net) -> Iterator[None]:
    def call(self: Layer, *args: Any) -> Any:
        return nn.Module.__call__(self, *args) * 2

    with patched(Layer, "__call__", call):
        yield


@setting
def call_of_the_class_that_calls_twice(net: Net) -> Iterator[None]:
    def call(self: Layer, x: Any) -> Any:
        return nn.Module.__call__(self, nn.Module.__call__(self, x))

    with patched(Layer, "__call__", call):
        yield


@setting
def call_of_the_class_that_is_no_function(net: Net) -> Iterator[None]:
    class Halving:
        def __call__(self, x: Any) -> Any:
            return x / 2

    with patched(Layer, "__call__", Halving()):
        yield


@setting
def call_of_the_class_as_a_descriptor(net: Net) -> Iterator[None]:
    method = functools.partialmethod(lambda self, factor, x: self.forward(x) * factor, 3)
    with patched(Layer, "__call__", method):
        yield


@setting
def call_of_the_class_as_a_static_method(net: Net) -> Iterator[None]:
    with patched(Layer, "__call__", staticmethod(lambda x: x / 3)):
        yield


@setting
def call_of_a_mock(net: Net) -> Iterator[None]:
    with mock.patch.object(Layer, "__call__", autospec=True, side_effect=lambda self, x: x + 1):
        yield


@setting
def call_of_torch(net: Net) -> Iterator[None]:
    old = nn.Module.__call__

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return old(self, *args, **kwargs) * (2 if isinstance(self, nn.Linear) else 1)

    with patched(nn.Module, "__call__", call):
        yield


@setting
def inner_call_of_torch(net: Net) -> Iterator[None]:
    old = nn.Module._call_impl

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return old(self, *args, **kwargs) * (2 if isinstance(self, nn.Linear) else 1)

    with patched(nn.Module, "_call_impl", call):
        yield


@setting
def inner_call_of_the_class(net: Net) -> Iterator[None]:
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return nn.Module._call_impl(self, *args, **kwargs) * 2

    with mock.patch.object(Layer, "_call_impl", call, create=True):
        yield


@setting
def inner_call_of_an_instance(net: Net) -> Iterator[None]:
    layer = net.layers[1]
    old = layer._call_impl
    layer._call_impl = lambda *args, **kwargs: old(*args, **kwargs) * 2
    yield
    del layer._call_impl


@setting
def bases_of_the_class(net: Net) -> Iterator[None]:
    class Doubling(nn.Module):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs) * 2

    bases = Layer.__bases__
    Layer.__bases__ = (Doubling,)
    yield
    Layer.__bases__ = bases


@setting
def forward_of_the_class(net: Net) -> Iterator[None]:
    with patched(Layer, "forward", lambda self, x: self.up(x)[:, :4]):
        yield


@setting
def forward_of_the_class_by_a_mock(net: Net) -> Iterator[None]:
    with mock.patch.object(Layer, "forward", autospec=True, side_effect=lambda self, x: x * 3):
        yield


@setting
def forward_of_an_instance(net: Net) -> Iterator[None]:
    layer = net.layers[1]
    with patched(layer, "forward", lambda x: layer.down(layer.up(x))):
        yield


@setting
def forward_of_an_instance_by_an_object(net: Net) -> Iterator[None]:
    class Forward:
        def __init__(self, layer: Layer) -> None:
            self.layer = layer

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer.down(torch.relu(self.layer.up(x)))

    with patched(net.layers[1], "forward", Forward(net.layers[1])):
        yield


@setting
def forward_of_an_instance_that_changes_itself(net: Net) -> Iterator[None]:
    layer = net.layers[1]

    def second(x: torch.Tensor) -> torch.Tensor:
        layer.forward = first
        return layer.down(layer.up(x))

    def first(x: torch.Tensor) -> torch.Tensor:
        layer.forward = second
        return layer.down(layer.up(x)) + 0

    layer.forward = first
    yield
    del layer.forward


@setting
def forward_of_an_instance_for_one_call(net: Net) -> Iterator[None]:
    # as lazy modules do: what makes the parts is there for the first call only
    layer = net.layers[1]

    def once(x: torch.Tensor) -> torch.Tensor:
        layer.__dict__.pop("forward", None)
        return layer.forward(x)

    layer.forward = once
    yield
    layer.__dict__.pop("forward", None)


@setting
def class_of_an_instance(net: Net) -> Iterator[None]:
    class Other(Layer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -super().forward(x)

    net.layers[1].__class__ = Other
    yield
    net.layers[1].__class__ = Layer


@setting
def forward_kept_by_accelerate(net: Net) -> Iterator[None]:
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    class Doubling(ModelHook):
        def post_forward(self, module: nn.Module, output: Any) -> Any:
            return output * 2

    add_hook_to_module(net.layers[1], Doubling())
    yield
    remove_hook_from_module(net.layers[1])


@setting
def hooks_of_all_modules(net: Net) -> Iterator[None]:
    def after(module: nn.Module, args: Any, output: Any) -> Any:
        return output * 2 if isinstance(module, Layer) else None

    handle = nn.modules.module.register_module_forward_hook(after)
    yield
    handle.remove()


@setting
def backward_hooks(net: Net) -> Iterator[None]:
    hook = net.layers[1].register_full_backward_hook(lambda module, ins, outs: (ins[0] * 2,))
    yield
    hook.remove()


@setting
def a_parametrized_weight(net: Net) -> Iterator[None]:
    parametrizations.weight_norm(net.layers[1].up)
    yield
    parametrize.remove_parametrizations(net.layers[1].up, "weight")


@setting
def autocast(net: Net) -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16):
        yield


@setting
def no_grad(net: Net) -> Iterator[None]:
    with torch.no_grad():
        yield


@setting
def inference_mode(net: Net) -> Iterator[None]:
    with torch.inference_mode():
        yield


def _in_parallel(net: Net) -> Any:
    wrapped = {layer: nn.DataParallel(layer) for layer in net.layers}
    return lambda layer, x: wrapped[layer](x)


@setting
def dropout_and_statistics_of_batches(net: Net) -> Iterator[None]:
    layer = net.layers[1]
    layer.down = nn.Sequential(layer.down, nn.BatchNorm1d(4), nn.Dropout(0.5))
    yield
    layer.down = layer.down[0]


@setting
def a_weight_that_each_forward_improves(net: Net) -> Iterator[None]:
    parametrizations.spectral_norm(net.layers[1].up)
    yield
    parametrize.remove_parametrizations(net.layers[1].up, "weight")


@setting
def a_cached_weight(net: Net) -> Iterator[None]:
    parametrizations.orthogonal(net.layers[1].up)
    # with its graph it could not go back more than once
    with torch.no_grad(), parametrize.cached():
        yield
    parametrize.remove_parametrizations(net.layers[1].up, "weight")


@setting
def a_lazy_layer(net: Net) -> Iterator[None]:
    before = net.layers[1].up
    net.layers[1].up = nn.LazyLinear(6)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net(X)
    yield
    net.layers[1].up = before


@setting
def saved_tensors_on_another_device(net: Net) -> Iterator[None]:
    with torch.autograd.graph.save_on_cpu():
        yield


@setting
def an_older_checkpoint(net: Net) -> Iterator[None]:
    net.call = lambda layer, x: checkpoint(layer, x, use_reentrant=True)
    with warnings.catch_warnings():
        # the first layer is given nothing that requires a gradient
        warnings.simplefilter("ignore")
        yield
    net.call = lambda layer, x: layer(x)


@setting
def anomalies_looked_for(net: Net) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autograd.set_detect_anomaly(True):
            yield


@setting
def a_mode_for_functions(net: Net) -> Iterator[None]:
    class Doubling(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = function(*args, **(kwargs or {}))
            return result * 2 if function is torch.tanh else result

    with Doubling():
        yield


@setting
def a_mode_for_operations(net: Net) -> Iterator[None]:
    class Halving(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = function(*args, **(kwargs or {}))
            return result * 0.5 if function is torch.ops.aten.tanh.default else result

    with Halving():
        yield


CALLS: dict[str, Callable[[Net], Any]] = {
    "torch's call": lambda net: lambda layer, x: nn.Module.__call__(layer, x),
    "the inner call": lambda net: lambda layer, x: layer._call_impl(x),
    "a stored call": lambda net: (
        lambda layer, x, calls={one: one.__call__ for one in net.layers}: calls[layer](x)
    ),
    "a checkpoint": lambda net: functools.partial(checkpoint, use_reentrant=False),
    "a functional call": lambda net: (
        lambda layer, x: torch.func.functional_call(
            layer, {name: one * 2 for name, one in layer.named_parameters()}, (x,)
        )
    ),
    "vmap": lambda net: lambda layer, x: torch.func.vmap(layer)(x),
    "a derivative": lambda net: (
        lambda layer, x: torch.func.jvp(layer, (x,), (torch.ones_like(x),))[1]
    ),
    "data parallel": _in_parallel,
    "forward, but for one": lambda net: (
        lambda layer, x: layer(x) if layer is net.layers[0] else layer.forward(x)
    ),
}


def _calls(net: Net, make: Callable[[Net], Any]) -> Iterator[None]:
    # not an attribute that is a module: dictionaries hide the modules that wrap
    before, net.call = net.call, make(net)
    yield
    net.call = before


for _name, _make in CALLS.items():
    SETTINGS[f"called by {_name}"] = contextmanager(functools.partial(_calls, make=_make))


def traced_empty(net: Net, model: NNsight) -> None:
    with model.trace(X):
        pass


def traced_outside(net: Net, model: NNsight) -> None:
    with model.trace(X):
        head = model.head.output


def traced_inside(net: Net, model: NNsight) -> None:
    with model.trace(X):
        seen = model.layers[0].input
        last = model.head.output


def traced_whole(net: Net, model: NNsight) -> None:
    with model.trace(X) as tracer:
        tracer.cache()


def traced_by_two(net: Net, model: NNsight) -> None:
    with model.trace() as tracer:
        with tracer.invoke(X):
            one = model.head.output
        with tracer.invoke():
            other = model.head.output


def traced_operations(net: Net, model: NNsight) -> None:
    # a patch of the call may leave out the forward, and another forward has other operations
    with suppress(NotCalledError, PathError):
        with model.trace(X):
            inner = model.layers[0].down.source.F_linear_0.input
            last = model.layers[1].source.return_0.output


TRACES = [
    traced_empty, traced_outside, traced_inside, traced_whole, traced_by_two, traced_operations,
]  # fmt: skip


def result_of(net: Net, run: Callable[[], Any]) -> list[Any]:
    net.result = None
    net.zero_grad()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.random.fork_rng():
        torch.manual_seed(9)
        run()
    result = net.result
    if result.requires_grad:
        result.float().sum().backward()
    grads = [one.grad for one in net.parameters()]
    after = [value.clone() for value in net.state_dict().values()]
    net.load_state_dict(before)
    return [result.detach(), *[None if one is None else one.clone() for one in grads], *after]


# torch's forward derivatives script their formulas at first use
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: trace.__name__)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_trace_computes_what_the_plain_call_computes(
    name: str, trace: Callable[[Net, NNsight], None]
) -> None:
    net = new_net()
    model = NNsight(net)
    for _ in range(2):
        with SETTINGS[name](net):
            expected = result_of(net, lambda: net(X))
            for _ in range(2):
                assert_same(result_of(net, lambda: trace(net, model)), expected)
            assert_same(result_of(net, lambda: net(X)), expected)
        plain = result_of(net, lambda: net(X))
        for _ in range(2):
            assert_same(result_of(net, lambda: trace(net, model)), plain)
