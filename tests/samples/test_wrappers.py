"""Wrappers that are copied, and wrappers of modules that stand at several places."""

from __future__ import annotations

import copy
import linecache
import pickle

import pytest
import torch
from torch import nn

from nnsight_dsl import LanguageModel, NNsight, OutOfOrderError
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


# walks


@pytest.fixture
def gpt2() -> LanguageModel:
    return LanguageModel(new_gpt2(), tokenizer=tokenizer())


def test_a_walk_in_a_block_is_one_over_envoys(gpt2):
    with gpt2.trace("the cat"):
        walked = {}
        for name, module in gpt2.named_modules():
            if name.endswith("mlp"):
                walked[name] = module.output
        walked = walked.save()
    with gpt2.trace("the cat"):
        named = [layer.mlp.output for layer in gpt2.transformer.h].save()
    assert list(walked) == [f"transformer.h.{i}.mlp" for i in range(len(named))]
    assert all(torch.equal(a, b) for a, b in zip(walked.values(), named, strict=True))


def test_a_module_that_is_looked_up_in_a_block_is_an_envoy(gpt2):
    with gpt2.trace("the cat"):
        hidden = gpt2.get_submodule("transformer.h.1").output.save()
        children = [type(one).__name__ for one in gpt2.children()].save()
        below = [one for one in gpt2.transformer.h[0].modules()].save()
    with gpt2.trace("the cat"):
        expected = gpt2.transformer.h[1].output.save()
    assert torch.equal(hidden, expected)
    assert set(children) == {"Envoy"}
    assert below[0] is gpt2.transformer.h[0]
    assert gpt2.get_submodule("transformer.h.1") is gpt2._module.transformer.h[1]


# aliases


@pytest.mark.parametrize(
    "rename",
    [
        {"transformer": "model", "h": "layers", "model.layers": "blocks"},
        {"model.layers": "blocks", "h": "layers", "transformer": "model"},
        {"transformer": "model", "model": "backbone", "backbone.h": "blocks"},
        {".transformer": "model", ".model.h": "blocks"},
    ],
)
def test_an_alias_leads_through_another(rename):
    model = LanguageModel(new_gpt2(), tokenizer=tokenizer(), rename=rename)
    assert model.blocks[1] is model.transformer.h[1]
    assert "blocks" in dir(model)
    assert "blocks" in repr(model)
    with model.trace("the cat"):
        hidden = model.blocks[1].output.save()
    with model.trace("the cat"):
        expected = model.transformer.h[1].output.save()
    assert torch.equal(hidden, expected)


def test_aliases_that_stand_for_each_other_lead_nowhere():
    model = LanguageModel(
        new_gpt2(), tokenizer=tokenizer(), rename={"one": "other", "other": "one"}
    )
    with pytest.raises(AttributeError, match="rename="):
        model.one  # noqa: B018


def test_an_alias_through_another_that_stands_for_two_modules_is_refused():
    with pytest.raises(ValueError, match=r"'blocks' stands for 'transformer\.h' and"):
        LanguageModel(
            new_gpt2(),
            tokenizer=tokenizer(),
            rename={"transformer": "model", "model.h": "blocks", "transformer.wte": "blocks"},
        )


# attributes of a model that is not loaded yet


def test_an_attribute_of_a_model_that_is_loaded_later_is_kept(tmp_path):
    new_gpt2().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = LanguageModel(str(tmp_path))
    model.depth = 4
    model.transformer.note = "here"
    with model.trace("the cat"):
        model.lm_head.output.save()
    assert model.depth == model._module.depth == 4
    assert model.transformer.note == "here"


# a module at several places


class Twice(nn.Module):
    """A list in which one layer stands twice."""

    def __init__(self) -> None:
        super().__init__()
        first, between = nn.Linear(3, 3), nn.Linear(3, 3)
        self.layers = nn.ModuleList([first, between, first])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("value", ["layer.output * 2", "torch.zeros(1, 3)"])
def test_a_module_that_stands_twice_in_a_list_is_one_location(value):
    net = Twice()
    model = NNsight(net)
    text = f"with model.trace(X):\n    for layer in model.layers:\n        layer.output = {value}\n"
    names = {"model": model, "X": X, "torch": torch}
    with pytest.raises(OutOfOrderError, match=r"layers\.2 and layers\.0 are one module.*next\(\)"):
        run(text, names)
    with model.trace(X) as tracer:
        model.layers[0].output = torch.zeros(1, 3)
        model.layers[1].output = torch.ones(1, 3)
        last = model.layers[2].next().output.save()
    assert torch.equal(last, net.layers[0](torch.ones(1, 3)))
    del tracer


def run(text: str, names: dict[str, object]) -> None:
    filename = f"<wrappers {len(linecache.cache)}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    exec(compile(text, filename, "exec"), names)


# names of other invokes and backward passes


def test_a_name_that_only_a_backward_pass_reads_is_that_of_the_earlier_invoke(gpt2):
    scale = 0.0
    with gpt2.trace() as tracer:
        with tracer.invoke("the cat"):
            scale = gpt2.transformer.h[0].output.sum().detach()
        with tracer.invoke("the dog"):
            hidden = gpt2.transformer.h[1].output
            loss = gpt2.lm_head.output.sum()
            with loss.backward():
                scaled = (hidden.grad * 0 + scale).save()
    with gpt2.trace("the cat"):
        expected = gpt2.transformer.h[0].output.sum().save()
    assert torch.allclose(scaled, torch.full_like(scaled, expected.item()))
    assert scale == 0.0


def test_a_name_that_a_backward_pass_binds_is_handed_to_a_later_invoke(gpt2):
    with gpt2.trace() as tracer:
        with tracer.invoke("the cat"):
            hidden = gpt2.transformer.h[1].output
            loss = gpt2.lm_head.output[:, -1, 3].sum()
            with loss.backward():
                gradient = hidden.grad.norm()
        with tracer.invoke("the dog"):
            handed = (gpt2.lm_head.output.sum() * 0 + gradient).save()
    with gpt2.trace("the cat"):
        hidden = gpt2.transformer.h[1].output
        with gpt2.lm_head.output[:, -1, 3].sum().backward():
            expected = hidden.grad.norm().save()
    assert torch.allclose(handed, expected, atol=1e-5)


def test_a_name_that_the_invoke_itself_binds_is_its_own_in_a_backward_pass(gpt2):
    with gpt2.trace() as tracer:
        with tracer.invoke("the cat"):
            scale = gpt2.transformer.h[0].output.sum()
        with tracer.invoke("the dog"):
            scale = 2.0
            hidden = gpt2.transformer.h[1].output
            with gpt2.lm_head.output.sum().backward():
                scaled = (hidden.grad * 0 + scale).save()
    assert torch.equal(scaled, torch.full_like(scaled, 2.0))


# programs written for nnsight


def test_the_names_that_nnterp_uses_are_there(tmp_path):
    from nnsight_dsl import compat

    new_gpt2().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    compat.install()
    try:
        import nnsight
        from nnsight.intervention.tracing.globals import Object
        from nnsight.ndif import register

        with pytest.warns(FutureWarning, match="LanguageModel is deprecated"):
            model = nnsight.LanguageModel(
                str(tmp_path), tokenizer_kwargs={"padding_side": "right"}, device_map="cpu"
            )
        assert nnsight.__version__ == compat.VERSION
        assert Object is not None
        # it concerns remote requests only, which are refused
        register("mine")
    finally:
        compat.uninstall()
    assert model._model is model._module
    assert model.tokenizer.padding_side == "right"
