"""Aliases of modules: by name, by path, from the root; in caches, in print and in errors."""

from pathlib import Path

import pytest
import torch
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from nnsight_dsl import LanguageModel, NNsight, PathError
from tests import models
from tests.models import GPT2, LLAMA, LONG, SHORT, assert_same, bare, encoded, new_gpt2, recorded

RENAME = {
    "mlp": "feedforward",
    "attn.c_proj": "mixed",
    "transformer.h": "layers",
    ".transformer": ["model", "backbone"],
    "transformer.h.2": ["last"],
}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(new_gpt2(), tokenizer=models.tokenizer(), rename=RENAME)


@pytest.mark.parametrize(
    "alias, path",
    [
        (lambda model: model.transformer.h[1].feedforward, "transformer.h.1.mlp"),
        (lambda model: model.transformer.h[1].mixed, "transformer.h.1.attn.c_proj"),
        (lambda model: model.layers[1], "transformer.h.1"),
        (lambda model: model.layers[1].feedforward, "transformer.h.1.mlp"),
        (lambda model: model.model.h[1], "transformer.h.1"),
        (lambda model: model.backbone.h[1].mixed, "transformer.h.1.attn.c_proj"),
        (lambda model: model.last, "transformer.h.2"),
        (lambda model: model.get("layers.1.feedforward"), "transformer.h.1.mlp"),
    ],
    ids=range(8),
)
def test_an_alias_is_the_module(model: LanguageModel, alias, path: str) -> None:
    assert alias(model) is model.get(path)
    with model.trace(LONG):
        value = alias(model).output.save()
    assert_same(value, models.output_of(GPT2, LONG, path))


def test_aliases_are_written_in_a_block_as_names_are(model: LanguageModel) -> None:
    def edit(output: torch.Tensor) -> None:
        output[:, -1] = 0

    after = {"transformer.h.0.mlp": edit, "transformer.h.1": lambda output: output * 2}
    with models.hooked(bare(GPT2), after):
        expected = bare(GPT2)(**encoded(LONG)).logits
    with model.trace() as tracer:
        with tracer.invoke(LONG):
            model.layers[0].feedforward.output[:, -1] = 0
            model.model.h[1].output = model.backbone.h[1].output * 2
            logits = model.output.logits.save()
    assert_same(logits, expected)


def test_aliases_in_a_loop_an_edit_and_a_generation(model: LanguageModel) -> None:
    greedy = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    with models.hooked(bare(GPT2), {"transformer.h.0.mlp": torch.zeros_like}):
        with recorded(bare(GPT2), ["transformer.h.2"]) as seen:
            expected = bare(GPT2).generate(**encoded(LONG), **greedy)
    with model.edit() as edited:
        model.layers[0].feedforward.output[:] = 0
    with edited.generate(LONG, **greedy) as tracer:
        hidden = [].save()
        for _ in tracer.iter[:]:
            hidden.append(edited.last.output)
        tokens = tracer.result.save()
    assert_same(tokens, expected)
    assert_same(list(hidden), seen["transformer.h.2"])
    with model.trace(LONG):
        norms = [layer.feedforward.output.norm() for layer in model.layers].save()
    assert len(norms) == 3


def test_aliases_of_a_model_that_is_loaded_late(tmp_path: Path) -> None:
    new_gpt2().save_pretrained(tmp_path)
    models.tokenizer().save_pretrained(tmp_path)
    model = LanguageModel(str(tmp_path), rename=RENAME)
    layer = model.layers[1]
    with model.trace(LONG):
        hidden = model.layers[1].feedforward.output.save()
    assert_same(hidden, models.output_of(GPT2, LONG, "transformer.h.1.mlp"))
    assert layer is model.layers[1]


def test_aliases_of_any_module() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    model = NNsight(module, rename={"0": "first", ".1": ["second", "final"]})
    x = torch.ones(1, 3)
    with model.trace(x):
        first = model.first.output.save()
        final = model.final.output.save()
    assert_same([first, final], [module[0](x), module(x)])


# caches


