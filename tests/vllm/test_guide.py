"""What the guide shows of vLLM, and what a run elsewhere has: generate, interventions, a cache."""

from __future__ import annotations

import pytest
import torch

from nnsight_dsl import intervene
from nnsight_dsl.errors import OutOfOrderError
from nnsight_dsl.modeling.vllm import VLLM

from .conftest import ENGINE, FACTS

PROMPT = "The Eiffel Tower is in the city of"
GREEDY = {"temperature": 0.0, "ignore_eos": True}


def test_a_model_is_made_as_in_the_guide():
    model = VLLM(str(FACTS), tensor_parallel_size=1, gpu_memory_utilization=0.1, max_model_len=64)
    assert model.engine is None
    assert model.transformer.h[-2].mlp._path == "transformer.h.4.mlp"


def test_basic_tracing(gpt2):
    with gpt2.trace(PROMPT, temperature=0.0, top_p=1):
        logits = gpt2.logits.output.save()

    assert gpt2.tokenizer.decode(logits.argmax(dim=-1)) == " Paris"


def test_several_tokens(gpt2):
    with gpt2.trace("Hello", max_tokens=5, ignore_eos=True) as tracer:
        logits = list().save()  # noqa: C408

        with tracer.iter[:]:
            logits.append(gpt2.logits.output)

    assert [one.shape for one in logits] == [(1, 1084)] * 5


def test_interventions(gpt2, hf_gpt2):
    with gpt2.trace(PROMPT, temperature=0.0, top_p=1):
        gpt2.transformer.h[-2].mlp.output = torch.zeros_like(gpt2.transformer.h[-2].mlp.output)

        logits = gpt2.logits.output.save()

    with hf_gpt2.trace(PROMPT):
        hf_gpt2.transformer.h[-2].mlp.output = torch.zeros_like(
            hf_gpt2.transformer.h[-2].mlp.output
        )
        expected = hf_gpt2.lm_head.output[:, -1].save()
    assert (logits - expected).abs().max() <= 1e-4


def test_sampling(gpt2):
    with gpt2.trace(max_tokens=3) as tracer:
        with tracer.invoke("Hello", temperature=0.8, top_p=0.95, ignore_eos=True):
            samples = list().save()  # noqa: C408
            with tracer.iter[:]:
                samples.append(gpt2.samples.output.item())

    assert len(samples) == 3 and all(type(one) is int for one in samples)


def test_generate_makes_as_many_tokens_as_vllm_would(gpt2):
    with gpt2.generate(PROMPT, max_new_tokens=4, **GREEDY) as tracer:
        shapes = [].save()
        for _ in tracer.all():
            shapes.append(tuple(gpt2.transformer.h[3].output.shape))
        result = tracer.result.save()
    assert shapes == [(1, 8, 128), *[(1, 1, 128)] * 3]
    plain = gpt2.generate(PROMPT, trace=False, max_new_tokens=4, **GREEDY)
    assert plain.outputs[0].token_ids == result.outputs[0].token_ids
    # vLLM's own default, as with its LLM.generate
    assert len(gpt2.generate(PROMPT, trace=False, **GREEDY).outputs[0].token_ids) == 16
    assert len(gpt2(PROMPT, **GREEDY).outputs[0].token_ids) == 1


@intervene
def doubled(model, layer: int):
    model.transformer.h[layer].output[:, -1] *= 2
    return model.logits.output


def test_interventions_run_alone_in_a_block_and_beside_one(gpt2):
    alone = doubled.run(gpt2, PROMPT, layer=2)
    with gpt2.trace(PROMPT):
        called = doubled(gpt2, 2).save()
    with gpt2.trace(PROMPT, interventions=[doubled.bind(layer=2)]):
        beside = gpt2.logits.output.save()
    with gpt2.trace(PROMPT):
        plain = gpt2.logits.output.save()
    assert torch.equal(alone, called) and torch.equal(alone, beside)
    assert (alone - plain).abs().max() > 1e-2


def test_a_cache_of_everything_has_inputs_and_outputs(gpt2):
    with gpt2.trace(PROMPT) as tracer:
        cache = tracer.cache(include_inputs=True)
    with gpt2.trace(PROMPT):
        entered = gpt2.transformer.h[2].input.save()
        left = gpt2.transformer.h[2].output.save()
    assert torch.equal(cache["model.transformer.h.2"].output, left)
    assert torch.equal(cache["model.transformer.h.2"].inputs[0][0], entered)
    assert cache["model.transformer.ln_f"].output.shape == left.shape


def test_two_engines_serve_side_by_side(gpt2, llama):
    with gpt2.trace(PROMPT):
        first = gpt2.transformer.h[1].output.save()
    with llama.trace(PROMPT):
        second = llama.model.layers[1].output.save()
    with gpt2.trace(PROMPT):
        again = gpt2.transformer.h[1].output.save()
    assert first.shape[-1] == 128 and second.shape[-1] == 64
    assert torch.equal(first, again)


def test_a_client_without_an_engine_checks_programs_by_the_rules():
    model = VLLM(str(FACTS), **ENGINE)
    with pytest.raises(OutOfOrderError, match="NNS102"):
        with model.trace(PROMPT):
            late = model.transformer.h[2].output.save()
            early = model.transformer.h[1].output.save()
            inside = model.transformer.h[2].mlp.output.save()
    assert model.engine is None
