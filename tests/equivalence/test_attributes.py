"""What an envoy passes on to its module, names that are ours and the module's, and re-wrapping."""

from pathlib import Path

import pytest
import torch
from torch import nn

from nnsight_dsl import Envoy, LanguageModel, NNsight, NotRunningError, PathError
from tests import models
from tests.models import (
    BERT,
    GPT2,
    LONG,
    assert_same,
    bare,
    encoded,
    new_bert,
    new_gpt2,
    recorded,
)


@pytest.fixture
def module() -> nn.Module:
    return new_gpt2()


@pytest.fixture
def model(module: nn.Module) -> LanguageModel:
    return LanguageModel(module, tokenizer=models.tokenizer())


# passing on


def test_what_a_module_knows_of_itself(model: LanguageModel, module: nn.Module) -> None:
    assert list(map(id, model.parameters())) == list(map(id, module.parameters()))
    assert [name for name, _ in model.named_modules()] == [n for n, _ in module.named_modules()]
    assert model.state_dict().keys() == module.state_dict().keys()
    assert model.transformer.h[0].attn.c_attn.weight is module.transformer.h[0].attn.c_attn.weight
    assert model.transformer.h[0].attn.head_dim == 8
    assert model.config is module.config
    assert model.training is False
    assert model.num_parameters() == module.num_parameters()
    assert list(model.children()) == list(module.children())
    assert model.get_submodule("transformer.h.1") is module.transformer.h[1]
    assert list(NNsight(nn.ModuleDict({"a": nn.Linear(2, 2)})).keys()) == ["a"]
    assert hasattr(model, "lm_head")
    assert not hasattr(model, "nothing")


def test_the_names_of_a_module_are_listed(model: LanguageModel) -> None:
    assert {"transformer", "lm_head", "output", "trace", "config"} <= set(dir(model))
    assert {"attn", "mlp", "skip"} <= set(dir(model.transformer.h[0]))


def test_an_attribute_is_set_and_deleted_on_the_module(model, module: nn.Module) -> None:
    model.transformer.note = 3
    assert module.transformer.note == 3
    del model.transformer.note
    assert not hasattr(module.transformer, "note")
    with pytest.raises(AttributeError):
        del model.transformer.note
    model.transformer.extra = nn.Linear(2, 2)
    assert module.transformer.extra is model.transformer.extra._module
    del model.transformer.extra
    with pytest.raises(PathError):
        model.transformer.extra


@pytest.mark.parametrize(
    "change, dtype",
    [
        (lambda one: one.half(), torch.float16),
        (lambda one: one.bfloat16(), torch.bfloat16),
        (lambda one: one.double(), torch.float64),
        (lambda one: one.double().float(), torch.float32),
        (lambda one: one.to(torch.float64), torch.float64),
        (lambda one: one.to("cpu", torch.bfloat16), torch.bfloat16),
        (lambda one: one.cpu(), torch.float32),
        (lambda one: one.type(torch.float64), torch.float64),
    ],
    ids=["half", "bfloat16", "double", "float", "to", "to device", "cpu", "type"],
)
def test_a_conversion_is_of_the_module_and_returns_the_envoy(
    model: LanguageModel, module: nn.Module, change, dtype: torch.dtype
) -> None:
    layer = model.transformer.h[1].mlp
    assert change(layer) is layer
    assert module.transformer.h[1].mlp.c_fc.weight.dtype == dtype
    assert module.transformer.h[0].mlp.c_fc.weight.dtype == torch.float32
    assert change(model) is model
    assert {parameter.dtype for parameter in module.parameters()} == {dtype}
    plain = change(new_gpt2())
    with model.trace(LONG):
        logits = model.output.logits.save()
    assert_same(logits, plain(**encoded(LONG)).logits)


def test_a_gpu_that_is_not_there_is_torchs_error(model: LanguageModel) -> None:
    if torch.cuda.is_available():
        assert model.cuda() is model
        assert model.device.type == "cuda"
        return
    with pytest.raises((AssertionError, RuntimeError)):
        model.cuda()


