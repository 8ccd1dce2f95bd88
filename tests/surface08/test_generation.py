"""Section 5: tokens step by step, and the deprecated place of the result."""

from __future__ import annotations

import warnings

import pytest
import torch

from tests import models
from tests.models import assert_same

NEW = {"max_new_tokens": 3, "min_new_tokens": 3}

# tests/surface08/test_dialect.py is about this warning
pytestmark = pytest.mark.filterwarnings("ignore:a loop over all steps ended:UserWarning")


def test_row_streamer_has_the_prompt_and_then_each_token(gpt2) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with gpt2.generate(models.SHORT, **NEW) as tracer:
            steps = [].save()
            for _ in tracer.iter[:3]:
                steps.append(gpt2.generator.streamer.output)
            ids = tracer.result.save()
    assert [tuple(one.shape) for one in steps] == [(1, 2), (1,), (1,)]
    assert_same(torch.cat([steps[0][0], *steps[1:]]), ids[0, :-1])


def test_row_streamer_of_invokes(gpt2) -> None:
    with gpt2.generate(**NEW) as tracer:
        with tracer.invoke(models.SHORT):
            steps = [].save()
            for _ in tracer.iter[:]:
                steps.append(gpt2.generator.streamer.output)
        with tracer.invoke(models.LONG):
            ids = tracer.result.save()
    assert [tuple(one.shape) for one in steps] == [(1, 8), (1,), (1,), (1,)]
    assert ids.shape == (1, 11)


def test_row_generator_output_warns_and_is_written(gpt2) -> None:
    from nnsight import NNsightDeprecationWarning

    with pytest.warns(NNsightDeprecationWarning, match=r"write tracer\.result") as caught:
        with gpt2.generate(models.SHORT, **NEW) as tracer:
            ids = gpt2.generator.output.save()
            gpt2.generator.output = ids * 0
            result = tracer.result.save()
    assert len(caught) == 2
    assert caught[0].filename == __file__
    assert ids.any()
    assert_same(result, ids * 0)


def test_row_generator_output_does_not_warn_in_06(gpt2_06) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with gpt2_06.generate(models.SHORT, **NEW):
            ids = gpt2_06.generator.output.save()
    assert ids.shape == (1, 5)


def test_row_gradients_in_a_generation_are_refused(gpt2) -> None:
    with pytest.raises(NotImplementedError, match=r"as all of model\.generate is"):
        with gpt2.generate(models.SHORT, **NEW):
            hidden = gpt2.transformer.h[0].output
            with gpt2.lm_head.output.sum().backward():
                gradient = hidden.grad.save()


def test_row_a_negative_step_is_a_value_error(gpt2) -> None:
    for key in (-1, [-2, 1], slice(-1, None)):
        with pytest.raises(ValueError, match="from its start"):
            with gpt2.generate(models.SHORT, **NEW) as tracer:
                for _ in tracer.iter[key]:
                    gpt2.lm_head.output
