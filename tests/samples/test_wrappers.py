"""Wrappers that are copied, and wrappers of modules that stand at several places."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from nnsight_dsl import LanguageModel, NNsight
from tests.models import new_gpt2, tokenizer

X = torch.arange(3.0)[None]


def new_net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))


class Named(NNsight):
    """A wrapper with an attribute."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.name = "mine"
        self.start = self[0]


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["deepcopy", "pickle"],
)
@pytest.mark.parametrize("has_run", [False, True])
def test_a_copy_is_a_wrapper_of_another_module(copied, has_run):
    net = new_net()
    model = Named(net)
    if has_run:
        for _ in range(3):
            with model.trace(X):
                model[0].output.save()
    other = copied(model)
    assert type(other) is Named
    assert other.name == "mine"
    assert other._module is not net
    assert other.start is other[0]
    other[1].bias.data[:] = 0
    with other.trace(X):
        other.start.output = other.start.output * 2
        found = other.output.save()
    with model.trace(X):
        own = model.output.save()
    assert torch.equal(own, net(X))
    assert torch.equal(found, other._module[1](net[0](X) * 2))


def test_a_copy_of_an_envoy_is_one_of_a_copied_model():
    model = NNsight(new_net())
    other = copy.deepcopy({"layer": model[0], "model": model})
    assert other["model"][0] is other["layer"]
    assert other["layer"]._module is not model[0]._module
    assert pickle.loads(pickle.dumps(model[1]))._path == "1"


def test_a_shallow_copy_shares_the_module():
    model = NNsight(new_net())
    other = copy.copy(model)
    assert other is not model
    assert other._module is model._module
    with other.trace(X):
        found = other[0].output.save()
    assert torch.equal(found, model._module[0](X))


def test_a_deep_copy_keeps_its_edits():
    model = NNsight(new_net())
    with model.edit(inplace=True):
        model[0].output = torch.zeros(1, 3)
    other = copy.deepcopy(model)
    with other.trace(X):
        found = other[0].output.save()
    assert torch.equal(found, torch.zeros(1, 3))


def test_edits_cannot_be_pickled():
    model = NNsight(new_net())
    with model.edit(inplace=True):
        model[0].output = torch.zeros(1, 3)
    with pytest.raises(TypeError, match=r"cannot be pickled; .* clear_edits\(\)"):
        pickle.dumps(model)


def test_a_language_model_is_copied_with_its_tokenizer():
    model = LanguageModel(new_gpt2(), tokenizer=tokenizer())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with other.trace("the cat"):
            found = other.transformer.h[1].output.save()
        with model.trace("the cat"):
            own = model.transformer.h[1].output.save()
        assert torch.equal(found, own)
        assert other.generate("the cat", max_new_tokens=2, trace=False) is not None
