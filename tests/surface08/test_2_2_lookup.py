"""Sections 2.1 and 2.2 of the page on 0.8's surface: where envoys are, what a path leads to."""

import pytest
import torch
from torch import nn

from nnsight_dsl import NNsight, NotRunningError, OutOfOrderError, PathError, save
from tests.models import assert_same

X = torch.arange(3.0)[None]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.head = nn.Linear(3, 2)
        self.table = {"a": 1}

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)


@pytest.fixture
def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Net()


def output_of(net: Net, path: str) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    hook = net.get_submodule(path).register_forward_hook(lambda *call: seen.append(call[2]))
    net(X)
    hook.remove()
    return seen[0]


# where an envoy is


def test_a_path_begins_with_the_name_of_the_root(net):
    model = NNsight(net)
    assert model.path == "model"
    assert model.layers[1].path == "model.layers.1"


def test_parents_and_the_root(net):
    model = NNsight(net)
    assert model.parent is None
    assert model.layers[0].parent is model.layers
    assert model.layers[0].root is model
    assert model.root is model
    assert model._children == [model.layers, model.head]


def test_devices(net):
    model = NNsight(net)
    model.head.to("meta")
    assert model.devices == {torch.device("cpu"), torch.device("meta")}
    assert model.layers.devices == {torch.device("cpu")}
    assert NNsight(nn.ReLU()).devices == set()


class Named(nn.Module):
    """A module with attributes that are named as those of envoys."""

    def __init__(self) -> None:
        super().__init__()
        self.path = "a/b"
        self.parent = nn.Linear(3, 3)
        self.register_buffer("root", torch.ones(3))

    def forward(self, x):
        return self.parent(x) + self.root


def test_an_attribute_of_the_module_comes_first():
    inner = Named()
    model = NNsight(nn.Sequential(inner))
    assert model[0].path == "a/b"
    assert model[0].parent._module is inner.parent
    assert model[0].parent.path == "model.0.parent"
    assert model[0].root is inner.root
    with model.trace(X):
        hidden = model[0].parent.output.save()
    assert_same(hidden, inner.parent(X))


def test_a_subclass_may_have_attributes_of_these_names(net):
    class Own(NNsight):
        def __init__(self, module: nn.Module) -> None:
            super().__init__(module)
            self.path = "mine"

        @property
        def root(self) -> str:
            return "mine too"

    model = Own(net)
    assert (model.path, model.root) == ("mine", "mine too")
    assert model.head.root is model


def test_named_modules_are_those_of_torch_outside_of_a_run(net):
    # code that counts parameters or looks for classes expects modules, and names as in the module
    model = NNsight(net)
    assert list(model.named_modules()) == list(net.named_modules())
    with model.trace(X):
        inside = save(list(model.named_modules()))
    assert [name for name, _ in inside] == [name for name, _ in net.named_modules()]
    assert inside[-1][1] is model.head


# get


def test_get_leads_to_parameters_and_attributes(net):
    model = NNsight(net, rename={"head": "top"})
    assert model.get("layers.1") is model.layers[1]
    assert model.get("layers.1.weight") is net.layers[1].weight
    assert model.get("top.weight") is net.head.weight
    assert model.get("top.out_features") == 2
    assert model.layers.get("0.bias") is net.layers[0].bias


@pytest.mark.parametrize("path", ["layers.2", "layers.0.weights", "head.weight.no", "table.a"])
def test_get_of_what_there_is_not(net, path):
    with pytest.raises(PathError, match=path.rpartition(".")[2]):
        NNsight(net).get(path)


def test_get_of_a_port_is_the_value_of_the_run(net):
    model = NNsight(net)
    expected = output_of(net, "layers.1")
    path = "layers.1.output"
    # the second time from what the first has cached
    for _ in range(2):
        with model.trace(X):
            hidden = model.get("layers.1.output").save()
        assert_same(hidden, expected)
        with model.trace(X):
            hidden = model.get(path).save()
            result = model.layers[1].get("output").save()
        assert_same([hidden, result], [expected, expected])


def test_a_value_of_get_is_edited_in_place(net):
    model = NNsight(net)
    with model.trace(X):
        model.get("layers.1.output")[:] = 0
        result = model.output.save()
    assert_same(result, net.head(torch.zeros(1, 3)))


def test_get_of_an_operation_in_a_run(net):
    model = NNsight(net)
    with model.trace(X):
        first = model.get("source.torch_relu_0.output").save()
    assert_same(first, torch.relu(output_of(net, "layers.0")))


def test_get_of_a_port_that_has_passed_and_out_of_a_run(net):
    model = NNsight(net)
    with pytest.raises(NotRunningError, match=r"head\.output has a value only while"):
        model.get("head.output")
    with pytest.raises(OutOfOrderError, match=r"layers\.0\.output has already passed"):
        with model.trace(X):
            model.get("head.output")
            model.get("layers.0.output")
