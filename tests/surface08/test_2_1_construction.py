"""Section 2.1 of the page on 0.8's surface: how an envoy is made, and what it is."""

import copy
import pickle

import pytest
import torch
from torch import nn

from nnsight_dsl import Envoy, NNsight
from tests.models import assert_same

X = torch.arange(3.0)[None]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(3, 5)
        self.down = nn.Linear(5, 3)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.fixture
def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Net()


def outputs_of(net: nn.Module, *paths: str) -> list[torch.Tensor]:
    """The outputs of modules in a plain call, by hand-written hooks."""
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        net.get_submodule(path).register_forward_hook(
            lambda module, args, output, path=path: seen.update({path: output})
        )
        for path in paths
    ]
    net(X)
    for hook in hooks:
        hook.remove()
    return [seen[path] for path in paths]


# Envoy(module)


def test_an_envoy_of_a_module_is_a_wrapper(net):
    model = Envoy(net)
    assert type(model) is NNsight
    assert isinstance(model, Envoy)
    assert model._module is net
    with model.trace(X):
        hidden = model.layers[1].output.save()
        result = model.output.save()
    assert_same([hidden, result], outputs_of(net, "layers.1", ""))


def test_an_envoy_takes_aliases(net):
    model = Envoy(net, rename={"layers": "h", "up": "first"})
    with model.trace(X):
        hidden = model.h[1].first.output.save()
    assert_same([hidden], outputs_of(net, "layers.1.up"))


def test_a_module_can_be_wrapped_twice(net):
    for model in (Envoy(net), NNsight(Envoy(net)), Envoy(NNsight(net)), Envoy(NNsight(net).head)):
        with model.trace(X):
            result = model.output.save()
        assert_same(result, model._module(X))


def test_what_is_below_is_an_envoy_too(net):
    model = NNsight(net)
    assert type(model.layers[0]) is Envoy
    assert isinstance(model, Envoy)


def test_copies_of_an_envoy(net):
    model = Envoy(net)
    for other in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is NNsight
        assert_same(other(X), net(X))


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"'gpt2' is not a torch\.nn\.Module"):
        Envoy("gpt2")


def test_a_subclass_of_envoy_alone_cannot_wrap_a_module(net):
    class Own(Envoy):
        pass

    with pytest.raises(TypeError, match="derive Own from NNsight to wrap a module"):
        Own(net)
