"""Adapters of PEFT: a module of transformers in a wrapper of another library."""

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch

from nnsight_dsl import BatchingError, LanguageModel, NotCalledError
from tests import models
from tests.models import (
    GPT2,
    LONG,
    SHORT,
    assert_near,
    assert_same,
    bare,
    encoded,
    hooked,
    new_gpt2,
    recorded,
)

LAYER = "base_model.model.transformer.h.1"
ADAPTED = f"{LAYER}.mlp.c_fc"
GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


def _adapted(config: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return peft.get_peft_model(new_gpt2(), config).eval()


def new_lora() -> Any:
    return _adapted(
        peft.LoraConfig(
            r=2,
            target_modules=["c_attn", "c_fc"],
            fan_in_fan_out=True,
            init_lora_weights=False,
            task_type="CAUSAL_LM",
        )
    )


def new_prompt_tuning() -> Any:
    return _adapted(peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))


def new_prefix_tuning() -> Any:
    return _adapted(peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))


def new_ia3() -> Any:
    return _adapted(
        peft.IA3Config(
            task_type="CAUSAL_LM",
            target_modules=["c_attn", "mlp.c_proj"],
            feedforward_modules=["mlp.c_proj"],
            fan_in_fan_out=True,
            init_ia3_weights=False,
        )
    )


def _wrapped(module: Any) -> LanguageModel:
    return LanguageModel(module, tokenizer=models.tokenizer())


@pytest.fixture
def module() -> Any:
    return new_lora()


@pytest.fixture
def model() -> LanguageModel:
    return _wrapped(new_lora())


def _logits(module: Any, prompt: str) -> torch.Tensor:
    logits: torch.Tensor = module(**encoded(prompt)).logits
    return logits


def test_both_matrices_and_the_layer_below_are_read(module: Any, model: LanguageModel) -> None:
    parts = ["base_layer", "lora_A.default", "lora_B.default"]
    paths = [*(f"{ADAPTED}.{part}" for part in parts), ADAPTED]
    with recorded(module, paths) as seen:
        expected = _logits(module, LONG)
    with model.trace(LONG):
        adapted = model.base_model.model.transformer.h[1].mlp.c_fc
        base = adapted.base_layer.output.save()
        down = adapted.lora_A.default.output.save()
        up = adapted.lora_B["default"].output.save()
        result = adapted.output.save()
        logits = model.output.logits.save()
    assert_same([base, down, up, result], [seen[path][0] for path in paths])
    assert down.shape[-1] == 2
    assert_same(logits, expected)
    assert not torch.equal(logits, models.logits_of(GPT2, LONG))


@pytest.mark.parametrize("part", ["lora_A.default", "lora_B.default", "base_layer"])
def test_a_part_of_an_adapter_is_replaced(module: Any, model: LanguageModel, part: str) -> None:
    path = f"{ADAPTED}.{part}"
    with hooked(module, {path: lambda output: output * -3}):
        expected = _logits(module, LONG)
    with model.trace(LONG):
        model.get(path).output = model.get(path).output * -3
        logits = model.output.logits.save()
    assert_same(logits, expected)
    assert not torch.equal(logits, _logits(module, LONG))


def test_an_adapter_is_ablated_for_one_invoke(module: Any, model: LanguageModel) -> None:
    with hooked(module, {f"{ADAPTED}.lora_B.default": torch.zeros_like}):
        ablated = _logits(module, SHORT)
    with model.trace() as tracer:
        with tracer.invoke(SHORT):
            model.get(ADAPTED).lora_B.default.output[:] = 0
            short = model.output.logits.save()
        with tracer.invoke(LONG):
            long = model.output.logits.save()
    assert_near(short[:, -2:], ablated)
    assert_near(long, _logits(module, LONG))


def test_a_disabled_adapter_is_not_called(model: LanguageModel) -> None:
    with model.disable_adapter():
        with model.trace(LONG):
            result = model.get(ADAPTED).output.save()
            logits = model.output.logits.save()
        with pytest.raises(NotCalledError, match="lora_A"):
            with model.trace(LONG):
                down = model.get(ADAPTED).lora_A.default.output.save()
    assert_same(result, models.output_of(GPT2, LONG, "transformer.h.1.mlp.c_fc"))
    assert_same(logits, models.logits_of(GPT2, LONG))
    with model.trace(LONG):
        down = model.get(ADAPTED).lora_A.default.output.save()
    assert down.shape == (1, 8, 2)


