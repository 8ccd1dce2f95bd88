"""Section 2.4: eproperties."""

from __future__ import annotations

import torch
from torch import nn

from tests.models import assert_same


def test_row_an_eproperty_is_a_view_or_a_value_of_ones_own(as_08) -> None:
    from nnsight import NNsight
    from nnsight.intervention.envoy import traceable
    from nnsight.intervention.eproperty import eproperty

    class MyModel(NNsight):
        @eproperty(key="output")
        def heads(self, value):
            return value.view(len(value), 2, 2).clone()

        @heads.transform
        def heads(self, view, raw):
            return view.reshape(raw.shape)

        @eproperty(description="per-step telemetry")
        def telemetry(self, value):
            return value

        @traceable
        def run(self, x):
            return type(self).telemetry.provide(self, self._module(x))

    module = nn.Linear(4, 4)
    model = MyModel(module)
    x = torch.ones(1, 4)
    with model.trace(x) as tracer:
        model.heads[:, 1] = 0
        result = tracer.result.save()
    assert_same(result[:, :2], module(x)[:, :2])
    assert not result[:, 2:].any()
    with model.run(x) as tracer:
        value = model.telemetry.save()
        model.telemetry = value * 2
        result = tracer.result.save()
    assert_same(value, module(x))
    assert_same(result, value * 2)
