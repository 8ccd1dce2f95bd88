"""A request uses the prefix cache as far as its program lets it, and leaves nothing in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nnsight_dsl.errors import EngineError
from nnsight_dsl.modeling.vllm.client.effects import ANYTHING, Reach

from .conftest import FACTS, ended, started

GREEDY = {"temperature": 0.0, "ignore_eos": True}
START = "The Colosseum is in the city of Rome. The Louvre is in the city of Paris. "


@pytest.fixture(scope="module", params=[True, False], ids=["cached", "uncached"])
def caching(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An engine with small blocks in its cache, or without a cache, and whether it has one."""
    model = started(FACTS, block_size=32, enable_prefix_caching=request.param)
    yield model, request.param
    ended(model)


def prompt_of(number):
    """A prompt of more than one block, for one test alone."""
    return f"{number} is the number. {START}{START}"


def plain(model, prompt):
    return model.trace(prompt, trace=False, max_tokens=4, logprobs=3, **GREEDY)


def same(one, other):
    assert one.outputs[0].token_ids == other.outputs[0].token_ids
    for mine, theirs in zip(one.outputs[0].logprobs, other.outputs[0].logprobs, strict=True):
        assert mine.keys() == theirs.keys()
        for token in mine:
            assert abs(mine[token].logprob - theirs[token].logprob) < 1e-4


def test_a_block_that_reads_leaves_its_blocks_to_others_and_reads_all_itself(caching):
    model, is_cached = caching
    prompt = prompt_of(1)
    for _ in range(2):
        with model.trace(prompt, **GREEDY) as tracer:
            hidden = model.transformer.h[1].output.save()
            result = tracer.result.save()
        assert hidden.shape[1] == len(model.tokenizer.encode(prompt)) > 32
        assert not result.num_cached_tokens
    assert plain(model, prompt).num_cached_tokens == (32 if is_cached else 0)


def test_a_block_of_logits_samples_and_later_steps_keeps_the_cache(caching):
    model, is_cached = caching
    prompt = prompt_of(2)
    expected = plain(model, prompt)
    with model.trace(prompt, max_tokens=4, logprobs=3, **GREEDY) as tracer:
        tokens = [].save()
        shapes = [].save()
        tokens.append(model.samples.output)
        for _ in tracer.iter[1:]:
            shapes.append(model.transformer.h[2].output.shape)
        result = tracer.result.save()
    assert result.num_cached_tokens == (32 if is_cached else 0)
    assert shapes == [(1, 1, 128)] * 3
    same(result, expected)


def test_a_block_that_writes_meets_no_blocks_and_leaves_none(caching):
    model, is_cached = caching
    prompt = prompt_of(3)
    with model.trace(prompt, max_tokens=4, **GREEDY) as tracer:
        for _ in tracer.iter[:]:
            model.transformer.h[1].output[:] *= -1
        written = tracer.result.save()
    first = plain(model, prompt)
    assert not first.num_cached_tokens
    again = plain(model, prompt)
    assert again.num_cached_tokens == (32 if is_cached else 0)
    same(first, again)
    assert written.outputs[0].token_ids != first.outputs[0].token_ids
    with model.trace(prompt, max_tokens=4, **GREEDY) as tracer:
        for _ in tracer.iter[:]:
            model.transformer.h[1].output[:] *= -1
        same_again = tracer.result.save()
    assert not same_again.num_cached_tokens
    assert same_again.outputs[0].token_ids == written.outputs[0].token_ids
    same(plain(model, prompt), first)


def reach_of_block(model, monkeypatch, run):
    """Return what is said of the block of a trace when it is sent."""
    from nnsight_dsl.modeling.vllm.client.client import EngineTracer

    told = []
    find = EngineTracer._reach_of

    def noting(self, part):
        told.append(find(self, part))
        return told[-1]

    monkeypatch.setattr(EngineTracer, "_reach_of", noting)
    run(model)
    (one,) = told
    return one


def reads(model):
    with model.trace(START) as tracer:
        seen = {}
        for layer in range(2):
            seen[layer] = model.transformer.h[layer].output[:, -1]
        hidden = model.transformer.h[3].output.norm().save()


def edits_an_alias(model):
    with model.trace(START):
        hidden = model.transformer.h[1].output
        hidden += 1


def edits_by_a_method(model):
    with model.trace(START):
        model.transformer.h[1].output.mul_(2)


def edits_an_item(model):
    with model.trace(START):
        kept = []
        kept.append(model.transformer.h[1].output)
        kept[0] += 1


def skips(model):
    with model.trace(START):
        model.transformer.h[1].skip(model.transformer.h[1].input)


def writes_logits(model):
    with model.trace(START):
        model.logits.output[:, 3] = 100.0


def writes_later(model):
    with model.trace(START, max_tokens=3) as tracer:
        for _ in tracer.iter[1:]:
            model.transformer.h[1].output = model.transformer.h[1].output * 2


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (reads, Reach(True, False)),
        (edits_an_alias, Reach(True, True)),
        (edits_by_a_method, Reach(True, True)),
        (edits_an_item, Reach(True, True)),
        (skips, ANYTHING),
        (writes_logits, Reach(False, False)),
        (writes_later, Reach(False, True)),
    ],
)
def test_what_a_block_can_do_is_told_from_its_text(gpt2, monkeypatch, run, expected):
    assert reach_of_block(gpt2, monkeypatch, run) == expected


def test_the_engine_holds_a_block_to_what_was_said_of_it(gpt2, monkeypatch):
    from nnsight_dsl.modeling.vllm.client.client import EngineTracer

    monkeypatch.setattr(EngineTracer, "_reach_of", lambda self, part: Reach(True, False))
    before = plain(gpt2, START)
    for edit in (edits_an_alias, edits_by_a_method, skips):
        with pytest.raises(EngineError, match="no change is to be seen"):
            edit(gpt2)
        same(plain(gpt2, START), before)
