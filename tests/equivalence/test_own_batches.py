"""Batches that a subclass makes, by _batch_size and _batch: each row as in the plain module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nnsight_dsl import BatchingError, InvokeError, LanguageModel, NNsight
from tests import models
from tests.models import GPT2, assert_near, assert_same, bare

TWO, THREE = torch.randn(2, 4), torch.randn(3, 4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.last(torch.relu(self.first(x)) * scale)


class Rows(NNsight):
    calls: int = 0

    def _batch_size(self, *inputs: Any, **kwargs: Any) -> int:
        return len(inputs[0]) if inputs else 0

    def _batch(self, invokes: Any, fn: Any) -> Any:
        type(self).calls += 1
        assert fn is self._module
        return (torch.cat([inputs[0] for inputs, _ in invokes]),), {}


@pytest.fixture
def net() -> Net:
    return Net().eval()


def test_each_invoke_has_its_rows(net: Net) -> None:
    model = Rows(net)
    with model.trace() as tracer:
        with tracer.invoke(TWO):
            two = model.output.save()
        with tracer.invoke(THREE):
            model.first.output[:] = 0
            three = model.output.save()
        with tracer.invoke():
            both = model.output.save()
    assert_near(two, net(TWO))
    assert_near(three, net.last.bias.expand(3, 2))
    assert_near(both, torch.cat([two, three]))


def test_a_single_input_is_batched_as_well(net: Net) -> None:
    model = Rows(net)
    for count in range(1, 4):
        before = Rows.calls
        with model.trace(TWO):
            hidden = model.first.output.save()
        assert Rows.calls == before + 1, count
        assert_near(hidden, net.first(TWO))
    assert_near(model.trace(TWO, trace=False), net(TWO))


def test_keywords_of_the_trace_are_for_all_invokes(net: Net) -> None:
    model = Rows(net)
    with model.trace(scale=2.0) as tracer:
        with tracer.invoke(TWO):
            two = model.output.save()
        with tracer.invoke(THREE):
            three = model.output.save()
    assert_near(two, net(TWO, 2.0))
    assert_near(three, net(THREE, 2.0))
    with pytest.raises(InvokeError, match="its own input"):
        with model.trace(TWO) as tracer:
            with tracer.invoke(THREE):
                model.output.save()


def test_a_scan_and_an_edit_have_such_a_batch(net: Net) -> None:
    model = Rows(net)
    with model.edit() as edited:
        model.first.output[:] = 0
    with edited.trace() as tracer:
        with tracer.invoke(TWO):
            two = edited.output.save()
        with tracer.invoke(THREE):
            edited.output.save()
    assert_near(two, net.last.bias.expand(2, 2))
    with model.scan() as tracer:
        with tracer.invoke(TWO):
            shape = model.output.shape
        with tracer.invoke(THREE):
            model.output.save()
    assert shape == (2, 2)


def test_a_language_model_can_have_its_own(net: Net) -> None:
    class First(LanguageModel):
        def _batch_size(self, *inputs: Any, **kwargs: Any) -> int:
            return len(inputs)

        def _batch(self, invokes: Any, fn: Any) -> Any:
            ids = [self.tokenizer(inputs[0]).input_ids[:2] for inputs, _ in invokes]
            return (), {"input_ids": torch.tensor(ids)}

    model = First(bare(GPT2), tokenizer=models.tokenizer())
    with model.trace() as tracer:
        with tracer.invoke(models.SHORT):
            short = model.lm_head.output.save()
        with tracer.invoke(models.LONG):
            long = model.lm_head.output.save()
    ids = models.tokenizer()([models.LONG], return_tensors="pt").input_ids[:, :2]
    assert short.shape[:2] == long.shape[:2] == (1, 2)
    assert_near(long, bare(GPT2)(ids).logits)
    with model.generate(max_new_tokens=1, min_new_tokens=1) as tracer:
        with tracer.invoke(models.LONG):
            tokens = tracer.result.save()
    assert_same(tokens[:, :2], ids)


def test_without_one_several_inputs_are_refused(net: Net) -> None:
    model = NNsight(net)
    with pytest.raises(BatchingError, match=r"_batch_size and _batch \(docs/models.md\)"):
        with model.trace() as tracer:
            with tracer.invoke(TWO):
                model.output.save()
            with tracer.invoke(THREE):
                model.output.save()


def test_rows_that_do_not_fit_are_refused(net: Net) -> None:
    class Wrong(Rows):
        def _batch_size(self, *inputs: Any, **kwargs: Any) -> int:
            return 1 if inputs else 0

    model = Wrong(net)
    with pytest.raises(BatchingError, match=r"tensors of \[5\] rows, .* gives the inputs 1 \+ 1"):
        with model.trace() as tracer:
            with tracer.invoke(TWO):
                model.output.save()
            with tracer.invoke(THREE):
                model.output.save()
    with pytest.raises(BatchingError, match="gives input 1 of the invokes no rows"):
        with Rows(net).trace() as tracer:
            with tracer.invoke(TWO):
                pass
            with tracer.invoke(x=THREE):
                pass
