"""Labels with one item for each row, of several invokes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from nnsight_dsl import InputError, TransformersModel
from tests.models import PAD, WORDS, assert_near, encoded, tokenizer
from tests.surface08.checkpoints import SIZES


def new(kind: str) -> Any:
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), max_position_embeddings=64, initializer_range=0.4,
        pad_token_id=PAD, **SIZES,
    )  # fmt: skip
    return getattr(transformers, kind)(config).eval()


def test_positions_of_answers_are_one_for_each_row() -> None:
    module = new("BertForQuestionAnswering")
    model = TransformersModel(module, tokenizer=tokenizer())
    with model.trace() as tracer:
        with tracer.invoke("the cat sat", start_positions=1, end_positions=2):
            pass
        with tracer.invoke("a dog ran", start_positions=[0], end_positions=torch.tensor([1])):
            pass
        with tracer.invoke():
            loss = model.output.loss.save()
    expected = module(
        **encoded("the cat sat", "a dog ran"),
        start_positions=torch.tensor([1, 0]),
        end_positions=torch.tensor([2, 1]),
    ).loss
    assert_near(loss, expected)


def test_more_labels_than_rows_are_refused_at_their_line() -> None:
    model = TransformersModel(new("BertForQuestionAnswering"), tokenizer=tokenizer())
    with pytest.raises(InputError, match="2 items") as caught:
        with model.trace() as tracer:
            with tracer.invoke("the cat", start_positions=[0, 1]):  # this line
                model.output.save()
    assert "# this line" in str(caught.traceback[-1].statement)


class Masked(nn.Module):
    """A model whose forward takes the mask of special tokens."""

    main_input_name = "input_ids"

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(WORDS), 4)

    def forward(self, input_ids: Any, attention_mask: Any = None, special_tokens_mask: Any = None):
        return self.embed(input_ids) * (1 - special_tokens_mask)[..., None]


def test_padding_is_special() -> None:
    model = TransformersModel(Masked(), tokenizer=tokenizer())
    with model.trace() as tracer:
        with tracer.invoke("the cat", special_tokens_mask=[1, 0]):
            pass
        with tracer.invoke("a red dog", special_tokens_mask=[0, 0, 0]):
            pass
        with tracer.invoke():
            mask = model.inputs[1]["special_tokens_mask"].save()
    assert mask.tolist() == [[1, 0, 1], [0, 0, 0]]
