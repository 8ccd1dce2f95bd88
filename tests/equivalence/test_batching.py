"""Several inputs as one batch: embeddings, masks, positions, and what cannot be joined."""

from typing import Any

import pytest
import torch

from nnsight_dsl import BatchingError, LanguageModel
from tests import models
from tests.models import (
    GPT2,
    LLAMA,
    LONG,
    MIDDLE,
    SHORT,
    Kind,
    assert_near,
    assert_same,
    bare,
    encoded,
    token_ids,
)


def _embedded(kind: Kind, prompt: str) -> torch.Tensor:
    embedded: torch.Tensor = models.at(bare(kind), kind.embedding)(token_ids(prompt)).detach()
    return embedded


def test_embeddings_of_unequal_length_are_padded(kind: Kind, model: LanguageModel) -> None:
    with model.trace() as tracer:
        with tracer.invoke(inputs_embeds=_embedded(kind, SHORT)):
            short = model.output.logits.save()
        with tracer.invoke(inputs_embeds=_embedded(kind, LONG)):
            long = model.output.logits.save()
    assert_near(kind.own(short, SHORT), models.logits_of(kind, SHORT))
    assert_near(kind.own(long, LONG), models.logits_of(kind, LONG))


def test_one_input_of_embeddings_is_the_plain_call(kind: Kind, model: LanguageModel) -> None:
    with model.trace(inputs_embeds=_embedded(kind, LONG)):
        logits = model.output.logits.save()
    assert_same(logits, models.logits_of(kind, LONG))


def test_gradients_reach_the_embeddings_that_were_given(gpt2: LanguageModel) -> None:
    given = _embedded(GPT2, LONG).requires_grad_()
    loss = bare(GPT2)(inputs_embeds=given).logits.pow(2).sum()
    (expected,) = torch.autograd.grad(loss, given)
    with gpt2.trace() as tracer:
        with tracer.invoke(inputs_embeds=_embedded(GPT2, SHORT)):
            pass
        with tracer.invoke(inputs_embeds=given):
            logits = gpt2.output.logits.save()
    (grad,) = torch.autograd.grad(logits.pow(2).sum(), given)
    assert_near(grad, expected)


def test_embeddings_beside_token_ids_are_refused(gpt2: LanguageModel) -> None:
    with pytest.raises(BatchingError, match="one batch has either"):
        with gpt2.trace() as tracer:
            with tracer.invoke(inputs_embeds=_embedded(GPT2, LONG)):
                one = gpt2.output.logits.save()
            with tracer.invoke(SHORT):
                other = gpt2.output.logits.save()


def test_a_mask_of_the_users_own_is_part_of_the_batch(gpt2: LanguageModel) -> None:
    ids = token_ids("[PAD] [PAD] the cat")
    mask = torch.tensor([[0, 0, 1, 1]])
    with gpt2.trace() as tracer:
        with tracer.invoke(input_ids=ids, attention_mask=mask):
            short = gpt2.output.logits.save()
        with tracer.invoke(LONG):
            long = gpt2.output.logits.save()
    assert_near(short[:, -2:], models.logits_of(GPT2, SHORT))
    assert_near(long, models.logits_of(GPT2, LONG))


def test_position_ids_of_one_invoke(gpt2: LanguageModel) -> None:
    moved = torch.tensor([[5, 6]])
    expected = bare(GPT2)(token_ids(SHORT), position_ids=moved).logits
    with gpt2.trace() as tracer:
        with tracer.invoke(input_ids=token_ids(SHORT), position_ids=moved):
            short = gpt2.output.logits.save()
        with tracer.invoke(LONG):
            long = gpt2.output.logits.save()
    assert_near(short[:, -2:], expected)
    assert_near(long, models.logits_of(GPT2, LONG))


def test_labels_of_one_invoke_are_its_loss(gpt2: LanguageModel) -> None:
    expected = bare(GPT2)(**encoded(SHORT), labels=token_ids(SHORT)).loss
    with gpt2.trace() as tracer:
        with tracer.invoke(SHORT, labels=token_ids(SHORT)):
            pass
        with tracer.invoke(LONG):
            pass
        with tracer.invoke():
            loss = gpt2.output.loss.save()
    assert_near(loss, expected)


