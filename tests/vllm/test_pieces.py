"""Prompts that the engine computes in pieces mean what they mean in one."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from nnsight_dsl.errors import EngineError

from .conftest import FACTS, ended, started
from .test_batches import PROMPTS

GREEDY = {"temperature": 0.0, "ignore_eos": True}
SMALL = 12
LONG = "The Colosseum is in the city of Rome. The Eiffel Tower is in the city of"


@pytest.fixture(scope="module")
def cut() -> Iterator[Any]:
    """An engine that computes 12 tokens in a step, of all requests together."""
    model = started(
        FACTS, enable_chunked_prefill=True, max_num_batched_tokens=SMALL, max_num_seqs=6
    )
    yield model
    ended(model)


def agree(one, other, within=1e-4):
    assert one.shape == other.shape
    assert (one - other).abs().max() <= within * max(1.0, other.abs().max().item())


def read(model, trace):
    with trace:
        embedded = model.transformer.wte.output.save()
        given = model.transformer.h[1].input.save()
        inner = model.transformer.h[2].mlp.c_fc.output.save()
        third = model.transformer.h[2].output[:, 3].save()
        last = model.transformer.h[4].output[:, -1].save()
        final = model.transformer.ln_f.output.save()
    return embedded, given, third, inner, last, final


def test_a_block_that_reads_sees_the_whole_prompt(cut, hf_gpt2):
    assert len(cut.tokenizer.encode(LONG)) > SMALL
    values = zip(read(cut, cut.trace(LONG)), read(hf_gpt2, hf_gpt2.trace(LONG)), strict=True)
    for one, other in values:
        agree(one, other)


def steered(model, trace, token):
    with trace as tracer:
        model.transformer.h[1].output[:, token] *= 3
        model.transformer.h[3].mlp.output = model.transformer.h[3].mlp.output * 0.5
        later = model.transformer.h[4].output.save()
        result = tracer.result.save()
    return later, result


@pytest.mark.parametrize("token", [-1, 3])
def test_a_block_that_writes_gets_its_prompt_whole_beside_others_that_are_cut(cut, hf_gpt2, token):
    expected, _ = steered(hf_gpt2, hf_gpt2.trace(PROMPTS[1]), token)
    plain = cut.trace(LONG, trace=False, max_tokens=5, **GREEDY)
    with cut.trace(max_tokens=5, **GREEDY) as tracer:
        seen = [].save()
        for _ in range(3):
            with tracer.invoke(LONG):
                first = cut.transformer.h[2].output
                seen.append((first, tracer.result))
            with tracer.invoke(PROMPTS[1]):
                cut.transformer.h[1].output[:, token] *= 3
                cut.transformer.h[3].mlp.output = cut.transformer.h[3].mlp.output * 0.5
                seen.append((cut.transformer.h[4].output, None))
    with hf_gpt2.trace(LONG):
        hidden = hf_gpt2.transformer.h[2].output.save()
    assert len(seen) == 6
    for value, result in seen:
        if result is None:
            agree(value, expected)
        else:
            agree(value, hidden)
            assert result.outputs[0].token_ids == plain.outputs[0].token_ids


def test_later_steps_go_on_after_pieces(cut, hf_gpt2):
    with cut.trace(LONG, max_tokens=4, **GREEDY) as tracer:
        hidden = [].save()
        for _ in tracer.iter[:]:
            hidden.append(cut.transformer.h[2].output)
    with hf_gpt2.generate(LONG, max_new_tokens=4, min_new_tokens=4, do_sample=False) as tracer:
        expected = [].save()
        for _ in tracer.iter[:]:
            expected.append(hf_gpt2.transformer.h[2].output)
    assert len(hidden) == 4
    for one, other in zip(hidden, expected, strict=True):
        agree(one, other)


def test_a_write_that_no_step_has_room_for_is_refused_at_its_line(cut):
    with pytest.raises(EngineError, match="in pieces") as caught:
        with cut.trace(LONG, max_tokens=2, **GREEDY):
            cut.transformer.h[1].output[:] = 0  # the line
    lines = [entry.line for entry in traceback.extract_tb(caught.value.__traceback__)]
    assert any("# the line" in line for line in lines)
    # what only concerns later steps is served
    with cut.trace(LONG, max_tokens=3, **GREEDY) as tracer:
        later = [].save()
        for _ in tracer.iter[1:]:
            cut.transformer.h[1].output[:] = 0
            later.append(cut.transformer.h[1].output.abs().max().item())
    assert later == [0.0, 0.0]


def changed_by(value):
    value[:] = 0


def test_a_change_that_the_text_does_not_show_is_never_lost(cut, unlinted):
    # a function of the user's own can do anything, so the prompt is kept whole for it
    with cut.trace(PROMPTS[1], **GREEDY):
        changed_by(cut.transformer.h[1].output)
        after = cut.transformer.h[2].input.save()
    assert after.abs().max() == 0


def test_the_scheduler_does_not_starve_a_prompt_that_waits_for_room(cut):
    with cut.trace(max_tokens=20, **GREEDY) as tracer:
        first = [].save()
        for number in range(4):
            with tracer.invoke(PROMPTS[number], max_tokens=40):
                first.append(cut.logits.output)
        with tracer.invoke(PROMPTS[5], max_tokens=1):
            cut.transformer.h[1].output[:, -1] *= 2
            waited = cut.logits.output.save()
    with cut.trace(PROMPTS[5], max_tokens=1, **GREEDY):
        cut.transformer.h[1].output[:, -1] *= 2
        alone = cut.logits.output.save()
    agree(waited, alone)
