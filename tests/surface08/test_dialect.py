"""Section 12: loops without end, values that all invokes share, and hooks of a module called."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from nnsight_dsl import WriteError
from tests import models
from tests.models import assert_near, assert_same

NEW = {"max_new_tokens": 2, "min_new_tokens": 2}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("form", ["iter", "all"])
def test_row_what_follows_an_open_loop_runs_and_is_told(gpt2, form) -> None:
    with pytest.warns(UserWarning, match="loop over all steps ended") as caught:
        with gpt2.generate(models.SHORT, **NEW) as tracer:
            found = [].save()
            for _ in tracer.iter[:] if form == "iter" else tracer.all():
                found.append(gpt2.lm_head.output)
            after = tracer.result.save()
    assert len(found) == 2
    assert after.shape == (1, 4)
    assert [one.filename for one in caught] == [__file__]


def test_row_an_open_loop_in_a_trace_is_told(gpt2) -> None:
    for _ in range(3):
        # the runs after the first take the fast path
        with pytest.warns(UserWarning, match="loop over all steps ended"):
            with gpt2.trace(models.SHORT) as tracer:
                found = [].save()
                for _ in tracer.iter[:]:
                    found.append(gpt2.lm_head.output)
        assert len(found) == 1


def test_row_an_open_loop_over_tokens_is_told_once(gpt2) -> None:
    with pytest.warns(UserWarning, match="loop over all steps ended") as caught:
        with gpt2.generate(models.SHORT, **NEW) as tracer:
            for _ in tracer.iter[:]:
                gpt2.generator.streamer.output
                gpt2.lm_head.output
    assert len(caught) == 1


def test_row_an_open_loop_is_silent_in_06(gpt2_06) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with gpt2_06.generate(models.SHORT, **NEW) as tracer:
            for _ in tracer.iter[:]:
                gpt2_06.lm_head.output


class Positions(nn.Module):
    """Positions that are those of all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 2)
        self.last = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x[:, None] + self.table(torch.arange(5)))


def batching(base):
    class Batching(base):
        def _batch_size(self, *inputs, **kwargs):
            return len(inputs[0]) if inputs else 0

        def _batch(self, invokes, fn):
            return (torch.cat([inputs[0] for inputs, _ in invokes]),), {}

    return Batching


@pytest.fixture
def both(as_08):
    """The module, wrapped as programs for 0.8 and natively."""
    import nnsight

    import nnsight_dsl

    module = Positions()
    return batching(nnsight.NNsight)(module), batching(nnsight_dsl.NNsight)(module)


@pytest.mark.parametrize("is_whole", [True, False])
def test_row_a_value_of_all_invokes_is_written_for_all(both, is_whole) -> None:
    def run(model):
        with model.trace() as tracer:
            with tracer.invoke(torch.ones(1, 2)):
                if is_whole:
                    model.table.output = torch.zeros(5, 2)
                else:
                    model.table.output.zero_()
            with tracer.invoke(torch.zeros(2, 2)):
                positions = model.table.output.save()
                result = model.output.save()
        return positions, result

    model, native = both
    with torch.no_grad():
        with pytest.warns(UserWarning, match="is that of all") as caught:
            positions, result = run(model)
        assert caught[0].filename == __file__
        assert not positions.any()
        assert_same(result, model.last.bias.detach().expand(2, 5, 2))
        with pytest.raises(WriteError, match="no rows"):
            run(native)


def test_a_value_of_all_invokes_has_to_fit(both) -> None:
    with pytest.raises(WriteError, match="make it fit"):
        with both[0].trace() as tracer:
            with tracer.invoke(torch.ones(1, 2)):
                both[0].table.output = torch.zeros(1, 2)
            with tracer.invoke(torch.ones(1, 2)):
                both[0].output.save()


def test_row_a_call_in_a_block_runs_the_hooks_of_its_module(both) -> None:
    model, native = both
    seen = []
    handle = model._module.last.register_forward_hook(lambda *_: seen.append(1))
    try:
        for one, calls in ((model, 2), (native, 1)):
            seen.clear()
            with one.trace(torch.ones(1, 2)):
                ahead = one.last(one.table.output).save()
                served = one.last.output.save()
            assert len(seen) == calls
            assert ahead.shape == (5, 2)
            assert served.shape == (1, 5, 2)
    finally:
        handle.remove()


# section 2.4: functions that are run, and section 3: backends


def test_row_a_traceable_method_opens_a_block(as_08) -> None:
    from nnsight import NNsight
    from nnsight.intervention.envoy import traceable

    class Mine(NNsight):
        @traceable
        def run(self, x):
            return self._module(self._module(x))

    module = nn.Linear(2, 2)
    model = Mine(module)
    x = torch.ones(1, 2)
    with model.run(x) as tracer:
        result = tracer.result.save()
        with pytest.raises(AttributeError):
            tracer.no_such_thing
    assert_same(result, module(module(x)))
    assert_same(model.run(x), result)
    with model.trace(x, fn=lambda one: module(one) * 2) as tracer:
        twice = tracer.result.save()
    assert_same(twice, module(x) * 2)
    with model.trace(x, fn="run") as tracer:
        named = tracer.result.save()
    assert_same(named, result)


def test_row_a_backend_is_called_after_capture(gpt2) -> None:
    from nnsight.tracing.backend import Backend

    class Logging(Backend):
        def __call__(self, tracer):
            self.seen = tracer.info.code.co_filename, tracer.info.frame.f_code.co_name
            tracer.execute(tracer.info.code)

    backend = Logging()
    with gpt2.trace(models.SHORT, backend=backend) as tracer:
        hidden = gpt2.transformer.h[0].output.save()
    assert hidden.shape == (1, 2, 16)
    assert tracer.backend is backend
    assert backend.seen == (__file__, "test_row_a_backend_is_called_after_capture")


def test_row_a_tracer_of_its_own_has_the_behaviour_of_08(gpt2) -> None:
    from nnsight.intervention.tracer import InterleavingTracer

    class Mine(InterleavingTracer):
        def execute(self, code):
            self.has_run = True
            super().execute(code)

    with gpt2.trace(tracer_cls=Mine) as tracer:
        with tracer.invoke(models.SHORT):
            first = gpt2.transformer.h[0].output.save()
            tracer.stop()
        with tracer.invoke(models.LONG):
            logits = gpt2.lm_head.output.save()
    assert tracer.has_run
    assert first.shape[0] == 1
    with pytest.raises(NameError):
        logits
    with gpt2.trace(models.SHORT, tracer_cls=InterleavingTracer):
        hidden = gpt2.transformer.h[0].output.save()
    assert_near(hidden, first[:, -2:])
