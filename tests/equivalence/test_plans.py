"""A plan says before a run what the run then serves and keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnsight_dsl import NNsight, NotRunningError, intervene
from tests.models import GPT2, LONG, MIDDLE, SHORT, wrapped


def test_a_plan_lists_what_the_run_then_serves():
    model = wrapped(GPT2)
    with model.plan(MIDDLE) as tracer:
        hidden = model.transformer.h[0].output
        model.transformer.h[1].output[:] = hidden
        logits = model.lm_head.output.save()
    plan = tracer.plan()
    with model.trace(MIDDLE, log=True) as tracer:
        hidden = model.transformer.h[0].output
        model.transformer.h[1].output[:] = hidden
        logits = model.lm_head.output.save()
    assert [(one.location, one.verb, one.step) for one in plan.served] == [
        (one.location, one.verb, one.step) for one in tracer.log
    ]
    assert plan.served[-1].shapes == (tuple(logits.shape),)
    assert plan.served[-1].dtypes == (torch.float32,)
    assert plan.served[-1].bytes == logits.nbytes
    assert plan.locations == (
        "transformer.h.0.output",
        "transformer.h.1.output",
        "lm_head.output",
    )


def test_what_is_kept_is_what_leaves():
    model = wrapped(GPT2)
    with model.plan(MIDDLE) as tracer:
        hidden = model.transformer.h[0].output
        last = hidden[:, -1].save()
        both = [hidden, model.transformer.h[1].output].save()
    kept = {one.name: one for one in tracer.plan().kept}
    assert {*kept} == {"last", "both"}
    assert kept["last"].shapes == ((1, 16),)
    assert kept["last"].bytes == 16 * 4
    # a view keeps all of what it is a part of
    assert kept["last"].held == 4 * 16 * 4
    assert kept["both"].bytes == kept["both"].held == 2 * 4 * 16 * 4
    # and what two names hold is there once
    assert tracer.plan().held == 2 * 4 * 16 * 4


def test_nothing_leaves_and_nothing_is_computed():
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert type(x).__name__ == "FakeTensor"
            return self.inner(x)

    model = NNsight(Fails())
    found = None
    kept: list[object] = []
    with model.plan(torch.ones(1, 2)) as tracer:
        found = model.inner.output.save()
        kept.append(found)
    assert found is None
    assert kept == []
    assert [one.location for one in tracer.plan().served] == ["inner.output"]


def test_a_plan_says_where_the_last_block_ends():
    model = wrapped(GPT2)
    with model.plan() as tracer:
        with tracer.invoke(LONG):
            model.transformer.h[1].output.save()
        with tracer.invoke(SHORT):
            model.transformer.h[0].output.save()
    assert tracer.plan().stops_at == "transformer.h.1.output"
    with model.plan(LONG) as tracer:
        tracer.result.save()
    assert tracer.plan().stops_at is None


def test_a_cache_is_kept_with_all_of_its_entries():
    model = wrapped(GPT2)
    with model.plan(MIDDLE) as tracer:
        cache = tracer.cache(modules=[model.transformer.h[0], model.lm_head])
    (kept,) = tracer.plan().kept
    assert kept.name == "cache"
    assert kept.shapes == ((1, 4, 16), (1, 4, 30))


def test_the_plan_of_an_intervention():
    @intervene
    def ablate(model, layer: int):
        model.transformer.h[layer].mlp.output[:] = 0
        return model.lm_head.output[:, -1]

    plan = ablate.plan(wrapped(GPT2), MIDDLE, layer=2)
    assert plan.locations == ("transformer.h.2.mlp.output", "lm_head.output")
    assert [(one.name, one.shapes) for one in plan.kept] == [("return value", ((1, 30),))]
    assert plan.stops_at == "lm_head.output"


def test_a_run_with_a_plan_has_it_and_its_values():
    model = wrapped(GPT2)
    with model.trace(MIDDLE, plan=True) as tracer:
        hidden = model.transformer.h[0].output.save()
    assert tracer.plan().locations == ("transformer.h.0.output",)
    assert tracer.plan().held == hidden.nbytes


def test_a_block_can_read_the_plan_of_its_run():
    model = wrapped(GPT2)
    found: list[int] = []
    with model.trace(MIDDLE, plan=True) as tracer:
        found.append(len(tracer.plan().served))
        model.transformer.h[0].output.save()
    assert found == [1]


def test_the_plan_of_a_generation_is_that_of_its_first_step():
    model = wrapped(GPT2)
    with model.generate(MIDDLE, max_new_tokens=2, plan=True) as tracer:
        model.transformer.h[0].output.save()
    assert tracer.plan().locations == ("transformer.h.0.output",)


def test_a_run_without_a_plan_says_how_to_have_one():
    with wrapped(GPT2).trace(MIDDLE) as tracer:
        pass
    with pytest.raises(NotRunningError, match="plan=True"):
        tracer.plan()


def test_an_error_of_the_block_is_raised():
    model = wrapped(GPT2)
    with pytest.raises(ZeroDivisionError):
        with model.plan(MIDDLE):
            1 / 0


def test_a_plan_is_printed_as_a_table():
    model = wrapped(GPT2)
    with model.plan(MIDDLE) as tracer:
        last = model.transformer.h[0].output[:, -1].save()
    text = str(tracer.plan())
    assert "transformer.h.0.output" in text
    assert "1×4×16" in text
    assert text.endswith("the forward is needed up to transformer.h.0.output; 256 B are kept")
