"""Section 2.4 of the page on 0.8's surface: classes of one's own for envoys."""

import pytest
import torch
from torch import nn

from tests import models

X = torch.arange(3.0)[None]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(3, 3)
        self.down = nn.Linear(3, 3)

    def forward(self, x):
        return self.down(self.up(x))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])
        self.up = nn.Linear(3, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.up(x)


@pytest.fixture
def classes(as_08):
    from nnsight import Envoy

    class First(Envoy):
        @property
        def doubled(self):
            return self.output * 2

    class Second(Envoy):
        kind = "second"

    return First, Second


def of_class(model, cls: type) -> list[str]:
    return sorted(path for path, one in model.named_modules() if type(one) is cls)


UPS = ["model.layers.0.up", "model.layers.1.up", "model.up"]


def test_a_class_of_modules_comes_before_paths_in_any_order(classes):
    from nnsight import NNsight

    first, second = classes
    for envoys in ({nn.Linear: first, "up": second}, {"up": second, nn.Linear: first}):
        model = NNsight(Stack(), envoys=envoys)
        assert len(of_class(model, first)) == 5 and not of_class(model, second)


def test_of_classes_the_nearest_comes_first(classes):
    from nnsight import NNsight

    first, second = classes
    model = NNsight(Stack(), envoys={nn.Module: first, nn.Linear: second})
    assert len(of_class(model, second)) == 5
    assert of_class(model, first) == ["model.layers", "model.layers.0", "model.layers.1"]


def test_of_paths_the_first_that_matches_comes_first(classes):
    from nnsight import NNsight

    first, second = classes
    model = NNsight(Stack(), envoys={"layers.0.up": first, "up": second})
    assert of_class(model, first) == UPS[:1] and of_class(model, second) == UPS[1:]
    model = NNsight(Stack(), envoys={"up": second, "layers.0.up": first})
    assert of_class(model, second) == UPS and not of_class(model, first)


@pytest.mark.parametrize("key", ["*.up", "up"])
def test_a_star_is_any_one_name(classes, key):
    from nnsight import NNsight

    first, second = classes
    assert of_class(NNsight(Stack(), envoys={key: first}), first) == UPS
    model = NNsight(Stack(), envoys={"layers.*": second})
    assert of_class(model, second) == ["model.layers.0", "model.layers.1"]


def test_own_names_come_before_aliases(classes):
    from nnsight import NNsight

    first, second = classes
    assert of_class(NNsight(Stack(), rename={"up": "rise"}, envoys={"rise": first}), first) == UPS
    both = NNsight(Stack(), rename={"up": "rise"}, envoys={"rise": first, "up": second})
    assert of_class(both, second) == UPS


def test_an_alias_may_stand_for_the_way(classes):
    from nnsight import TransformersModel

    first, _ = classes
    model = TransformersModel(
        models.new_gpt2(), tokenizer=models.tokenizer(),
        rename={"transformer.h": "layers"}, envoys={"layers.*": first},
    )  # fmt: skip
    assert type(model.transformer.h[0]) is first
    with model.trace("the cat"):
        doubled = model.layers[1].doubled.save()
        hidden = model.transformer.h[1].output.save()
    assert torch.equal(doubled, hidden * 2)


def test_the_class_stays_when_the_weights_are_loaded(classes, tmp_path):
    from nnsight import TransformersModel

    first, _ = classes
    models.new_gpt2().save_pretrained(tmp_path)
    models.tokenizer().save_pretrained(tmp_path)
    model = TransformersModel(str(tmp_path), task="text-generation", envoys={"h.*.mlp": first})
    envoy = model.transformer.h[0].mlp
    with model.trace("the cat"):
        doubled = model.transformer.h[0].mlp.doubled.save()
    assert type(model.transformer.h[0].mlp) is first is type(envoy)
    assert doubled.shape[-1] == 16


def test_what_cannot_be_is_refused(classes):
    from nnsight import Envoy, NNsight

    class WithInit(Envoy):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    first, _ = classes
    for envoys, message in (
        ({nn.Linear: int}, "derived from"), ({3: first}, "a class of modules, or a path"),
        ({int: first}, "a class of modules, or a path"), ({"up": WithInit}, "is not called"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=message):
            NNsight(Stack(), envoys=envoys)
