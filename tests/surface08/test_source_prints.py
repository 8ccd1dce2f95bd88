"""Section 2.6: names of operations, the source below one, and one that does not exist."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests import models
from tests.models import assert_same


@pytest.fixture
def eager(as_08: None):
    from nnsight import TransformersModel

    module = models.new_gpt2(attn_implementation="eager")
    return TransformersModel(module, tokenizer=models.tokenizer())


def test_row_source_below_an_operation_is_printed_inside_a_run(eager) -> None:
    # r10, as nnterp prints it: from the first run on, and the run goes on behind it
    for _ in range(2):
        with eager.trace(models.SHORT):
            operation = eager.transformer.h[0].attn.source.attention_interface_1
            text = str(operation.source).save()
            weights = operation.output[1].save()
            logits = eager.lm_head.output.save()
        assert "def eager_attention_forward" in text
        assert "torch_matmul_0" in text
        assert weights.ndim == 4
        with torch.no_grad():
            ids = models.tokenizer()(models.SHORT, return_tensors="pt")
            assert_same(logits, eager._module(**ids).logits)


def test_row_source_of_an_operation_without_python_code_is_refused(eager) -> None:
    with pytest.raises(AttributeError, match="not written in Python"):
        with eager.trace(models.SHORT):
            attention = eager.transformer.h[0].attn.source.attention_interface_1
            text = str(attention.source.torch_matmul_0.source)


def test_row_an_operation_that_does_not_exist_lists_those_that_do(eager) -> None:
    # r11: asked for by code that is not lowered
    def read(attention):
        return attention.source.attention_interface_1.source.no_such_0.output

    with pytest.raises(AttributeError) as caught:
        with eager.trace(models.SHORT):
            found = read(eager.transformer.h[0].attn).save()
    text = str(caught.value)
    assert "has no operation 'no_such_0'; it has 'query_size_0'" in text
    assert "known once" not in text
    assert "spell the operation out" not in text


class Named(nn.Module):
    """A forward with assignments and calls of one name."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        f = torch.relu
        y = f(x)
        y = torch.add(
            f(y),
            torch.ones(2),
        )
        self.kept = y
        a, b = y, x
        low, high = torch.aminmax(y)
        y += 1
        p = q = y
        for part in (p, q):
            y = y.add(part).neg()
        g = lambda one: f(one)  # noqa: E731
        if (most := y.max()) > 0:
            y = g(y - most)
        return f(y)


NAMES = (
    "f_0 f_1 y_0 f_2 torch_ones_0 torch_add_0 y_1 a_0 b_0 torch_aminmax_0 y_add_0 neg_0 y_2 g_0 "
    "y_max_0 g_1 y_3 f_4"
)


@pytest.fixture
def named(as_08):
    from nnsight import NNsight

    return NNsight(Named())


def test_row_calls_and_assignments_of_a_name_have_one_counter(named) -> None:
    # the call in the lambda is f_3, and belongs to another function
    assert named.source.names == tuple(NAMES.split())
    x = torch.tensor([1.0, -1.0])
    with named.trace(x):
        first = named.source.f_1.output.save()
        added = named.source.torch_add_0.inputs.save()
        kept = named.source.b_0.output.save()
        last = named.source.f_4.output.save()
        result = named.output.save()
    assert_same(first, torch.relu(x))
    assert_same(added[0][1], torch.ones(2))
    assert_same(kept, x)
    assert_same(last, result)
    with named.trace(x):
        named.source.torch_add_0.output[:] = 0
        zeros = named.source.a_0.output.clone().save()
    assert not zeros.any()


def test_row_a_source_iterates_over_operations(named) -> None:
    from nnsight.intervention.source import SourceEnvoy

    operations = list(named.source)
    assert [one._name for one in operations] == NAMES.split()
    assert all(isinstance(one, SourceEnvoy) for one in operations)
    assert "torch_add_0" in str(named.source)
    assert "-->         y = torch.add(" in str(named.source.torch_add_0)


def test_row_an_unknown_operation_lists_the_names(named) -> None:
    for ask in (lambda: named.source.nothing_0, lambda: named.source.torch_mul_0):
        with pytest.raises(AttributeError) as caught:
            ask()
        assert all(f"'{name}'" in str(caught.value) for name in NAMES.split())


def test_row_source_not_available(named, eager) -> None:
    from nnsight.intervention.source import SourceNotAvailable

    layer = eager.transformer.h[0]
    with pytest.raises(SourceNotAvailable, match="known in a run"):
        layer.attn.source.attention_interface_1.source
    with pytest.raises(SourceNotAvailable, match=r"calls the module transformer\.h\.0\.attn"):
        layer.source.self_attn_0.source
    with pytest.raises(SourceNotAvailable, match=r"calls the module transformer\.h\.0\.attn"):
        with eager.trace(models.SHORT):
            layer.source.self_attn_0.source.self_c_attn_0.output.save()
    with pytest.raises(SourceNotAvailable, match=r"is (not a Python|a C) function"):
        with named.trace(torch.ones(2)):
            named.source.torch_ones_0.source.x_0.output.save()


def test_row_an_operation_below_is_counted_in_the_same_way(eager) -> None:
    with eager.trace(models.SHORT):
        inside = eager.transformer.h[0].attn.source.attention_interface_1.source
        scores = inside.torch_matmul_0.output.save()
        names = inside.names.save()
    assert scores.ndim == 4
    assert "attn_weights_0" in names
    assert "attn_weights" not in names


def test_in_06_calls_are_counted_alone(gpt2_06) -> None:
    names = gpt2_06.transformer.h[0].attn.source.names
    assert "attention_interface_0" in names
    assert "attention_interface_1" not in names
    assert list(gpt2_06.transformer.h[0].attn.source) == list(names)
