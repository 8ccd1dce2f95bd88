"""Modules that compute what is inside them without calling it: torch's fast path, compiled ones.

A run that does not look inside leaves them as they are, bit by bit. One that does sees what hooks
see.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from nnsight_dsl import NNsight, NotCalledError, PathError
from tests.models import assert_same, hooked, recorded

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")

X = torch.linspace(-1, 1, 48).reshape(2, 3, 8)
PADDED = torch.tensor([[False, False, False], [False, False, True]])
MASK = {"src_key_padding_mask": PADDED}


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.embed = nn.Linear(8, 8)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(x), src_key_padding_mask=PADDED))


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def net() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Classifier().eval()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes each layer that takes the fast path."""
    found: list[str] = []
    kernel = torch._transformer_encoder_layer_fwd

    def counted(*args: Any) -> Any:
        found.append("fast")
        return kernel(*args)

    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", counted)
    return found


def test_a_trace_that_looks_outside_keeps_the_fast_path(net: Classifier, calls: list[str]) -> None:
    expected = net(X)
    assert len(calls) == 2
    model = NNsight(net)
    for _ in range(2):
        with model.trace(X):
            pass
        with model.trace(X) as tracer:
            before = model.embed.output
            after = model.encoder.output.save()
            result = tracer.result.save()
        assert_same(result, expected)
        with model.trace(X):
            # the layer is tapped, and nothing inside it
            first = model.encoder.layers[0].input.save()
            cached = model.head.output.save()
        assert_same(cached, expected)
    assert len(calls) == 2 * 7
    assert after[PADDED].abs().sum() == 0


def test_a_cache_of_modules_outside_keeps_the_fast_path(net: Classifier, calls: list[str]) -> None:
    model = NNsight(net)
    expected = net(X)
    with model.trace(X) as tracer:
        cache = tracer.cache(modules=[model.embed, model.head])
    assert_same(cache["model.head"].output, expected)
    assert len(calls) == 4


def test_a_block_that_may_ask_for_anything_keeps_the_fast_path(
    net: Classifier, calls: list[str]
) -> None:
    model = NNsight(net)
    expected = net(X)

    def by_name(name: str) -> Any:
        return getattr(model, name).output

    with model.trace(X):
        result = by_name("head").save()
    assert_same(result, expected)
    assert len(calls) == 4


INSIDE = ("linear1", "linear2", "self_attn", "norm1", "dropout")


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", INSIDE)
def test_a_read_inside_sees_what_a_hook_sees(net: Classifier, name: str, number: int) -> None:
    path = f"encoder.layers.{number}.{name}"
    with recorded(net, [path]) as seen:
        expected = net(X)
    model = NNsight(net)
    with model.trace(X) as tracer:
        hidden = model.get(path).output.save()
        result = tracer.result.save()
    assert_same(result, expected)
    one, other = hidden, seen[path][0]
    if name == "self_attn":
        one, other = one[0], other[0]
    for row, known in zip(one.unbind(), other.unbind(), strict=True):
        assert_same(row, known)


def test_only_the_layer_that_is_looked_into_leaves_the_fast_path(
    net: Classifier, calls: list[str]
) -> None:
    model = NNsight(net)
    with model.trace(X):
        hidden = model.encoder.layers[1].linear1.output
    assert len(calls) == 1


def test_an_edit_inside_does_what_a_hook_does(net: Classifier) -> None:
    with hooked(net, {"encoder.layers.0.linear1": lambda output: output * 2}):
        expected = net(X)
    model = NNsight(net)
    with model.trace(X) as tracer:
        model.encoder.layers[0].linear1.output = model.encoder.layers[0].linear1.output * 2
        result = tracer.result.save()
    assert_same(result, expected)


def test_an_operation_inside_is_seen(net: Classifier) -> None:
    model = NNsight(net)
    with model.trace(X):
        product = model.encoder.layers[0].linear1.source.F_linear_0.output.save()
    with recorded(net, ["encoder.layers.0.linear1"]) as seen:
        net(X)
    known = seen["encoder.layers.0.linear1"][0]
    for row, expected in zip(product.unbind(), known.unbind(), strict=True):
        assert_same(row, expected)