def test_training_mode_is_the_modules(model: LanguageModel, module: nn.Module) -> None:
    assert model.train() is model
    assert module.training
    assert module.transformer.h[0].training
    assert model.transformer.h[0].eval() is model.transformer.h[0]
    assert not module.transformer.h[0].attn.training
    assert model.train(False) is model
    assert not module.training
    assert model.requires_grad_(False) is model
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_dropout_is_drawn_in_training_mode(model: LanguageModel) -> None:
    plain = new_gpt2().train()
    model.train()
    torch.manual_seed(3)
    expected = plain(**encoded(LONG)).logits
    torch.manual_seed(3)
    with model.trace(LONG):
        logits = model.output.logits.save()
    assert_same(logits, expected)
    assert not torch.equal(logits, models.logits_of(GPT2, LONG))


def test_a_change_of_a_model_that_is_not_loaded_loads_it(tmp_path: Path) -> None:
    new_gpt2().save_pretrained(tmp_path)
    models.tokenizer().save_pretrained(tmp_path)
    model = LanguageModel(str(tmp_path))
    layer = model.transformer.h[1]
    assert model.device.type == "meta"
    assert model.half() is model
    assert model.device.type == "cpu"
    with model.trace(LONG):
        hidden = layer.output.save()
    assert hidden.dtype == torch.float16
    assert layer.mlp.c_fc.weight.dtype == torch.float16


def test_changes_are_made_inside_a_block(model: LanguageModel, module: nn.Module) -> None:
    with model.trace(LONG):
        model.transformer.h[1].train()
        hidden = model.transformer.h[1].output.save()
    assert module.transformer.h[1].training
    assert not module.transformer.h[0].training


def test_a_hook_is_registered_through_an_envoy(model: LanguageModel) -> None:
    seen = []
    handle = model.transformer.h[1].register_forward_hook(lambda m, a, output: seen.append(output))
    with model.trace(LONG):
        hidden = model.transformer.h[1].output.save()
    handle.remove()
    assert_same(seen, [hidden])


def test_modules_behind_an_attribute_are_mirrored(model: LanguageModel) -> None:
    # `base_model` is a property of transformers, no submodule
    assert model.base_model is model.transformer
    with model.trace(LONG):
        hidden = model.base_model.h[1].output.save()
    assert_same(hidden, models.output_of(GPT2, LONG, "transformer.h.1"))


def test_a_module_of_another_model_behind_an_attribute_is_handed_out() -> None:
    class Teacher:
        def __init__(self, module: nn.Module) -> None:
            self.module = module

    holder = nn.Linear(2, 2)
    holder.teacher = Teacher(nn.Linear(2, 2))
    assert isinstance(NNsight(holder).teacher.module, nn.Linear)


def test_a_call_outside_of_a_block_is_a_call_of_the_module(model: LanguageModel) -> None:
    assert_same(model(**encoded(LONG)).logits, models.logits_of(GPT2, LONG))
    hidden = models.output_of(GPT2, LONG, "transformer.h.2")
    assert_same(model.transformer.ln_f(hidden), bare(GPT2).transformer.ln_f(hidden))


# names that are ours and the module's

OURS = (
    "all device devices edit get inputs input iter next output parent path root scan session skip "
    "source trace"
).split()
FREE = "save stop tokenizer generate generator result".split()


