"""Requests that the engine takes out for want of cache, and computes again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from .conftest import FACTS, ended, started
from .test_batches import PROMPTS

GREEDY = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 40}


@pytest.fixture(scope="module", params=[2048, 16])
def crowded(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An engine whose cache does not hold four requests to their ends.

    With few tokens in a step, what is computed again comes in pieces.
    """
    model = started(
        FACTS,
        block_size=32,
        num_gpu_blocks_override=7,
        max_num_seqs=4,
        max_num_batched_tokens=request.param,
    )
    yield model
    ended(model)


def read(model, prompts):
    with model.trace(**GREEDY) as tracer:
        left = [].save()
        for prompt in prompts:
            with tracer.invoke(prompt):
                own = []
                for _ in tracer.iter[:]:
                    own.append(model.transformer.h[2].output[:, -1])
                    own.append(model.logits.output)
                left.append((own, tracer.result.outputs[0].token_ids))
    return left


def agree(one, other):
    assert one.shape == other.shape
    assert (one - other).abs().max() <= 1e-4 * max(1, other.abs().max())


@contextmanager
def preemptions(model) -> Iterator[list[Any]]:
    """Collect the requests that are taken out."""
    scheduler = model.engine.llm_engine.engine_core.engine_core.scheduler
    counted: list[Any] = []
    preempt = scheduler._preempt_request

    def counting(request: Any, *args: Any, **kwargs: Any) -> Any:
        counted.append(request.request_id)
        return preempt(request, *args, **kwargs)

    scheduler._preempt_request = counting
    try:
        yield counted
    finally:
        scheduler._preempt_request = preempt


def test_reads_go_on_where_they_were(crowded):
    with preemptions(crowded) as counted:
        together = read(crowded, PROMPTS[:4])
    assert counted, "the cache was large enough, so this shows nothing"
    for prompt, (own, tokens) in list(zip(PROMPTS[:4], together, strict=True))[2:]:
        ((alone, same),) = read(crowded, [prompt])
        assert tokens == same
        assert len(own) == len(alone) == 80
        for one, other in zip(own, alone, strict=True):
            agree(one, other)


def steered(model, prompts):
    """Write into the whole prompt, and into each step; read what comes of it."""
    with model.trace(**GREEDY) as tracer:
        left = [].save()
        for number, prompt in prompts:
            with tracer.invoke(prompt):
                own = []
                for step in tracer.iter[:]:
                    if step == 0:
                        model.transformer.h[1].input[:, 2] = 0
                        model.transformer.h[1].mlp.output = model.transformer.h[1].mlp.output * 0.5
                    if step % 3 == 2:
                        model.transformer.h[2].skip(model.transformer.h[2].input)
                    model.transformer.h[3].output[:, -1] *= 1 + number / 4
                    own.append(model.transformer.h[4].output[:, -1])
                    left.append((number, step, model.logits.output))
                    if step == 5:
                        model.samples.output = model.samples.output * 0 + 300
                left.append((number, "end", own, tracer.result.outputs[0].token_ids))
    return {one[:2]: one[2:] for one in left}


def test_writes_are_made_again_where_a_request_is_computed_again(crowded):
    cases = list(enumerate(PROMPTS[:4]))
    with preemptions(crowded) as counted:
        together = steered(crowded, cases)
    assert counted, "the cache was large enough, so this shows nothing"
    assert len(together) == 4 * 41
    # those that came last are the ones that were taken out
    for case in cases[2:]:
        alone = steered(crowded, [case])
        own, tokens = together[case[0], "end"]
        expected, same = alone[case[0], "end"]
        assert tokens == same
        assert tokens[5] == 300
        assert len(own) == len(expected) == 40
        for one, other in zip(own, expected, strict=True):
            agree(one, other)
        for step in range(40):
            agree(together[case[0], step][0], alone[case[0], step][0])
    plain = crowded.trace(PROMPTS[3], trace=False, **GREEDY)
    assert plain.outputs[0].token_ids != together[3, "end"][1]
    ((_, tokens),) = read(crowded, [PROMPTS[3]])
    assert tokens == plain.outputs[0].token_ids


def test_a_block_runs_once_though_its_request_is_computed_twice(crowded):
    with preemptions(crowded) as counted:
        with crowded.trace(**GREEDY) as tracer:
            runs = [].save()
            for number in range(4):
                with tracer.invoke(PROMPTS[number]):
                    for step in tracer.iter[:]:
                        crowded.transformer.h[0].output[:, -1] *= 1.1
                        runs.append((number, step))
    assert counted
    assert runs == [(number, step) for number in range(4) for step in range(40)]


def test_a_residual_that_is_carried_apart_is_written_again(llama_folder):
    model = started(llama_folder, block_size=32, num_gpu_blocks_override=7, max_num_seqs=4)

    def served(prompts):
        with model.trace(**GREEDY) as tracer:
            left = [].save()
            for prompt in prompts:
                with tracer.invoke(prompt):
                    own = []
                    for step in tracer.iter[:]:
                        if step == 0:
                            model.model.layers[1].output[:, 1:4] *= -2
                        model.model.layers[2].input[:, -1] += 0.5
                        own.append(model.logits.output)
                    left.append(own)
        return left

    try:
        with preemptions(model) as counted:
            together = served(PROMPTS[:4])
        assert counted
        for prompt, own in list(zip(PROMPTS[:4], together, strict=True))[2:]:
            (alone,) = served([prompt])
            assert len(own) == 40
            for one, other in zip(own, alone, strict=True):
                agree(one, other)
    finally:
        ended(model)
