"""Barriers: what passes them, and that a misuse is an error at once."""

import pytest

from nnsight_dsl import BarrierError, InvokeError, LanguageModel
from tests.models import GPT2, assert_near, output_of

FIRST = "the cat sat"
SECOND = "a red bird"
THIRD = "the house flew"


def test_a_barrier_is_passed_several_times(gpt2: LanguageModel) -> None:
    with gpt2.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(FIRST):
            embedded = gpt2.transformer.wte.output
            barrier()
            hidden = gpt2.transformer.h[0].output
            barrier()
            last = gpt2.transformer.h[2].output.save()
        with tracer.invoke(SECOND):
            barrier()
            gpt2.transformer.wte.output = embedded
            barrier()
            gpt2.transformer.h[0].output = hidden
            other = gpt2.transformer.h[2].output.save()
    assert_near(last, output_of(GPT2, FIRST, "transformer.h.2"))
    assert_near(other, last)


def test_three_invokes_meet(gpt2: LanguageModel) -> None:
    with gpt2.trace() as tracer:
        barrier = tracer.barrier(3)
        order = [].save()
        with tracer.invoke(FIRST):
            gpt2.transformer.h[1].output
            order.append("first comes")
            barrier()
            order.append("first goes on")
        with tracer.invoke(SECOND):
            gpt2.transformer.h[0].output
            order.append("second comes")
            barrier()
            order.append("second goes on")
        with tracer.invoke(THIRD):
            barrier()
            order.append("third goes on")
    assert order == [
        "second comes", "first comes", "first goes on", "second goes on", "third goes on",
    ]  # fmt: skip


def test_a_barrier_in_each_step(gpt2: LanguageModel) -> None:
    with gpt2.generate(max_new_tokens=3, do_sample=False) as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(FIRST):
            for _ in tracer.iter[:]:
                hidden = gpt2.transformer.h[1].output
                barrier()
            first = tracer.result.save()
        with tracer.invoke(FIRST):
            for _ in tracer.iter[:]:
                barrier()
                gpt2.transformer.h[1].output = hidden
            second = tracer.result.save()
    assert first.tolist() == second.tolist()


def counting(model):
    """Count the calls of the last layer, which a misuse must not reach."""
    calls = []
    handle = model._module.transformer.h[2].register_forward_hook(lambda *_: calls.append(1))
    return calls, handle


def test_a_barrier_for_more_than_there_are_fails_where_it_is_waited_at(gpt2: LanguageModel) -> None:
    calls, handle = counting(gpt2)
    try:
        with pytest.raises(BarrierError, match=r"1 of 3 invokes .* only 2") as caught:
            with gpt2.trace() as tracer:
                barrier = tracer.barrier(3)
                with tracer.invoke(FIRST):
                    gpt2.transformer.h[0].output
                    barrier()
                with tracer.invoke(SECOND):
                    gpt2.transformer.h[1].output
                    barrier()
    finally:
        handle.remove()
    assert calls == []
    function = test_a_barrier_for_more_than_there_are_fails_where_it_is_waited_at
    assert caught.traceback[-1].lineno + 1 == function.__code__.co_firstlineno + 8


def test_a_barrier_fails_when_the_last_who_could_come_has_ended(gpt2: LanguageModel) -> None:
    calls, handle = counting(gpt2)
    try:
        with pytest.raises(BarrierError, match=r"1 of 2 invokes .* only 1"):
            with gpt2.trace() as tracer:
                barrier = tracer.barrier(2)
                with tracer.invoke(FIRST):
                    gpt2.transformer.h[0].output
                    barrier()
                with tracer.invoke(SECOND):
                    gpt2.transformer.h[1].output
    finally:
        handle.remove()
    assert calls == []


def test_one_who_comes_too_often_fails(gpt2: LanguageModel) -> None:
    with pytest.raises(BarrierError, match="1 of 2"):
        with gpt2.trace() as tracer:
            barrier = tracer.barrier(2)
            with tracer.invoke(FIRST):
                barrier()
                barrier()
            with tracer.invoke(SECOND):
                barrier()


def test_an_invoke_may_catch_that_nobody_else_comes(gpt2: LanguageModel) -> None:
    with gpt2.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(FIRST):
            try:
                barrier()
            except BarrierError:
                alone = [True].save()
            hidden = gpt2.transformer.h[1].output.save()
        with tracer.invoke(SECOND):
            gpt2.transformer.h[0].output
    assert alone == [True]
    assert_near(hidden, output_of(GPT2, FIRST, "transformer.h.1"))


def test_a_barrier_outside_of_the_invokes_fails(gpt2: LanguageModel) -> None:
    with pytest.raises(BarrierError, match="outside of the invokes"):
        with gpt2.trace() as tracer:
            barrier = tracer.barrier(2)
            barrier()
            with tracer.invoke(FIRST):
                gpt2.transformer.h[0].output


@pytest.mark.parametrize("number", [0, -1])
def test_a_barrier_for_nobody_fails(gpt2: LanguageModel, number: int) -> None:
    with pytest.raises(BarrierError, match="at least 1"):
        with gpt2.trace() as tracer:
            barrier = tracer.barrier(number)


def test_stop_outside_of_the_invokes_fails(gpt2: LanguageModel) -> None:
    with pytest.raises(InvokeError, match=r"tracer\.stop\(\)"):
        with gpt2.trace() as tracer:
            tracer.stop()
            with tracer.invoke(FIRST):
                gpt2.transformer.h[0].output