class Shadowing(nn.Module):
    """Its submodules are named like what an envoy has."""

    def __init__(self) -> None:
        super().__init__()
        for name in (*OURS, *FREE):
            setattr(self, name, nn.Linear(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self._modules.values():
            x = module(x)
        return x


@pytest.fixture
def shadowing() -> NNsight:
    with torch.random.fork_rng():
        torch.manual_seed(9)
        return NNsight(nn.Sequential(Shadowing(), nn.ReLU()))


X = torch.linspace(-1, 1, 6).reshape(2, 3)


@pytest.mark.parametrize("name", [*OURS, *FREE])
def test_the_submodule_is_reached_by_brackets_and_by_path(shadowing: NNsight, name: str) -> None:
    with recorded(shadowing._module, [f"0.{name}", "0"]) as seen:
        shadowing._module(X)
    with shadowing.trace(X) as tracer:
        by_bracket = shadowing[0][name].output.save()
        value = shadowing[0].output.save()
    with shadowing.trace(X) as tracer:
        by_path = shadowing.get(f"0.{name}").output.save()
    assert_same([by_bracket, by_path], seen[f"0.{name}"] * 2)
    assert_same(value, seen["0"][0])


@pytest.mark.parametrize("name", FREE)
def test_what_is_no_name_of_every_envoy_is_the_submodule(shadowing: NNsight, name: str) -> None:
    with recorded(shadowing._module, [f"0.{name}"]) as seen:
        shadowing._module(X)
    with shadowing.trace(X):
        hidden = getattr(shadowing[0], name).output.save()
    assert_same(hidden, seen[f"0.{name}"][0])


def test_bert_has_a_submodule_output_and_an_output() -> None:
    model = models.wrapped(BERT)
    paths = ["bert.encoder.layer.0.output.dense", "bert.encoder.layer.0.output"]
    paths.append("bert.encoder.layer.0")
    with recorded(bare(BERT), paths) as seen:
        bare(BERT)(**encoded(LONG))
    with model.trace(LONG):
        dense = model.bert.encoder.layer[0]["output"].dense.output.save()
        inner = model.bert.encoder.layer[0]["output"].output.save()
        value = model.bert.encoder.layer[0].output.save()
    assert_same([dense, inner, value], [seen[path][0] for path in paths])


def test_a_submodule_named_like_a_port_is_edited_by_brackets() -> None:
    model = LanguageModel(new_bert(), tokenizer=models.tokenizer())
    path = "bert.encoder.layer.0.output.dense"
    with models.hooked(bare(BERT), {path: torch.zeros_like}):
        expected = bare(BERT)(**encoded(LONG)).logits
    with model.trace(LONG):
        model.bert.encoder.layer[0]["output"].dense.output[:] = 0
        logits = model.output.logits.save()
    assert_same(logits, expected)


def test_the_error_in_a_block_says_how_to_reach_the_submodule() -> None:
    model = models.wrapped(BERT)
    with pytest.raises(AttributeError, match="no attribute 'dense'") as caught:
        with model.trace(LONG):
            dense = model.bert.encoder.layer[0].output.dense.output.save()
    (note,) = caught.value.__notes__
    assert note == (
        "bert.encoder.layer.0 has a submodule named 'output', and .output is its value; "
        "write ['output'] in place of .output for the submodule"
    )


def test_the_error_outside_of_a_run_says_it_too() -> None:
    with pytest.raises(NotRunningError) as caught:
        models.wrapped(BERT).bert.encoder.layer[0].output.dense
    (note,) = caught.value.__notes__
    assert note.startswith("bert.encoder.layer.0 has a submodule named 'output'")
    with pytest.raises(NotRunningError) as caught:
        models.wrapped(GPT2).transformer.h[0].output
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("name", ["next", "skip", "iter", "device", "all", "get"])
def test_the_error_at_a_method_says_how_to_reach_the_submodule(
    shadowing: NNsight, name: str
) -> None:
    with pytest.raises(AttributeError) as caught:
        with shadowing.trace(X):
            hidden = getattr(shadowing[0], name).output.save()
    assert any(
        f"0 has a submodule named {name!r}" in note and f"write [{name!r}]" in note
        for note in caught.value.__notes__
    )


def test_an_error_that_has_nothing_to_do_with_it_says_nothing() -> None:
    with pytest.raises(AttributeError) as caught:
        with models.wrapped(BERT).trace(LONG):
            models.wrapped(BERT).bert.encoder.layer[0].output.nothing
    assert not getattr(caught.value, "__notes__", None)


# re-wrapping


def test_the_module_is_handed_out(model: LanguageModel, module: nn.Module) -> None:
    assert model.module is module
    assert model.transformer.h[0].module is module.transformer.h[0]


def test_a_submodule_named_module_is_one() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.module(x)

    model = NNsight(Wrapper())
    with model.trace(X):
        hidden = model.module.output.save()
    assert_same(hidden, model._module.module(X))


def _traced(model: NNsight) -> tuple[torch.Tensor, torch.Tensor]:
    with model.trace(**encoded(LONG)):
        model.transformer.h[0].output = model.transformer.h[0].output * 2
        hidden = model.transformer.h[1].output.save()
        logits = model.output.logits.save()
    return hidden, logits


@pytest.mark.parametrize(
    "again",
    [
        lambda model: NNsight(model.module),
        lambda model: NNsight(model),
        lambda model: NNsight(NNsight(model)),
        lambda model: LanguageModel(model),
        lambda model: LanguageModel(model.module, tokenizer=model.tokenizer),
        lambda model: LanguageModel(NNsight(model.module)),
    ],
    ids=["module", "wrapper", "twice", "language model", "with tokenizer", "of NNsight"],
)
def test_a_model_that_is_wrapped_again_is_the_same_model(model: LanguageModel, again) -> None:
    with models.hooked(bare(GPT2), {"transformer.h.0": lambda output: output * 2}):
        with recorded(bare(GPT2), ["transformer.h.1"]) as seen:
            expected = bare(GPT2)(**encoded(LONG)).logits
    other = again(model)
    assert other.module is model.module
    for one in (model, other, model, other):
        hidden, logits = _traced(one)
        assert_same(hidden, seen["transformer.h.1"][0])
        assert_same(logits, expected)
    assert_same(model(**encoded(LONG)).logits, models.logits_of(GPT2, LONG))


def test_the_tokenizer_goes_along(model: LanguageModel) -> None:
    with LanguageModel(model).trace(LONG) as tracer:
        logits = tracer.result.logits.save()
    assert_same(logits, models.logits_of(GPT2, LONG))


def test_a_part_of_a_model_is_a_model(model: LanguageModel) -> None:
    part = NNsight(model.transformer.h[1])
    x = models.output_of(GPT2, LONG, "transformer.h.0")
    with recorded(bare(GPT2).transformer.h[1], ["mlp"]) as seen:
        expected = bare(GPT2).transformer.h[1](x)
    with part.trace(x):
        hidden = part.mlp.output.save()
        output = part.output.save()
    assert_same([hidden, output], [seen["mlp"][0], expected])
    with model.trace(LONG):
        # envoys of the whole model know nothing of the part's wrapper
        whole = model.transformer.h[1].mlp.output.save()
    assert_same(whole, models.output_of(GPT2, LONG, "transformer.h.1.mlp"))


def test_a_model_that_is_not_loaded_is_loaded_to_be_wrapped_again(tmp_path: Path) -> None:
    new_gpt2().save_pretrained(tmp_path)
    models.tokenizer().save_pretrained(tmp_path)
    model = LanguageModel(str(tmp_path))
    other = NNsight(model)
    assert other.device == model.device == torch.device("cpu")
    assert_same(_traced(other)[1], _traced(model)[1])


def test_edits_of_one_wrapper_are_none_of_another(model: LanguageModel) -> None:
    other = NNsight(model)
    with model.edit(inplace=True):
        model.transformer.h[1].output[:] = 0
    with other.trace(**encoded(LONG)):
        logits = other.output.logits.save()
    assert_same(logits, models.logits_of(GPT2, LONG))
    with model.trace(LONG):
        hidden = model.transformer.h[1].output.save()
    assert not hidden.any()


@pytest.mark.parametrize("given", [3, None, nn.Linear, {"a": nn.Linear(2, 2)}], ids=repr)
def test_what_is_no_module_is_refused(given) -> None:
    with pytest.raises(TypeError, match=r"not a torch\.nn\.Module; give the module itself"):
        NNsight(given)
    with pytest.raises(TypeError, match=r"not a torch\.nn\.Module"):
        LanguageModel(given)


def test_an_envoy_knows_its_place():
    model = NNsight(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    assert (model.path, model[0].path) == ("model", "model.0")
    assert model[0].parent is model and model.parent is None
    assert model[1].root is model and model[1].devices == set()
    assert model.devices == {torch.device("cpu")}


def test_get_leads_to_parameters_and_in_a_block_to_ports():
    model = NNsight(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))
    x, path, options = torch.ones(1, 3), "0.output", {"key": "value"}
    assert model.get("0.weight") is model._module[0].weight
    for _ in range(3):
        with model.trace(x):
            first = model.get(path).save()
            found = options.get("key")
            second = model.get("1.output").save()
    assert torch.equal(first, model._module[0](x))
    assert torch.equal(second, model._module(x))
    with pytest.raises(PathError, match="no module or attribute 'wieght'"):
        model.get("0.wieght")


class Doubling(Envoy):
    @property
    def doubled(self):
        return self.output * 2


def test_an_envoy_of_ones_own_class_is_read_and_edited_as_any():
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    model = NNsight(module, envoys={nn.Linear: Doubling})
    x = torch.ones(1, 3)
    for _ in range(2):
        with model.trace(x):
            doubled = model[0].doubled.save()
            model[2].output[:] = 1
            output = model.output.save()
    assert torch.equal(doubled, module[0](x) * 2)
    assert torch.equal(output, torch.ones(1, 2))
