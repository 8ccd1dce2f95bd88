"""Architectures that do not keep the rows of a batch apart: refused where it would show."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nnsight_dsl import BatchingError, LanguageModel
from tests import models
from tests.architectures import new_minimax, new_recurrent_gemma, new_rwkv
from tests.models import LONG, SHORT, assert_near, assert_same, token_ids

GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
OTHER = "a bird"


def _wrapped(new: Callable[[], Any]) -> LanguageModel:
    return LanguageModel(new(), tokenizer=models.tokenizer())


def _padded(module: Any, *prompts: str) -> torch.Tensor:
    """The logits of a plain call of a padded batch, with its mask."""
    longest = max(len(prompt.split()) for prompt in prompts)
    rows, masks = [], []
    for prompt in prompts:
        ids = token_ids(prompt)[0]
        missing = longest - len(ids)
        rows.append(torch.cat([ids.new_zeros(missing), ids]))
        masks.append(torch.cat([ids.new_zeros(missing), torch.ones_like(ids)]))
    logits: torch.Tensor = module(torch.stack(rows), attention_mask=torch.stack(masks)).logits
    return logits


IGNORING = pytest.mark.parametrize("new", [new_rwkv, new_recurrent_gemma])


@IGNORING
def test_these_do_ignore_the_mask(new: Callable[[], Any]) -> None:
    # what the refusal is for: a release of transformers may mend it
    module = new()
    alone = module(token_ids(SHORT)).logits
    assert not torch.allclose(_padded(module, SHORT, LONG)[:1, -2:], alone, atol=1e-2)


@IGNORING
def test_unequal_prompts_are_refused(new: Callable[[], Any]) -> None:
    model = _wrapped(new)
    with pytest.raises(BatchingError, match="ignores the attention mask"):
        with model.trace() as tracer:
            with tracer.invoke(SHORT):
                short = model.output.logits.save()
            with tracer.invoke(LONG):
                long = model.output.logits.save()
    with pytest.raises(BatchingError, match="trace them one by one"):
        with model.trace([SHORT, LONG]):
            both = model.output.logits.save()


@IGNORING
def test_prompts_of_one_length_get_what_they_get_alone(new: Callable[[], Any]) -> None:
    model = _wrapped(new)
    with model.trace() as tracer:
        with tracer.invoke(SHORT):
            short = model.output.logits.save()
        with tracer.invoke(OTHER):
            other = model.output.logits.save()
    module = new()
    assert_near(short, module(token_ids(SHORT)).logits)
    assert_near(other, module(token_ids(OTHER)).logits)


def test_reads_and_an_edit_of_rwkv_are_those_of_hooks() -> None:
    model, module = _wrapped(new_rwkv), new_rwkv()
    path = "rwkv.blocks.1.attention"
    # RWKV returns the output and its state, and adds to the output in place
    with models.recorded(module, ["rwkv.blocks.0.feed_forward"]) as seen:
        with models.hooked(module, {path: lambda output: (output[0] * 2, *output[1:])}):
            expected = module(token_ids(LONG)).logits
    with model.trace(LONG):
        model.get(path).output = (model.get(path).output[0] * 2, *model.get(path).output[1:])
        logits = model.output.logits.save()
    assert_same(logits, expected)


def test_rwkv_generates_from_one_prompt() -> None:
    model, module = _wrapped(new_rwkv), new_rwkv()
    with model.generate(LONG, **GREEDY) as tracer:
        tokens = tracer.result.save()
    assert_same(tokens, module.generate(**models.encoded(LONG), **GREEDY))


def test_rwkv_mixes_the_rows_of_a_generation_and_is_refused() -> None:
    model, module = _wrapped(new_rwkv), new_rwkv()
    alone = module.generate(**models.encoded(SHORT), **GREEDY)
    assert not torch.equal(module.generate(**models.encoded(SHORT, OTHER), **GREEDY)[:1], alone)
    with pytest.raises(BatchingError, match="mixes the rows"):
        with model.generate(**GREEDY) as tracer:
            with tracer.invoke(SHORT):
                short = tracer.result.save()
            with tracer.invoke(OTHER):
                other = tracer.result.save()


def test_minimax_traces_padded_prompts_and_does_not_generate_from_them() -> None:
    model, module = _wrapped(new_minimax), new_minimax()
    with model.trace() as tracer:
        with tracer.invoke(SHORT):
            short = model.output.logits.save()
        with tracer.invoke(LONG):
            long = model.output.logits.save()
    assert_near(short[:, -2:], module(token_ids(SHORT)).logits)
    assert_near(long, module(token_ids(LONG)).logits)
    with pytest.raises(BatchingError, match="keeps the padding in the state"):
        with model.generate([SHORT, LONG], **GREEDY) as tracer:
            tokens = tracer.result.save()
