"""Minimised failures: what stands in a backward block."""

import pytest
import torch
from torch import nn

from nnsight_dsl import NNsight


def test_an_element_of_a_plain_tuple_is_refused_as_in_python() -> None:
    class Plain:
        output = (1, 2)

    model = NNsight(nn.Linear(2, 2))
    h = Plain()
    with pytest.raises(TypeError, match="does not support item assignment"):
        with model.trace(torch.ones(1, 2)):
            with model.output.sum().backward():
                h.output[0] = 5
    assert h.output == (1, 2)