def test_a_cache_of_all_sees_the_modules_inside(net: Classifier) -> None:
    model = NNsight(net)
    with model.trace(X) as tracer:
        cache = tracer.cache()
    assert "model.encoder.layers.1.linear2" in cache


def test_the_root_may_be_such_a_layer(net: Classifier, calls: list[str]) -> None:
    layer = net.encoder.layers[0]
    model = NNsight(layer)
    expected = layer(X)
    with model.trace(X) as tracer:
        result = tracer.result.save()
    assert_same(result, expected)
    assert len(calls) == 2
    with recorded(layer, ["linear1"]) as seen:
        layer(X)
    for _ in range(2):
        with model.trace(X):
            hidden = model.linear1.output.save()
        assert_same(hidden, seen["linear1"][0])
    assert len(calls) == 2


def test_another_thread_keeps_the_fast_path(net: Classifier, calls: list[str]) -> None:
    model = NNsight(net)
    layer = net.encoder.layers[0]

    def elsewhere() -> None:
        thread = threading.Thread(target=torch.no_grad()(lambda: layer(X)))
        thread.start()
        thread.join()

    with model.trace(X):
        seen = model.encoder.layers[0].input
        elsewhere()
        hidden = model.encoder.layers[0].linear1.output
        elsewhere()
        enabled = torch.backends.mha.get_fastpath_enabled().save()
    # those of the other thread, and the other layer
    assert len(calls) == 3
    assert enabled


def test_what_is_asked_for_too_late_says_why(net: Classifier) -> None:
    model = NNsight(net)
    with pytest.raises(NotCalledError, match="fast path"):
        with model.trace(X):
            mask = model.encoder.layers[0].source.self_self_attn_merge_masks_0.output
            hidden = model.encoder.layers[0].linear1.output


def test_a_scan_has_the_shapes_of_a_dense_run(net: Classifier) -> None:
    model = NNsight(net)
    for _ in range(2):
        with model.scan(X):
            outside = model.head.output.shape
        assert outside == (2, 3, 3)
        with model.scan(X):
            inside = model.encoder.layers[1].linear1.output.shape
        assert inside == (2, 3, 16)
    assert net.encoder.use_nested_tensor


