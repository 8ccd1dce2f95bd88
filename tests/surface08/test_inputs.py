"""Section 6.2: options of the tokenizer on an invoke, and chats."""

from __future__ import annotations

import pytest
import torch

from tests import models
from tests.models import PAD, assert_same

NEW = {"max_new_tokens": 2, "min_new_tokens": 2}
TEMPLATE = "{% for one in messages %}{{ one['content'] }} {% endfor %}"
CHAT = [{"role": "user", "content": models.SHORT}, {"role": "assistant", "content": "ran"}]


@pytest.fixture
def chatting(gpt2):
    gpt2.tokenizer.chat_template = TEMPLATE
    return gpt2


def ids_of(text: str) -> torch.Tensor:
    return torch.tensor(models.tokenizer()([text]).input_ids)


def test_row_truncation_of_one_invoke(gpt2) -> None:
    with gpt2.trace() as tracer:
        with tracer.invoke(models.LONG, truncation=True, max_length=3):
            cut = gpt2.input.save()
        with tracer.invoke(models.LONG):
            whole = gpt2.input.save()
    assert_same(whole, ids_of(models.LONG))
    assert_same(cut[:, -3:], whole[:, :3])
    assert (cut[:, :-3] == PAD).all()


def test_row_truncation_of_one_invoke_of_a_generation(gpt2) -> None:
    with gpt2.generate(**NEW) as tracer:
        with tracer.invoke(models.LONG, truncation=True, max_length=3):
            cut = tracer.result.save()
        with tracer.invoke(models.LONG):
            whole = tracer.result.save()
    alone = gpt2.generate(ids_of(models.LONG)[:, :3], **NEW)
    assert_same(cut[:, -5:], alone)
    assert whole.shape == (1, 10)


def test_row_padding_is_on_the_left_for_a_tokenizer_that_was_given(gpt2) -> None:
    with gpt2.trace([models.SHORT, models.LONG], padding=True):
        ids = gpt2.input.save()
    with gpt2.trace() as tracer:
        with tracer.invoke(models.SHORT, padding="max_length", max_length=4):
            filled = gpt2.input.save()
    assert_same(ids[:1, -2:], ids_of(models.SHORT))
    assert_same(filled, torch.cat([torch.full((1, 2), PAD), ids_of(models.SHORT)], 1))


def test_row_a_chat_is_written_by_the_template(chatting) -> None:
    expected = ids_of(models.SHORT + " ran")
    with chatting.trace(CHAT):
        one = chatting.input.save()
    with chatting.trace([CHAT, CHAT]):
        two = chatting.input.save()
    with chatting.scan(CHAT):
        shape = chatting.input.shape.save()
    assert_same(one, expected)
    assert_same(two, torch.cat([expected, expected]))
    assert shape == expected.shape


def test_row_a_chat_in_an_invoke_and_in_a_generation(chatting) -> None:
    alone = chatting.generate(ids_of(models.SHORT + " ran"), **NEW)
    assert_same(chatting.generate(CHAT, **NEW), alone)
    with chatting.generate(**NEW) as tracer:
        with tracer.invoke(CHAT):
            chat = tracer.result.save()
        with tracer.invoke(models.LONG):
            tracer.result.save()
    assert_same(chat[:, -alone.shape[1] :], alone)
