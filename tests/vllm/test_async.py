"""Traces on an asynchronous engine: submitted at the end of a block, awaited below it."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from nnsight_dsl import intervene
from nnsight_dsl.errors import EngineError, OutOfOrderError

from .conftest import FACTS, started
from .test_batches import PROMPTS

GREEDY = {"temperature": 0.0, "ignore_eos": True}
STEPS = [2 + number % 4 for number in range(16)]


class Mistake(Exception):
    """Raised by a block."""


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The one event loop of the engine."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


@pytest.fixture(scope="module")
def streaming(loop: asyncio.AbstractEventLoop) -> Iterator[Any]:
    model = started(FACTS, mode="async")
    yield model

    async def end() -> None:
        model.engine.shutdown()

    loop.run_until_complete(end())


@pytest.fixture(scope="module")
def run(loop: asyncio.AbstractEventLoop) -> Any:
    return lambda coroutine: loop.run_until_complete(asyncio.wait_for(coroutine, 100))


async def steered(model, number, fails=False):
    """Read and steer as `number` says; return outputs as they came, and what was saved."""
    tokens = []
    with model.trace(PROMPTS[number], max_tokens=STEPS[number], **GREEDY) as tracer:
        logits = [].save()
        for _ in tracer.iter[:]:
            model.transformer.h[number % 6].output[:, -1] *= 1 + number / 16
            logits.append(model.logits.output)
            if fails:
                raise Mistake("in the block")  # the line
        norm = float(logits[0].norm()).save()
    async for output in tracer:
        tokens.append(list(output.outputs[0].token_ids))
    return tokens, logits, norm


def of_waiting_engine(model, number):
    with model.trace(PROMPTS[number], max_tokens=STEPS[number], **GREEDY) as tracer:
        logits = [].save()
        for _ in tracer.iter[:]:
            model.transformer.h[number % 6].output[:, -1] *= 1 + number / 16
            logits.append(model.logits.output)
        result = tracer.result.save()
    return logits, list(result.outputs[0].token_ids)


@pytest.fixture(scope="module")
def expected(gpt2):
    return [of_waiting_engine(gpt2, number) for number in range(16)]


def check(left, number, expected):
    tokens, logits, norm = left
    wanted, same = expected[number]
    assert tokens[-1] == same
    assert [len(one) for one in tokens] == sorted(len(one) for one in tokens)
    assert len(logits) == STEPS[number] and norm > 0
    for one, other in zip(logits, wanted, strict=True):
        assert (one - other).abs().max() <= 1e-4 * max(1, other.abs().max())


def test_16_traces_in_flight_are_each_what_they_are_alone(streaming, run, expected):
    async def ask():
        return await asyncio.gather(*(steered(streaming, number) for number in range(16)))

    for number, left in enumerate(run(ask())):
        check(left, number, expected)


def test_a_fault_stays_in_its_trace(streaming, run, expected):
    async def ask():
        asked = (steered(streaming, number, fails=number == 7) for number in range(16))
        return await asyncio.gather(*asked, return_exceptions=True)

    for number, left in enumerate(run(ask())):
        if number == 7:
            assert type(left) is Mistake
            lines = [entry.line for entry in traceback.extract_tb(left.__traceback__)]
            assert any("# the line" in line for line in lines)
        else:
            check(left, number, expected)
    check(run(steered(streaming, 7)), 7, expected)


def test_outputs_come_before_the_last(streaming, run):
    async def ask():
        with streaming.trace(PROMPTS[0], max_tokens=30, **GREEDY) as tracer:
            hidden = streaming.transformer.h[1].output.save()
        seen = [(len(output.outputs[0].token_ids), output.saves) async for output in tracer]
        return seen, hidden

    seen, hidden = run(ask())
    assert seen[0][0] < 30 and seen[0][1] == {}
    assert seen[-1][0] == 30 and seen[-1][1]["hidden"] is hidden


def test_awaiting_a_trace_gives_its_output_and_binds_its_names(streaming, run):
    async def ask():
        with streaming.trace(PROMPTS[0], max_tokens=3, **GREEDY) as tracer:
            shape = streaming.transformer.h[1].output.shape
            shape = tuple(shape).save()
        output = await tracer
        again = await tracer
        assert output is again
        return output, shape, tracer.saves

    output, shape, saves = run(ask())
    assert len(output.outputs[0].token_ids) == 3 and output.finished
    assert shape[0] == 1 and saves == {"shape": shape}


def test_what_waits_elsewhere_finds_the_names_in_saves(streaming, run):
    async def ask():
        tracers = []
        for number in range(3):
            with streaming.trace(PROMPTS[number], max_tokens=2, **GREEDY) as tracer:
                count = streaming.transformer.h[1].output.shape[1].save()
            tracers.append(tracer)
        await asyncio.gather(*tracers)
        assert "count" not in locals()
        return [tracer.saves["count"] for tracer in tracers]

    counts = [len(streaming.tokenizer.encode(PROMPTS[number])) for number in range(3)]
    assert run(ask()) == counts


def test_invokes_come_as_they_are_done(streaming, run):
    async def ask():
        with streaming.trace(**GREEDY) as tracer:
            counts = [].save()
            with tracer.invoke(PROMPTS[0], max_tokens=6):
                first = tracer.result.outputs[0].token_ids.save()
                counts.append(len(first))
            with tracer.invoke(PROMPTS[1], max_tokens=2):
                second = tracer.result.outputs[0].token_ids.save()
                counts.append(len(second))
        outputs = await tracer
        return outputs, first, second, counts

    outputs, first, second, counts = run(ask())
    assert [list(output.outputs[0].token_ids) for output in outputs] == [list(first), list(second)]
    assert counts == [6, 2]


def test_a_stop_ends_the_request_early(streaming, run):
    async def ask():
        with streaming.trace(PROMPTS[0], max_tokens=50, **GREEDY) as tracer:
            hidden = streaming.transformer.h[1].output.save()
            tracer.stop()
        output = await tracer
        return hidden, output

    hidden, output = run(ask())
    assert hidden.shape[0] == 1
    assert len(output.outputs[0].token_ids) < 50


def test_leaving_the_outputs_early_ends_the_requests(streaming, run):
    async def ask():
        with streaming.trace(PROMPTS[0], max_tokens=50, **GREEDY) as tracer:
            seen = [].save()
            for _ in tracer.iter[:]:
                seen.append(streaming.transformer.h[1].output.shape)
        outputs = aiter(tracer)
        await anext(outputs)
        await outputs.aclose()
        with streaming.trace(PROMPTS[0], max_tokens=2, **GREEDY) as after:
            hidden = streaming.transformer.h[1].output.save()
        await after
        for _ in range(100):
            if not streaming.engine.output_processor.has_unfinished_requests():
                break
            await asyncio.sleep(0.02)
        assert not streaming.engine.output_processor.has_unfinished_requests()
        assert await streaming.engine.collective_rpc("nnsight_dsl_taps") == [0]
        return hidden

    assert run(ask()).shape[0] == 1


@intervene
def doubled(model, layer: int):
    model.transformer.h[layer].output[:, -1] *= 2
    return model.logits.output


def test_requests_without_a_block_and_interventions_are_awaited(streaming, run, gpt2):
    async def ask():
        plain = await streaming.trace(PROMPTS[0], trace=False, max_tokens=2, **GREEDY)
        with streaming.edit() as edited:
            streaming.transformer.h[2].output[:, -1] *= 2
        with edited.trace(PROMPTS[0], **GREEDY) as tracer:
            logits = edited.logits.output.save()
        await tracer
        return plain, logits, await doubled.run(streaming, PROMPTS[0], layer=2, **GREEDY)

    plain, logits, returned = run(ask())
    assert len(plain.outputs[0].token_ids) == 2
    assert (returned - logits).abs().max() < 1e-4
    assert (returned - doubled.run(gpt2, PROMPTS[0], layer=2, **GREEDY)).abs().max() < 1e-4


def test_what_cannot_be_awaited_is_refused(streaming, run):
    with pytest.raises(EngineError, match="no event loop"):
        with streaming.trace(PROMPTS[0]):
            hidden = streaming.transformer.h[1].output.save()

    async def inside():
        with pytest.raises(EngineError, match="inside of another block"):
            with streaming.session():
                with streaming.trace(PROMPTS[0]):
                    hidden = streaming.transformer.h[1].output.save()
        with pytest.raises(OutOfOrderError):
            with streaming.trace(PROMPTS[0]) as tracer:
                late = streaming.transformer.h[2].output.save()
                early = streaming.transformer.h[1].output.save()
            await tracer
        with pytest.raises(EngineError, match="below the block"):
            await streaming.trace(PROMPTS[0])

    run(inside())
    with pytest.raises(EngineError, match="in another"):

        async def elsewhere():
            with streaming.trace(PROMPTS[0]):
                hidden = streaming.transformer.h[1].output.save()

        asyncio.run(elsewhere())