# compiled modules


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.fc(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Around(nn.Module):
    """Calls a net in a function that is compiled."""

    def __init__(self, net: nn.Module, **options: Any) -> None:
        super().__init__()
        self.net = net
        self.call = torch.compile(lambda x: self.net(x), **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(x)


Z = torch.linspace(-1, 1, 8).reshape(2, 4)


class Backend:
    """Runs what dynamo has traced, and counts."""

    def __init__(self) -> None:
        self.compiled = self.ran = 0

    def __call__(self, graph: Any, examples: Any) -> Callable[..., Any]:
        self.compiled += 1

        def run(*args: Any) -> Any:
            self.ran += 1
            return graph.forward(*args)

        return run


@pytest.fixture
def backend() -> Iterator[Backend]:
    torch._dynamo.reset()
    yield Backend()
    torch._dynamo.reset()


def _in_place(net: Net, **options: Any) -> tuple[nn.Module, str]:
    net.compile(**options)
    return net, ""


def _around(net: Net, **options: Any) -> tuple[nn.Module, str]:
    return torch.compile(net, **options), "_orig_mod"


def _layer_in_place(net: Net, **options: Any) -> tuple[nn.Module, str]:
    net.layers[1].compile(**options)
    return net, ""


def _in_a_function(net: Net, **options: Any) -> tuple[nn.Module, str]:
    return Around(net, **options), "net"


COMPILED = [_in_place, _around, _layer_in_place, _in_a_function]


def new_net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Net().eval()


@pytest.mark.parametrize("is_warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("compiled", COMPILED, ids=lambda one: one.__name__)
def test_a_compiled_module_is_looked_into(
    compiled: Callable[..., Any], is_warm: bool, backend: Backend
) -> None:
    net, plain = new_net(), new_net()
    root, path = compiled(net, backend=backend)
    if is_warm:
        root(Z)
    model = NNsight(root)
    inner = model.get(path)
    with recorded(plain, ["layers.1", "layers.1.fc"]) as seen:
        plain(Z)
    with hooked(plain, {"layers.1": lambda output: output * 2}):
        expected = plain(Z)
    for _ in range(2):
        with model.trace(Z) as tracer:
            first = inner.layers[1].fc.output.save()
            hidden = inner.layers[1].output.save()
            inner.layers[1].output = inner.layers[1].output * 2
            result = tracer.result.save()
        assert_same(first, seen["layers.1.fc"][0])
        assert_same(hidden, seen["layers.1"][0])
        assert_same(result, expected)
        with model.trace(Z):
            tanh = inner.layers[1].source.torch_tanh_0.output.save()
        assert_same(tanh, torch.tanh(first))
    # taps leave nothing behind
    assert_same(root(Z), plain(Z))
    before = backend.compiled
    assert_same(root(Z), plain(Z))
    assert backend.compiled == before


@pytest.mark.parametrize("compiled", [_in_place, _around], ids=lambda one: one.__name__)
def test_a_trace_that_looks_outside_runs_what_is_compiled(
    compiled: Callable[..., Any], backend: Backend
) -> None:
    root, _ = compiled(new_net(), backend=backend)
    model = NNsight(nn.Sequential(root, nn.Identity()))
    root(Z)
    assert (backend.compiled, backend.ran) == (1, 1)
    for _ in range(2):
        with model.trace(Z):
            pass
        with model.trace(Z):
            edge = model[0].output.save()
            outside = model[1].output.save()
    # a module that is tapped for its own values runs as it was compiled
    assert (backend.compiled, backend.ran) == (1, 5)


def test_a_compiled_call_that_the_model_makes_itself_is_a_visit(backend: Backend) -> None:
    class Calling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = new_net()
            self.net.compile(backend=backend)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net._compiled_call_impl(x) + 1

    root, plain = Calling(), new_net()
    model = NNsight(root)
    root(Z)
    for _ in range(2):
        with model.trace(Z):
            output = model.net.output.save()
        assert_same(output, plain(Z))
        with model.trace(Z):
            hidden = model.net.layers[1].output.save()
            output = model.net.output.save()
        assert_same(hidden, plain.layers[1](plain.layers[0](Z)))
        assert_same(output, plain(Z))
    assert backend.compiled == 1


@pytest.mark.parametrize("compiled", [_in_place, _around], ids=lambda f: f.__name__)
def test_whole_graphs_are_looked_into(compiled: Callable[..., Any], backend: Backend) -> None:
    root, path = compiled(new_net(), backend=backend, fullgraph=True)
    model = NNsight(root)
    inner = model.get(path)
    with model.trace(Z):
        hidden = inner.layers[1].output.save()
    with recorded(new_net(), ["layers.1"]) as seen:
        pass
    plain = new_net()
    assert_same(hidden, plain.layers[1](plain.layers[0](Z)))


def test_a_whole_graph_of_a_function_says_what_to_do(backend: Backend) -> None:
    model = NNsight(Around(new_net(), backend=backend, fullgraph=True))
    with pytest.raises(Exception, match="force_eager"):
        with model.trace(Z):
            hidden = model.net.layers[1].output.save()
    with torch.compiler.set_stance("force_eager"):
        with model.trace(Z):
            hidden = model.net.layers[1].output.save()
    plain = new_net()
    assert_same(hidden, plain.layers[1](plain.layers[0](Z)))


def test_the_source_of_what_compile_puts_around_is_that_of_the_module(backend: Backend) -> None:
    model = NNsight(torch.compile(new_net(), backend=backend))
    with pytest.raises(PathError, match=r"_orig_mod\.source"):
        print(model.source)
