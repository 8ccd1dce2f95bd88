"""GPT-2 in an engine is what it is in transformers, at every location and after every edit."""

from __future__ import annotations

import pytest
import torch

from nnsight_dsl import intervene, sweep

PROMPT = "The Eiffel Tower is in the city of"
OTHER = "The Colosseum is located in the city of"
GREEDY = {"temperature": 0.0}


def agree(one, other, within=1e-4):
    assert one.shape == other.shape
    assert (one - other).abs().max() <= within


def plain_logits(model, prompt=PROMPT):
    with model.trace(prompt, **GREEDY):
        logits = model.logits.output.save()
    return logits


def hf_logits(model, prompt=PROMPT):
    with model.trace(prompt):
        logits = model.lm_head.output[:, -1].save()
    return logits


def read_all(model, trace):
    with trace:
        embedded = model.transformer.wte.output.save()
        normed_input = model.transformer.h[2].ln_1.input.save()
        normed = model.transformer.h[2].ln_1.output.save()
        projected = model.transformer.h[2].attn.c_attn.output.save()
        inner = model.transformer.h[2].mlp.c_fc.output.save()
        mlp = model.transformer.h[2].mlp.output.save()
        hidden = model.transformer.h[2].output.save()
        last_input = model.transformer.h[5].input.save()
        final = model.transformer.ln_f.output.save()
    return embedded, normed_input, normed, projected, inner, mlp, hidden, last_input, final


def test_reads_are_those_of_transformers(gpt2, hf_gpt2):
    read = read_all(gpt2, gpt2.trace(PROMPT))
    expected = read_all(hf_gpt2, hf_gpt2.trace(PROMPT))
    for one, other in zip(read, expected, strict=True):
        agree(one, other)


def test_logits_and_samples_are_read_with_and_without_their_port(gpt2, hf_gpt2):
    with gpt2.trace(PROMPT, **GREEDY) as tracer:
        logits = gpt2.logits.output.save()
        sample = gpt2.samples.output.save()
        result = tracer.result.save()
    with gpt2.trace(PROMPT, **GREEDY):
        same = gpt2.logits.save()
        token = gpt2.samples.item()
        token = token.save()
    agree(logits, hf_logits(hf_gpt2))
    assert torch.equal(logits, same) and type(same) is torch.Tensor
    assert sample.item() == token == logits.argmax().item()
    assert result.outputs[0].token_ids == [token]
    assert gpt2.tokenizer.decode(logits.argmax(dim=-1)) == " Paris"


def test_an_edit_in_place_reaches_the_logits(gpt2, hf_gpt2):
    with gpt2.trace(PROMPT):
        gpt2.transformer.h[2].output[:, -1] *= 3
        logits = gpt2.logits.output.save()
    with hf_gpt2.trace(PROMPT):
        hf_gpt2.transformer.h[2].output[:, -1] *= 3
        expected = hf_gpt2.lm_head.output[:, -1].save()
    agree(logits, expected)
    assert (logits - plain_logits(gpt2)).abs().max() > 0.1


def test_a_replacement_reaches_the_logits(gpt2, hf_gpt2):
    with gpt2.trace(PROMPT):
        gpt2.transformer.h[-2].mlp.output = torch.zeros_like(gpt2.transformer.h[-2].mlp.output)
        logits = gpt2.logits.output.save()
    with hf_gpt2.trace(PROMPT):
        mlp = hf_gpt2.transformer.h[-2].mlp
        mlp.output = torch.zeros_like(mlp.output)
        expected = hf_gpt2.lm_head.output[:, -1].save()
    agree(logits, expected)


def test_an_input_is_edited_and_replaced(gpt2, hf_gpt2):
    with gpt2.trace(PROMPT):
        gpt2.transformer.h[1].input[:, 2] = 0
        gpt2.transformer.h[3].mlp.input = gpt2.transformer.h[3].mlp.input * 2
        logits = gpt2.logits.output.save()
    with hf_gpt2.trace(PROMPT):
        hf_gpt2.transformer.h[1].input[:, 2] = 0
        hf_gpt2.transformer.h[3].mlp.input = hf_gpt2.transformer.h[3].mlp.input * 2
        expected = hf_gpt2.lm_head.output[:, -1].save()
    agree(logits, expected)


