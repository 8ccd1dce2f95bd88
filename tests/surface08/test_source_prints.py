"""Section 2.6: the source below an operation, and an operation that does not exist."""

from __future__ import annotations

import pytest
import torch

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
            operation = eager.transformer.h[0].attn.source.attention_interface_0
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
            attention = eager.transformer.h[0].attn.source.attention_interface_0
            text = str(attention.source.torch_matmul_0.source)


def test_row_an_operation_that_does_not_exist_lists_those_that_do(eager) -> None:
    # r11: asked for by code that is not lowered
    def read(attention):
        return attention.source.attention_interface_0.source.no_such_0.output

    with pytest.raises(AttributeError) as caught:
        with eager.trace(models.SHORT):
            found = read(eager.transformer.h[0].attn).save()
    text = str(caught.value)
    assert "has no operation 'no_such_0'; it has 'query_size_0'" in text
    assert "known once" not in text
    assert "spell the operation out" not in text