def test_the_active_one_of_two_adapters_is_read(module: Any, model: LanguageModel) -> None:
    for one in (module, model):
        with torch.random.fork_rng():
            torch.manual_seed(6)
            one.add_adapter(
                "other",
                peft.LoraConfig(
                    r=3, target_modules=["c_fc"], fan_in_fan_out=True, init_lora_weights=False
                ),
            )
        one.set_adapter("other")
    with model.trace(LONG):
        down = model.get(ADAPTED).lora_A["other"].output.save()
        logits = model.output.logits.save()
    assert down.shape[-1] == 3
    assert_same(logits, _logits(module, LONG))
    with pytest.raises(NotCalledError):
        with model.trace(LONG):
            down = model.get(ADAPTED).lora_A["default"].output.save()


def test_a_merged_adapter_is_part_of_the_layer_below(module: Any, model: LanguageModel) -> None:
    plain = _logits(module, LONG)
    module.merge_adapter()
    expected = _logits(module, LONG)
    model.merge_adapter()
    with model.trace(LONG):
        result = model.get(ADAPTED).output.save()
        logits = model.output.logits.save()
    assert_same(logits, expected)
    assert_near(logits, plain)
    model.unmerge_adapter()
    with model.trace(LONG):
        down = model.get(ADAPTED).lora_A.default.output.save()


def test_envoys_follow_an_unloaded_adapter(module: Any, model: LanguageModel) -> None:
    adapted = model.get(ADAPTED)
    merged = model.merge_and_unload()
    assert type(merged) is type(new_gpt2())
    again = _wrapped(merged)
    with again.trace(LONG):
        logits = again.output.logits.save()
    assert_near(logits, _logits(module, LONG))
    assert model.get(ADAPTED) is adapted
    assert adapted._module is merged.transformer.h[1].mlp.c_fc


def test_the_model_inside_is_reached_by_the_attributes_that_peft_forwards(
    module: Any, model: LanguageModel
) -> None:
    with recorded(module, [LAYER]) as seen:
        _logits(module, LONG)
    with model.trace(LONG):
        short = model.transformer.h[1].output.save()
    assert_same(short, seen[LAYER][0])
    assert model.transformer.h[1] is model.get(LAYER)
    assert model.active_adapter == "default"
    assert model.get(ADAPTED).scaling == {"default": 4.0}


@pytest.mark.parametrize("new", [new_lora, new_ia3, new_prefix_tuning])
def test_unequal_prompts_get_what_they_get_alone(new: Callable[[], Any]) -> None:
    # position ids reach the model through the adapter's forward, which takes anything
    model, module = _wrapped(new()), new()
    with model.trace() as tracer:
        with tracer.invoke(SHORT):
            short = model.output.logits.save()
        with tracer.invoke(LONG):
            long = model.output.logits.save()
    assert_near(short[:, -2:], _logits(module, SHORT))
    assert_near(long, _logits(module, LONG))


def test_learned_tokens_before_unequal_prompts_are_refused() -> None:
    model, module = _wrapped(new_prompt_tuning()), new_prompt_tuning()
    with pytest.raises(BatchingError, match="learned tokens before the prompt"):
        with model.trace([SHORT, LONG]):
            logits = model.output.logits.save()
    with model.trace() as tracer:
        with tracer.invoke(SHORT):
            short = model.output.logits.save()
        with tracer.invoke("a bird"):
            other = model.output.logits.save()
    assert short.shape[1] == 5
    assert_near(short, _logits(module, SHORT))
    assert_near(other, _logits(module, "a bird"))


# what PEFT says about position ids, which transformers gives it
@pytest.mark.filterwarnings("ignore:Position ids are not supported")
@pytest.mark.parametrize(
    "new", [new_lora, new_ia3, new_prefix_tuning, new_prompt_tuning], ids=lambda new: new.__name__
)
def test_the_steps_of_a_generation_are_calls_of_the_model_inside(new: Callable[[], Any]) -> None:
    # PEFT generates by the model's own generate: its own forward is never called
    model, module = _wrapped(new()), new()
    inside = next(path for path, _ in module.named_modules() if path.endswith("lm_head"))
    with recorded(module, [inside]) as seen:
        expected = module.generate(**encoded(LONG), **GREEDY)
    with model.generate(LONG, **GREEDY) as tracer:
        scores = [].save()
        for _ in tracer.iter[:]:
            scores.append(model.get(inside).output)
        tokens = tracer.result.save()
    assert_same(tokens, expected)
    assert_same(list(scores), seen[inside])
    assert len(scores) == 4


