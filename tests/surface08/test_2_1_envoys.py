"""Sections 2.1 to 2.3 of the page on 0.8's surface: what envoys of 0.8 do otherwise."""

import pytest
import torch
from torch import nn

from tests.models import assert_same

X = torch.arange(3.0)[None]


class Layer(nn.Module):
    """A layer with submodules that are named as ports are."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(3, 3)
        self.source = nn.Linear(3, 3)
        self.scale = 2

    def forward(self, x):
        return self.source(self.output(x)) * self.scale


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.none = nn.ModuleList()
        self.head = nn.ReLU()

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


ORDER = ["layers.0", "layers.1", "layers", "none", "head"]


@pytest.fixture
def net(as_08):
    import nnsight

    return nnsight.NNsight(Net())


@pytest.fixture
def served(as_08):
    import nnsight

    with pytest.warns(UserWarning, match="E_(output|source) here"):
        return nnsight.NNsight(nn.Sequential(Layer()))


def test_envoys_are_envoys_of_nnsight(net):
    import nnsight

    wrapper = nnsight.Envoy(Net(), rename={"layers": "h"})
    assert type(wrapper) is nnsight.NNsight
    assert wrapper.h is wrapper.layers
    assert type(net.layers[0]) is nnsight.Envoy
    assert isinstance(net, nnsight.Envoy)


def check_walks(model) -> None:
    paths = [*(f"model.{path}" for path in ORDER), "model"]
    named = model.named_modules()
    assert [path for path, _ in named] == paths
    assert [envoy for _, envoy in named] == model.modules()
    assert named == model.modules(names=True)
    assert named[1][1] is model.layers[1]
    assert named[-1][1] is model
    is_linear = [model.layers[0], model.layers[1]]
    assert model.modules(include_fn=lambda envoy: isinstance(envoy._module, nn.Linear)) == is_linear
    assert [path for path, _ in model.layers.named_modules()] == paths[:3]


def test_modules_are_envoys_with_the_name_of_the_root(net):
    check_walks(net)


def test_modules_are_envoys_in_06(as_06):
    import nnsight

    model = nnsight.NNsight(Net())
    assert isinstance(model.layers, nnsight.Envoy)
    check_walks(model)


def test_values_are_read_from_named_modules(net):
    seen = {}
    with net.trace(X):
        for path, envoy in net.named_modules(include_fn=lambda one: one._parent is net.layers):
            seen[path] = envoy.output.save()
    assert list(seen) == ["model.layers.0", "model.layers.1"]
    assert_same(seen["model.layers.0"], net.layers[0]._module(X))


def test_a_shared_module_is_walked_once(as_08):
    import nnsight

    layer = nn.Linear(3, 3)
    model = nnsight.NNsight(nn.ModuleDict({"a": layer, "b": layer}))
    assert [path for path, _ in model.named_modules()] == ["model.a", "model"]


def test_length_and_truth_are_those_of_the_module(net):
    assert len(net.layers) == 2
    assert net.layers
    assert not net.none
    assert net.head
    with pytest.raises(TypeError, match=r"object of type 'ReLU' has no len\(\)"):
        len(net.head)


def test_the_device_of_a_module_without_parameters(net):
    assert net.device == torch.device("cpu")
    assert net.head.device is None
    assert net.head.devices == set()


def test_an_attribute_is_set_on_the_envoy_unless_the_module_has_it(net):
    net.layers[0].note = [1]
    net.note = "all"
    net.layers[0].training = False
    net.extra = nn.Linear(3, 1)
    assert (net.layers[0].note, net.note) == ([1], "all")
    assert not hasattr(net._module, "note")
    assert not hasattr(net.layers[0]._module, "note")
    assert not net.layers[0]._module.training
    assert net.extra._module is net._module.extra


def test_submodules_that_are_named_as_a_value(served):
    layer = served._module[0]
    with served.trace(X):
        inner = served[0].E_output.output.save()
        value = served[0].E_source.input.save()
        output = served[0].output.save()
    assert_same([inner, value, output], [layer.output(X), layer.output(X), layer(X)])
    assert served[0].E_output.path == "model.0.output"
    assert served.get("0.E_output") is served[0].E_output
    with served.trace(X):
        inner = served.get("0.E_output.output").save()
        output = served.get("0.output").save()
    assert_same([output, inner], [layer(X), layer.output(X)])


def test_a_key_may_name_such_a_submodule(as_08):
    import nnsight

    with pytest.warns(UserWarning):
        model = nnsight.NNsight(nn.Sequential(Layer()), rename={"E_output": "dense"})
    assert model[0].dense is model[0].E_output


def test_a_model_without_such_names_has_none(net):
    with pytest.raises(AttributeError, match="'E_output'"):
        net.E_output


@pytest.mark.parametrize("fixture", ["as_08", "as_06"])
def test_a_leading_dot_has_no_meaning(fixture, request):
    request.getfixturevalue(fixture)
    import nnsight

    model = nnsight.NNsight(nn.Sequential(nn.Sequential(nn.ReLU())), rename={".0": "first"})
    assert model.first is model[0]
    assert model[0].first is model[0][0]