def test_an_edit_of_a_tensor_that_the_block_goes_on_with_shows_in_it(gpt2, hf_gpt2):
    # ln_2 and the residual are given the same tensor
    with gpt2.trace(PROMPT):
        gpt2.transformer.h[1].ln_2.input[:, -1] = 0.5
        logits = gpt2.logits.output.save()
    with hf_gpt2.trace(PROMPT):
        hf_gpt2.transformer.h[1].ln_2.input[:, -1] = 0.5
        expected = hf_gpt2.lm_head.output[:, -1].save()
    agree(logits, expected)


def test_a_skipped_module_gives_what_the_block_says(gpt2, hf_gpt2):
    with gpt2.trace(PROMPT):
        gpt2.transformer.h[2].skip(gpt2.transformer.h[2].input)
        logits = gpt2.logits.output.save()
    with hf_gpt2.trace(PROMPT):
        hf_gpt2.transformer.h[2].skip(hf_gpt2.transformer.h[2].input)
        expected = hf_gpt2.lm_head.output[:, -1].save()
    agree(logits, expected)


def test_written_logits_and_samples_are_the_ones_that_count(gpt2):
    with gpt2.trace(PROMPT, max_tokens=2, **GREEDY) as tracer:
        gpt2.logits.output[:, 300] = 1000.0
        first = tracer.result.save()
    assert first.outputs[0].token_ids[0] == 300
    with gpt2.trace(PROMPT, **GREEDY) as tracer:
        gpt2.logits = gpt2.logits * 0 + torch.eye(1084)[301] * 5
        second = tracer.result.save()
    assert second.outputs[0].token_ids == [301]
    with gpt2.trace(PROMPT, max_tokens=3, **GREEDY) as tracer:
        gpt2.samples.output = torch.full_like(gpt2.samples.output, 302)
        third = tracer.result.save()
    assert third.outputs[0].token_ids[0] == 302
    assert third.outputs[0].token_ids[1:] != first.outputs[0].token_ids[1:]


def test_each_step_is_read_and_edited_by_itself(gpt2, hf_gpt2):
    with gpt2.trace(OTHER, max_tokens=5, **GREEDY) as tracer:
        seen = [].save()
        logits = [].save()
        for step in tracer.iter[:]:
            if step == 2:
                gpt2.transformer.h[3].output[:, -1] *= -1
            seen.append(gpt2.transformer.h[4].output.shape[1])
            logits.append(gpt2.logits.output)
    with hf_gpt2.generate(OTHER, max_new_tokens=5, do_sample=False) as tracer:
        expected = [].save()
        for step in tracer.iter[:]:
            if step == 2:
                hf_gpt2.transformer.h[3].output[:, -1] *= -1
            expected.append(hf_gpt2.lm_head.output[:, -1])
    assert seen == [8, 1, 1, 1, 1] or seen[1:] == [1, 1, 1, 1]
    for one, other in zip(logits, expected, strict=True):
        agree(one, other)


def test_values_of_the_block_travel_and_lists_around_it_grow(gpt2):
    outside: list[torch.Size] = []
    direction = torch.linspace(-1, 1, 128)

    def scaled(value, by):
        return value + by * direction

    with gpt2.trace(PROMPT):
        gpt2.transformer.h[1].output = scaled(gpt2.transformer.h[1].output, 0.5)
        outside.append(gpt2.transformer.h[2].output.shape)
        logits = gpt2.logits.output.save()
    assert outside == [(1, 8, 128)]
    assert (logits - plain_logits(gpt2)).abs().max() > 1e-3