def test_a_mask_of_four_dimensions_is_given_on(llama: LanguageModel) -> None:
    length = len(LONG.split())
    mask = torch.full((1, 1, length, length), torch.finfo(torch.float32).min).triu(1)
    # the first token is hidden from all others
    mask[..., 1:, 0] = torch.finfo(torch.float32).min
    expected = bare(LLAMA)(token_ids(LONG), attention_mask=mask).logits
    with llama.trace(token_ids(LONG), attention_mask=mask):
        logits = llama.output.logits.save()
    assert_same(logits, expected)
    assert not torch.equal(logits, models.logits_of(LLAMA, LONG))


def test_a_mask_that_cannot_be_padded_is_refused(llama: LanguageModel) -> None:
    mask = torch.zeros(1, 1, 2, 2)
    with pytest.raises(BatchingError, match="not one item for each token"):
        with llama.trace() as tracer:
            with tracer.invoke(input_ids=token_ids(SHORT), attention_mask=mask):
                short = llama.output.logits.save()
            with tracer.invoke(LONG):
                long = llama.output.logits.save()


def test_options_of_invokes_that_differ_are_refused(gpt2: LanguageModel) -> None:
    with pytest.raises(BatchingError, match="output_attentions is True for one invoke and False"):
        with gpt2.trace() as tracer:
            with tracer.invoke(SHORT, output_attentions=True):
                one = gpt2.output.logits.save()
            with tracer.invoke(MIDDLE, output_attentions=False):
                other = gpt2.output.logits.save()


def test_options_of_invokes_that_agree_are_those_of_the_run(gpt2: LanguageModel) -> None:
    with gpt2.trace(output_hidden_states=True) as tracer:
        with tracer.invoke(SHORT, output_hidden_states=True):
            states = gpt2.output.hidden_states.save()
        with tracer.invoke(MIDDLE):
            pass
    assert [state.shape for state in states] == [(1, 4, 16)] * 4


def test_tensors_of_unequal_shape_are_refused(gpt2: LanguageModel) -> None:
    with pytest.raises(BatchingError, match=r"a tensor of shape \(1, 3, 16\) .* \(1, 4, 16\)"):
        with gpt2.trace() as tracer:
            with tracer.invoke(SHORT, encoder_hidden_states=torch.zeros(1, 3, 16)):
                one = gpt2.output.logits.save()
            with tracer.invoke(MIDDLE, encoder_hidden_states=torch.zeros(1, 4, 16)):
                other = gpt2.output.logits.save()


@pytest.mark.parametrize("given", [{"attention_mask": [[1, 1]]}, {"labels": [[3, 4]]}], ids=str)
def test_an_input_without_a_prompt_is_refused(gpt2: LanguageModel, given: Any) -> None:
    with pytest.raises(TypeError, match="neither token ids nor embeddings"):
        with gpt2.trace(given):
            logits = gpt2.output.logits.save()


def test_a_tokenizer_of_the_users_own_is_given_one_text_at_a_time() -> None:
    plain = models.tokenizer()

    class Padding:
        """Pads what it is given together."""

        padding_side = "right"

        def __getattr__(self, name: str) -> Any:
            return getattr(plain, name)

        def __call__(self, texts: Any, **options: Any) -> Any:
            return plain(texts, padding=True, **options)

    model = LanguageModel(GPT2.new(), tokenizer=Padding())
    with model.trace() as tracer:
        with tracer.invoke(LONG):
            model.output.logits.save()
        with tracer.invoke(SHORT):
            together = model.output.logits[:, -1].save()
    with model.trace(SHORT):
        alone = model.output.logits[:, -1].save()
    assert_near(together, alone)
    with model.trace(LONG, truncation=True, max_length=3):
        cut = model.output.logits.save()
    assert cut.shape[1] == 3