def test_a_cache_is_read_by_alias_and_by_name(model: LanguageModel) -> None:
    with model.trace(LONG) as tracer:
        cache = tracer.cache()
    fed = cache["model.transformer.h.1.mlp"].output
    assert_same(fed, models.output_of(GPT2, LONG, "transformer.h.1.mlp"))
    for path in ("layers.1.feedforward", "model.h.1.feedforward", "backbone.h.1.mlp"):
        assert cache[f"model.{path}"].output is fed
    assert cache.model.layers[1].feedforward.output is fed
    assert cache.model.backbone.h[1].mlp.output is fed
    assert cache["model.last"].output is cache["model.transformer.h.2"].output


def test_modules_to_cache_are_named_by_alias(model: LanguageModel) -> None:
    with model.trace(LONG) as tracer:
        cache = tracer.cache(modules=["layers.0", model.layers[1].feedforward])
    assert set(cache) == {"model.transformer.h.0", "model.transformer.h.1.mlp"}
    assert cache["model.layers.0"].output is cache["model.transformer.h.0"].output


# print


def test_print_shows_aliases_beside_names(model: LanguageModel) -> None:
    text = repr(model)
    assert "(transformer | model | backbone): GPT2Model(" in text
    assert "(h | model.layers): ModuleList(" in text
    assert "(mlp | feedforward): GPT2MLP(" in text
    assert "(c_proj | h.0.mixed): Conv1D(nf=16, nx=16)" in text
    assert "(c_proj): Conv1D(nf=16, nx=64)" in text


def test_print_is_the_modules_without_the_aliases(model: LanguageModel) -> None:
    text = repr(model)
    for shown in (" | model | backbone", " | model.layers", " | feedforward", " | h.0.mixed"):
        assert shown in text
        text = text.replace(shown, "")
    assert text == repr(model._module)
    assert repr(models.wrapped(GPT2)) == repr(bare(GPT2))
    assert "(mlp | feedforward)" in repr(model.transformer.h[0])


def test_aliases_are_listed(model: LanguageModel) -> None:
    assert {"layers", "model", "backbone", "last", "transformer"} <= set(dir(model))
    assert {"feedforward", "mixed"} <= set(dir(model.layers[0]))
    assert "layers" not in dir(model.layers[0])


# errors


def test_one_mapping_serves_several_architectures() -> None:
    rename = {
        "transformer.h": "layers",
        "model.layers": "layers",
        "attn": "attention",
        "self_attn": "attention",
    }
    for kind, path in ((GPT2, "transformer.h.1.attn"), (LLAMA, "model.layers.1.self_attn")):
        model = LanguageModel(kind.new(), tokenizer=models.tokenizer(), rename=rename)
        with model.trace(LONG):
            mixed = model.layers[1].attention.output.save()
        assert_same(mixed, models.output_of(kind, LONG, path))


def test_an_alias_of_what_is_not_there_says_what_it_stands_for() -> None:
    model = LanguageModel(new_gpt2(), rename={"model.layers": "layers", "mlp": "feedforward"})
    with pytest.raises(PathError, match=r"no module 'model\.layers', which rename= gives the name"):
        model.layers
    with pytest.raises(PathError, match="'mlp', which rename= gives the name 'feedforward'"):
        model.transformer.feedforward
    with pytest.raises(PathError, match="'mlp', which rename= gives the name 'feedforward'"):
        with model.trace(**encoded(LONG)):
            hidden = model.transformer.feedforward.output.save()


def test_an_alias_with_a_leading_dot_leads_from_the_root_only() -> None:
    model = LanguageModel(new_gpt2(), rename={".transformer.h.0.mlp": "first"})
    assert model.first is model.transformer.h[0].mlp
    with pytest.raises(PathError):
        model.transformer.first