def test_an_edit_of_one_step_and_one_invoke(module: Any, model: LanguageModel) -> None:
    head = "base_model.model.lm_head"
    with model.generate(**GREEDY) as tracer:
        with tracer.invoke(SHORT):
            for _ in tracer.iter[1:3]:
                model.get(head).output[..., 7] = 1e4
            short = tracer.result.save()
        with tracer.invoke(LONG):
            long = tracer.result.save()
    calls = []

    def edit(output: torch.Tensor) -> None:
        calls.append(1)
        if len(calls) in (2, 3):
            output[..., 7] = 1e4

    with hooked(module, {head: edit}):
        expected = module.generate(**encoded(SHORT), **GREEDY)
    assert short[0, -4:].tolist() == expected[0, -4:].tolist()
    assert_same(long, module.generate(**encoded(LONG), **GREEDY))


@pytest.mark.parametrize("new", [new_lora, new_prefix_tuning], ids=lambda new: new.__name__)
def test_what_peft_lends_the_model_inside_is_taken_back(new: Callable[[], Any]) -> None:
    module = new()
    model = _wrapped(module)
    inside = next(path for path, _ in module.named_modules() if path.endswith("lm_head"))

    def lent() -> Any:
        return module.base_model.prepare_inputs_for_generation

    expected = module.get_base_model().generate(**encoded(LONG), **GREEDY)
    for _ in range(2):
        before = lent()
        with model.generate(LONG, **GREEDY) as tracer:
            scores = model.get(inside).output.save()
            tracer.stop()
        assert lent() == before
        with pytest.raises(ZeroDivisionError):
            with model.generate(LONG, **GREEDY):
                scores = model.get(inside).output
                1 / 0
        assert lent() == before
        assert_same(module.get_base_model().generate(**encoded(LONG), **GREEDY), expected)
        # after a generation that goes to its end, PEFT leaves the method it has taken back
        with model.generate(LONG, **GREEDY) as tracer:
            tokens = tracer.result.save()


def test_a_gradient_of_an_adapters_output(module: Any, model: LanguageModel) -> None:
    path = f"{ADAPTED}.lora_A.default"
    with recorded(module, [path]) as seen:
        loss = _logits(module, LONG).pow(2).sum()
    expected = torch.autograd.grad(loss, seen[path][0])[0]
    with model.trace(LONG):
        down = model.get(path).output
        loss = model.output.logits.pow(2).sum()
        with loss.backward():
            grad = down.grad.save()
    assert_near(grad, expected)


def test_a_scan_of_an_adapted_model(model: LanguageModel) -> None:
    with model.scan(LONG):
        down = model.get(ADAPTED).lora_A.default.output.shape
    assert down == (1, 8, 2)


def test_a_lasting_edit_of_an_adapter(module: Any, model: LanguageModel) -> None:
    with hooked(module, {f"{ADAPTED}.lora_B.default": torch.zeros_like}):
        expected = _logits(module, LONG)
    with model.edit() as edited:
        model.get(ADAPTED).lora_B.default.output[:] = 0
    with edited.trace(LONG):
        logits = edited.output.logits.save()
    assert_same(logits, expected)
    assert_same(_logits(edited, LONG), expected)
    assert_same(_logits(model, LONG), _logits(module, LONG))


def test_nothing_is_left_on_an_adapted_model(model: LanguageModel) -> None:
    def state() -> Any:
        return {
            path: (type(part), list(part.__dict__), dict(part._forward_hooks))
            for path, part in model.named_modules()
        }

    _logits(model, LONG)
    before = state()
    with model.trace(LONG):
        down = model.get(ADAPTED).lora_A.default.output.save()
        model.get(ADAPTED).output = model.get(ADAPTED).output * 2
    assert state() == before
    assert_same(_logits(model, LONG), _logits(new_lora(), LONG))
    assert_same(bare(GPT2)(**encoded(LONG)).logits, models.logits_of(GPT2, LONG))
