"""What goes wrong in one request's program stays in that request, and is told at its line."""

from __future__ import annotations

import traceback

import pytest
import torch

from nnsight_dsl.errors import (
    BarrierError,
    BatchingError,
    EngineError,
    InterventionError,
    NotCalledError,
    OutOfOrderError,
    SharedNameError,
    WriteError,
)

from .test_batches import PROMPTS

GREEDY = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 3}
FAULTY = 7


class Mistake(Exception):
    """Raised by a block."""


class Unloadable:
    """Pickles, and cannot be unpickled."""

    def __reduce__(self):
        return int, ("no number",)


def test_a_request_that_ends_early_or_does_not_load_leaves_the_others_alone(gpt2, unharmed):
    unloadable = Unloadable()

    def beside(kind):
        left = []
        failure = None
        try:
            with gpt2.trace(**GREEDY) as tracer:
                for number in range(16):
                    if number == FAULTY and kind == "payload":
                        with tracer.invoke(PROMPTS[number]):
                            unloadable.anything
                        continue
                    with tracer.invoke(PROMPTS[number]):
                        if number != FAULTY:
                            gpt2.transformer.h[number % 6].output[:, -1] *= 1.5
                            logits = gpt2.logits.output
                            left.append((number, logits, tracer.result.outputs[0].token_ids))
                        elif kind == "stop":
                            gpt2.transformer.h[1].output[:] = 0
                            tracer.stop()
                        elif kind == "skip":
                            gpt2.transformer.h[1].skip(gpt2.transformer.h[1].input * 2)
        except Exception as error:
            failure = error
        return left, failure

    for kind in ("stop", "skip", "payload"):
        left, failure = beside(kind)
        assert type(failure) is (ValueError if kind == "payload" else type(None))
        assert [one[0] for one in left] == [one[0] for one in unharmed]
        for (_, logits, tokens), (_, expected, same) in zip(left, unharmed, strict=True):
            assert tokens == same
            assert (logits - expected).abs().max() <= 1e-4
    assert not gpt2.engine.llm_engine.has_unfinished_requests()
    with gpt2.trace(PROMPTS[0], **GREEDY):
        logits = gpt2.logits.output.save()
    assert logits.shape[0] == 1


def fault(kind, model, tracer):
    layer = model.transformer.h[2]
    if kind == "exception":
        layer.output
        raise Mistake("in the block")  # the line
    if kind == "shape":
        layer.output = torch.zeros(1, 3, 128)  # the line
    if kind == "dtype":
        layer.output = layer.output.to(torch.float64)  # the line
    if kind == "in place":
        layer.output[:] = torch.zeros(1, 5000, 128)  # the line
    if kind == "tuple":
        layer.output = (layer.output,)  # the line
    if kind == "skip":
        layer.skip(torch.zeros(1, 2, 128))  # the line
        model.transformer.h[3].output
    if kind == "loop":
        layer.output
        while True:  # the line
            layer = layer  # the line
    if kind == "order":
        model.transformer.h[4].output
        layer.output  # the line
    if kind == "never":
        model.lm_head.output  # the line
    if kind == "logits":
        model.logits.output = torch.zeros(1, 7)  # the line


RAISED = {
    "exception": Mistake,
    "shape": WriteError,
    "dtype": WriteError,
    "in place": RuntimeError,
    "tuple": WriteError,
    "skip": WriteError,
    "loop": EngineError,
    "order": OutOfOrderError,
    "never": NotCalledError,
    "logits": WriteError,
}


def served(model, kind=None):
    """Serve 16 requests, one of which may go wrong; return what the others have left."""
    left = []
    failure = None
    try:
        with model.trace(**GREEDY) as tracer:
            for number in range(16):
                with tracer.invoke(PROMPTS[number]):
                    if number == FAULTY and kind is not None:
                        fault(kind, model, tracer)
                    elif number != FAULTY:
                        model.transformer.h[number % 6].output[:, -1] *= 1.5
                        logits = model.logits.output
                        left.append((number, logits, tracer.result.outputs[0].token_ids))
    except Exception as error:
        failure = error
    return left, failure


@pytest.fixture(scope="module")
def unharmed(gpt2):
    gpt2.engine.collective_rpc("nnsight_dsl_set_limit", args=(2.0,))
    left, failure = served(gpt2)
    assert failure is None
    assert len(left) == 15
    return left


@pytest.mark.parametrize("kind", RAISED)
def test_a_fault_stays_in_its_request(gpt2, unharmed, kind, unlinted):
    left, failure = served(gpt2, kind)
    assert type(failure) is RAISED[kind], failure
    lines = [entry.line for entry in traceback.extract_tb(failure.__traceback__)]
    # what is skipped is judged later, at the line of the block
    wanted = "fault(kind" if kind == "skip" else "# the line"
    assert any(wanted in (line or "") for line in lines), lines
    assert [one[0] for one in left] == [one[0] for one in unharmed]
    for (_, logits, tokens), (_, expected, same) in zip(left, unharmed, strict=True):
        assert tokens == same
        assert (logits - expected).abs().max() <= 1e-4
    assert not gpt2.engine.llm_engine.has_unfinished_requests()
    assert gpt2.engine.collective_rpc("nnsight_dsl_taps") == [0]


def test_what_was_saved_before_a_fault_is_there(gpt2):
    hidden = None
    with pytest.raises(Mistake):
        with gpt2.trace(PROMPTS[0]):
            hidden = gpt2.transformer.h[0].output.save()
            raise Mistake
    assert hidden.shape[0] == 1


def test_a_value_that_cannot_be_sent_is_named_before_the_request_is(gpt2):
    import threading

    lock = threading.Lock()
    with pytest.raises(InterventionError, match="'lock'"):
        with gpt2.trace(PROMPTS[0]):
            with lock:
                hidden = gpt2.transformer.h[0].output.save()


def test_what_an_engine_cannot_do_is_refused(gpt2):
    with pytest.raises(BatchingError, match="one prompt"):
        with gpt2.trace(["one", "two"]):
            gpt2.logits.output.save()
    with pytest.raises(SharedNameError, match="do not wait"):
        with gpt2.trace() as tracer:
            with tracer.invoke(PROMPTS[0]):
                hidden = gpt2.transformer.h[0].output
            with tracer.invoke(PROMPTS[1]):
                gpt2.transformer.h[0].output[:, -1] = hidden[:, -1]
    with pytest.raises(EngineError, match="no prompt"):
        with gpt2.trace() as tracer:
            with tracer.invoke(PROMPTS[0]):
                hidden = gpt2.transformer.h[0].output.save()
            with tracer.invoke():
                both = gpt2.transformer.h[0].output.save()
    with pytest.raises(BarrierError):
        with gpt2.trace() as tracer:
            barrier = tracer.barrier(2)
    with pytest.raises(EngineError, match="scan"):
        gpt2.scan(PROMPTS[0])
    with pytest.raises(EngineError, match="plan"):
        gpt2.plan(PROMPTS[0])
    with pytest.raises(EngineError, match="'plan' is an option of a run in this process"):
        gpt2.trace(PROMPTS[0], plan=True)
    with pytest.raises(EngineError, match=r"stop=\['auto'\]"):
        gpt2.trace(PROMPTS[0], stop="auto")