@pytest.mark.parametrize(
    "rename, message",
    [
        ({"mlp": "attn"}, "the name of another module in transformer.h.0"),
        ({"transformer": "lm_head"}, "the name of another module in the model"),
        ({"mlp": "output"}, "something that every module has here"),
        ({"mlp": ["feedforward", "half"]}, "something that every module has here"),
        ({"transformer": "trace"}, "something that every module has here"),
        ({"transformer": "config"}, "the name of an attribute in the model"),
        ({"attn": "mlp.first"}, "not on the way of its key"),
        ({"attn": "attn.first"}, "not on the way of its key"),
        ({"mlp": "a.b"}, "not on the way of its key"),
        ({"mlp": "2nd"}, "is not a name"),
        ({"transformer.h.*": "layer"}, r"matches 3 modules in the model \(transformer.h.0, "),
        ({torch.nn.Embedding: "table"}, r"matches 2 modules in transformer \(wte, wpe\)"),
        ({1: "second"}, "rename= has the key 1, and a key is the name of a module"),
        ({int: "second"}, "rename= has the key <class 'int'>"),
        ({"mlp": "part", "attn": "part"}, "stands for 'mlp' and for 'attn' in transformer.h.0"),
    ],
    ids=str,
)
def test_an_alias_that_would_not_work_is_refused(rename, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LanguageModel(new_gpt2(), rename=rename)


def test_a_name_as_its_own_alias_changes_nothing() -> None:
    model = LanguageModel(new_gpt2(), rename={"mlp": "mlp", "attn": "attn"})
    assert repr(model) == repr(model._module)
    assert model.transformer.h[0].mlp._path == "transformer.h.0.mlp"


@pytest.mark.parametrize(
    "rename, alias, path",
    [
        ({"*.h": "blocks"}, "blocks", "transformer.h"),
        ({"*.0.mlp": "first"}, "transformer.first", "transformer.h.0.mlp"),
        ({"transformer.*.1.attn": "second"}, "second", "transformer.h.1.attn"),
        ({torch.nn.ModuleList: "blocks"}, "transformer.blocks", "transformer.h"),
        ({GPT2Attention: "attention"}, "transformer.h.2.attention", "transformer.h.2.attn"),
        ({"1": "second"}, "transformer.h.second", "transformer.h.1"),
        ({"attn.c_proj": "attn.out"}, "transformer.h.1.attn.out", "transformer.h.1.attn.c_proj"),
        ({"h.0.attn.c_proj": "h.first"}, "transformer.h.first", "transformer.h.0.attn.c_proj"),
        ({".transformer.h": "transformer.blocks"}, "transformer.blocks", "transformer.h"),
        ({"transformer": "body", "body.h.0": "body.first"}, "body.first", "transformer.h.0"),
    ],
    ids=str,
)
def test_keys_that_are_patterns_and_aliases_further_down(rename, alias: str, path: str) -> None:
    model = NNsight(new_gpt2(), rename=rename)
    assert model.get(alias) is model.get(path)


def test_a_pattern_binds_only_where_it_matches_one_module() -> None:
    model = NNsight(new_gpt2(), rename={"*.act": "activation", ".*.h": "blocks"})
    assert model.transformer.h[0].activation is model.transformer.h[0].mlp.act
    assert model.blocks is model.transformer.h
    with pytest.raises(PathError, match="which rename= gives the name 'activation'"):
        model.transformer.activation


def test_keys_of_one_shared_module_may_have_one_alias() -> None:
    module = new_gpt2()
    module.tied = module.transformer.h[0].mlp
    model = NNsight(module, rename={"tied": "part", "transformer.h.0.mlp": "part"})
    assert model.part._module is module.tied


def test_an_alias_of_what_a_property_leads_to_is_no_other() -> None:
    # base_model of a model of transformers is a property
    model = NNsight(new_gpt2(), rename={"transformer": "base_model"})
    assert model.base_model is model.transformer


def test_a_cache_finds_an_item_by_its_alias() -> None:
    model = LanguageModel(
        new_gpt2(), tokenizer=models.tokenizer(), rename={"1": "second", "transformer.h": "layers"}
    )
    with model.trace(SHORT) as tracer:
        cache = tracer.cache()
    expected = cache["transformer.h.1"].output
    found = [
        cache["layers.second"], cache["model.transformer.h.second"], cache.model.layers["second"],
        cache.transformer.h.second,
    ]  # fmt: skip
    assert all(one.output is expected for one in found)
    assert model.layers["second"] is model.transformer.h[1]
