"""Sections 2.1 and 2.2 of the page on 0.8's surface: places, lists and look-ups of envoys."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from tests import models


def test_paths_begin_with_the_root(gpt2):
    layer = gpt2.transformer.h[0]
    assert (gpt2.path, layer.path, layer.attn.path) == (
        "model", "model.transformer.h.0", "model.transformer.h.0.attn"
    )  # fmt: skip
    assert layer.parent is gpt2.transformer.h and gpt2.parent is None
    assert layer.root is gpt2 and gpt2.root is gpt2


def test_devices(gpt2):
    assert gpt2.device == torch.device("cpu") and gpt2.devices == {torch.device("cpu")}
    dropout = gpt2.transformer.drop
    assert dropout.device is None and dropout.devices == set()


def test_modules_are_envoys_with_the_root_last(gpt2):
    found = gpt2.modules()
    assert found[-1] is gpt2
    assert {id(one._module) for one in found} == {id(one) for one in gpt2._module.modules()}
    for number, one in enumerate(found):
        assert one.parent is None or one.parent in found[number:]
    heads = gpt2.modules(include_fn=lambda one: one.path.endswith(".attn"), names=True)
    assert [path for path, _ in heads] == [
        f"model.transformer.h.{number}.attn" for number in range(len(gpt2.transformer.h))
    ]
    assert all(gpt2.get(path.removeprefix("model.")) is one for path, one in heads)


def test_named_modules_are_pairs(gpt2):
    found = gpt2.named_modules()
    assert found == gpt2.modules(names=True)
    assert found[-1] == ("model", gpt2)
    below = gpt2.transformer.h[1].named_modules()
    assert below[-1] == ("model.transformer.h.1", gpt2.transformer.h[1])


def test_they_are_the_same_in_0_6(gpt2_06):
    assert gpt2_06.modules()[-1] is gpt2_06
    assert gpt2_06.named_modules()[-1] == ("model", gpt2_06)


def test_values_of_listed_envoys_are_read_in_a_block(gpt2):
    layers = gpt2.modules(include_fn=lambda one: one.path.endswith(".mlp"))
    with gpt2.trace("the cat"):
        outputs = [layer.output for layer in layers].save()
        paths = [path for path, _ in gpt2.named_modules()].save()
    assert len(outputs) == len(gpt2.transformer.h)
    assert paths[-1] == "model"


def test_get_reaches_parameters_attributes_and_ports(gpt2):
    assert gpt2.get("transformer.h.0") is gpt2.transformer.h[0]
    assert gpt2.get("lm_head.weight") is gpt2._module.lm_head.weight
    assert gpt2.get("transformer.h.0.training") is False
    name = "transformer.h.1.output"
    for _ in range(2):
        with gpt2.trace("the cat"):
            first = gpt2.get("transformer.h.0.output").save()
            second = gpt2.get(name).save()
    with gpt2.trace("the cat"):
        expected = gpt2.transformer.h[0].output.save()
        other = gpt2.transformer.h[1].output.save()
    assert torch.equal(first, expected) and torch.equal(second, other)
    with pytest.raises(AttributeError, match="no module or attribute 'wieght'"):
        gpt2.get("lm_head.wieght")
    with pytest.raises(ValueError, match="only while the model runs"):
        gpt2.get("lm_head.output")


def test_truth_and_length_are_the_module_s(as_08):
    from nnsight import NNsight

    net = NNsight(
        nn.ModuleDict({"full": nn.ModuleList([nn.Linear(2, 2)]), "empty": nn.ModuleList()})
    )
    assert net.full and not net.empty and net.full[0]
    assert len(net.full) == 1
    with pytest.raises(TypeError, match="has no len"):
        len(net.full[0])


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(3, 3)

    def forward(self, x):
        return self.output(x) + 1


def test_a_submodule_named_as_a_port_is_moved(as_08):
    from nnsight import NNsight

    module = nn.Sequential(Layer())
    with pytest.warns(UserWarning, match=r"model\.0 has a submodule named .output"):
        wrapped = NNsight(module)
    assert wrapped[0].E_output.path == "model.0.output"
    assert wrapped.get("0.E_output") is wrapped[0].E_output
    x = torch.ones(1, 3)
    with wrapped.trace(x):
        inner = wrapped[0].E_output.output.save()
        outer = wrapped[0].output.save()
    assert torch.equal(outer, inner + 1)
    assert torch.equal(inner, module[0].output(x))


def test_no_warning_without_such_a_submodule(as_08):
    from nnsight import NNsight

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NNsight(models.new_gpt2())


def test_children_are_listed(gpt2):
    assert gpt2._children == [gpt2.transformer, gpt2.lm_head]
    assert gpt2.transformer.h._children == list(gpt2.transformer.h)
