"""Many requests in one batch, each with a program of its own, are each what it is alone."""

from __future__ import annotations

import json

import torch

from .conftest import FACTS

GREEDY = {"temperature": 0.0, "ignore_eos": True}
FACT_LIST = json.loads((FACTS / "facts.json").read_text())
WORDINGS = ["{} is in the city of", "{} stands in", "{} can be found in the city of"]
PROMPTS = [WORDINGS[i % 3].format(FACT_LIST[i]["subject"]) for i in range(32)]
STEPS = [1 + number % 5 for number in range(32)]


def served(model, cases):
    """Serve some cases in one trace; each reads, edits or steers somewhere else."""
    logits = []
    hidden = []
    with model.trace(**GREEDY) as tracer:
        for number in cases:
            with tracer.invoke(PROMPTS[number], max_tokens=STEPS[number]):
                own = [number]
                for step in tracer.iter[:]:
                    layer = model.transformer.h[number % 6]
                    if number % 4 == 1:
                        layer.output[:, -1] *= 1 + number / 16
                    elif number % 4 == 2 and step == 0:
                        layer.mlp.output = layer.mlp.output * 0
                    elif number % 4 == 3:
                        layer.skip(layer.input)
                    own.append(model.transformer.ln_f.output[:, -1])
                    own.append(model.logits.output)
                own.append(tracer.result.outputs[0].token_ids)
                logits.append(own)
    return {own[0]: own[1:] for own in logits}


def test_32_programs_at_once_are_each_what_it_is_alone(gpt2):
    together = served(gpt2, range(32))
    assert sorted(together) == list(range(32))
    for number in range(32):
        (alone,) = served(gpt2, [number]).values()
        assert together[number][-1] == alone[-1], number
        assert len(alone) == 2 * STEPS[number] + 1
        for one, other in zip(together[number][:-1], alone[:-1], strict=True):
            assert one.shape == other.shape
            assert (one - other).abs().max() <= 1e-4 * max(1, other.abs().max()), number


def test_a_plain_request_is_as_before_after_one_that_writes(gpt2):
    prompt = PROMPTS[0]
    before = gpt2.trace(prompt, trace=False, max_tokens=6, logprobs=5, **GREEDY)
    for _ in range(2):
        with gpt2.trace(prompt, max_tokens=6, **GREEDY) as tracer:
            for _ in tracer.iter[:]:
                gpt2.transformer.h[1].output[:] = 0
        after = gpt2.trace(prompt, trace=False, max_tokens=6, logprobs=5, **GREEDY)
        assert after.outputs[0].token_ids == before.outputs[0].token_ids
        for one, other in zip(after.outputs[0].logprobs, before.outputs[0].logprobs, strict=True):
            assert one.keys() == other.keys()
            for token in one:
                assert abs(one[token].logprob - other[token].logprob) < 1e-4


def test_a_request_whose_prompt_is_cached_is_read_as_a_whole(gpt2):
    prompt = "The Colosseum is in the city of Rome, in Italy. The Louvre is in the city of"
    gpt2.trace(prompt, trace=False, max_tokens=1, **GREEDY)
    with gpt2.trace(prompt, **GREEDY):
        hidden = gpt2.transformer.h[0].output.save()
    assert hidden.shape[1] == len(gpt2.tokenizer.encode(prompt))


def test_invokes_have_sampling_parameters_of_their_own(gpt2):
    with gpt2.trace(temperature=0.0, max_tokens=2) as tracer:
        with tracer.invoke(PROMPTS[0]):
            first = tracer.result.save()
        with tracer.invoke(PROMPTS[1], max_tokens=4, temperature=0.8, seed=3):
            samples = [].save()
            with tracer.iter[:]:
                samples.append(gpt2.samples.output.item())
            second = tracer.result.save()
    assert len(first.outputs[0].token_ids) == 2
    assert len(second.outputs[0].token_ids) == len(samples) == 4
    assert second.outputs[0].token_ids == samples


def test_a_list_saved_around_the_invokes_grows_in_their_order(gpt2):
    with gpt2.trace(**GREEDY) as tracer:
        seen = [].save()
        for number in range(3):
            with tracer.invoke(PROMPTS[number]):
                seen.append((number, gpt2.transformer.h[0].output.shape[1]))
    lengths = [len(gpt2.tokenizer.encode(PROMPTS[number])) for number in range(3)]
    assert seen == list(enumerate(lengths))


def test_a_write_stays_among_the_tokens_of_its_request(gpt2):
    with gpt2.trace(**GREEDY) as tracer:
        with tracer.invoke(PROMPTS[0]):
            gpt2.transformer.h[2].output[:] = 1.0
            first = gpt2.transformer.h[3].input.save()
        with tracer.invoke(PROMPTS[1]):
            second = gpt2.transformer.h[3].input.save()
    with gpt2.trace(PROMPTS[1], **GREEDY):
        alone = gpt2.transformer.h[3].input.save()
    assert torch.equal(first, torch.ones_like(first))
    assert (second - alone).abs().max() <= 1e-4