def test_a_saved_value_stays_what_it_was(gpt2, hf_gpt2):
    with gpt2.trace(PROMPT):
        last = gpt2.transformer.h[0].output[:, -1].save()
        norm = gpt2.transformer.h[1].output.norm().save()
    with hf_gpt2.trace(PROMPT):
        expected = hf_gpt2.transformer.h[0].output[:, -1].save()
        expected_norm = hf_gpt2.transformer.h[1].output.norm().save()
    agree(last, expected)
    agree(norm, expected_norm, within=1e-2)
    # only the last token's values came, not the storage that they were a view of
    assert last.untyped_storage().nbytes() == last.numel() * last.element_size()


def test_an_edit_of_the_wrapper_is_made_for_each_request_and_in_each_step(gpt2, hf_gpt2):
    with gpt2.edit() as edited:
        gpt2.transformer.h[1].output[:, -1] = 0
    with edited.trace(max_tokens=3, **GREEDY) as tracer:
        with tracer.invoke(PROMPT):
            first = [].save()
            for _ in tracer.iter[:]:
                first.append(edited.logits.output)
    with hf_gpt2.generate(PROMPT, max_new_tokens=3, do_sample=False) as tracer:
        expected = [].save()
        for _ in tracer.iter[:]:
            hf_gpt2.transformer.h[1].output[:, -1] = 0
            expected.append(hf_gpt2.lm_head.output[:, -1])
    for one, other in zip(first, expected, strict=True):
        agree(one, other)
    agree(plain_logits(gpt2), hf_logits(hf_gpt2))


def test_an_edit_of_the_wrapper_comes_before_the_block_in_each_step(gpt2):
    with gpt2.edit() as edited:
        gpt2.transformer.h[1].output[:, -1] = 0
    with edited.generate(PROMPT, max_tokens=3, **GREEDY) as tracer:
        seen = [].save()
        for _ in tracer.iter[:]:
            seen.append(edited.transformer.h[1].output[:, -1].abs().sum().item())
    assert seen == [0.0, 0.0, 0.0]


def test_a_cache_keeps_what_the_modules_gave(gpt2, hf_gpt2):
    with gpt2.trace(PROMPT) as tracer:
        cache = tracer.cache(modules=[gpt2.transformer.h[1], gpt2.transformer.h[2].mlp])
    with hf_gpt2.trace(PROMPT):
        hidden = hf_gpt2.transformer.h[1].output.save()
        mlp = hf_gpt2.transformer.h[2].mlp.output.save()
    agree(cache["model.transformer.h.1"].output, hidden)
    agree(cache["model.transformer.h.2.mlp"].output, mlp)


def test_a_block_that_stops_ends_its_request(gpt2):
    with gpt2.trace(PROMPT, max_tokens=50, ignore_eos=True, **GREEDY) as tracer:
        hidden = gpt2.transformer.h[1].output.save()
        tracer.stop()
    assert hidden.shape == (1, 8, 128)
    assert not gpt2.engine.llm_engine.has_unfinished_requests()


def test_no_module_carries_a_tap_after_a_run(gpt2):
    plain_logits(gpt2)
    read_all(gpt2, gpt2.trace(PROMPT))
    assert gpt2.engine.collective_rpc("nnsight_dsl_taps") == [0]


@pytest.mark.parametrize("step", [0, 2])
def test_next_moves_to_the_next_step(gpt2, step):
    with gpt2.trace(PROMPT, max_tokens=4, **GREEDY) as tracer:
        for _ in range(step):
            tracer.next()
        token = gpt2.samples.output.item().save()
        result = tracer.result.save()
    assert result.outputs[0].token_ids[step] == token


@intervene
def ablated_tokens(layer, model, tracer):
    model.transformer.h[layer].output[:] = 0
    return tracer.result


def test_a_sweep_serves_each_program_as_a_request(gpt2):
    found = sweep(
        ablated_tokens, over={"layer": range(2)}, model=gpt2, prompt=PROMPT, max_tokens=3, **GREEDY
    )
    assert found.form == "batch" and "separate request" in found.reason
    for layer, output in enumerate(found):
        with gpt2.trace(PROMPT, max_tokens=3, **GREEDY) as tracer:
            gpt2.transformer.h[layer].output[:] = 0
            alone = tracer.result.save()
        assert output.outputs[0].token_ids == alone.outputs[0].token_ids
