"""Requests that the engine takes out for want of cache, and computes again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nnsight_dsl.errors import EngineError

from .conftest import FACTS, ended, started
from .test_batches import PROMPTS

GREEDY = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 40}


@pytest.fixture(scope="module")
def crowded() -> Iterator[Any]:
    """An engine whose cache does not hold four requests to their ends."""
    model = started(FACTS, block_size=32, num_gpu_blocks_override=7, max_num_seqs=4)
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


def test_reads_go_on_where_they_were(crowded):
    scheduler = crowded.engine.llm_engine.engine_core.engine_core.scheduler
    counted = []
    preempt = scheduler._preempt_request
    scheduler._preempt_request = lambda *args, **kwargs: (
        counted.append(args),
        preempt(*args, **kwargs),
    )[1]
    try:
        together = read(crowded, PROMPTS[:4])
    finally:
        scheduler._preempt_request = preempt
    assert counted, "the cache was large enough, so this shows nothing"
    for prompt, (own, tokens) in zip(PROMPTS[:4], together, strict=True):
        ((alone, same),) = read(crowded, [prompt])
        assert tokens == same
        assert len(own) == len(alone) == 80
        for one, other in zip(own, alone, strict=True):
            assert one.shape == other.shape
            assert (one - other).abs().max() <= 1e-4 * max(1, other.abs().max())


def test_a_write_that_would_be_lost_is_told(crowded):
    with pytest.raises(EngineError, match="ran out of cache"):
        with crowded.trace(**GREEDY) as tracer:
            for number in range(4):
                with tracer.invoke(PROMPTS[number]):
                    crowded.transformer.h[2].output[:, -1] *= 2
                    logits = [].save()
                    for _ in tracer.iter[:]:
                        logits.append(crowded.logits.output)
    (alone,) = read(crowded, PROMPTS[:1])
    assert len(alone[1]) == 40
