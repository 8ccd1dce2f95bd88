"""Minimised failures: prompts of unequal length in one batch."""

import pytest
import torch
from transformers import BartConfig, BartForCausalLM, RobertaConfig, RobertaForCausalLM

from nnsight_dsl import BatchingError, LanguageModel
from tests import shrunk
from tests.models import EOS, LONG, PAD, SHORT, WORDS, assert_near, encoded, tokenizer

SIZES = {"vocab_size": len(WORDS), "pad_token_id": PAD, "bos_token_id": EOS, "eos_token_id": EOS}


@pytest.mark.parametrize("padding", [PAD, WORDS.index("the")])
def test_positions_of_roberta_start_behind_the_index_of_its_padding(padding: int) -> None:
    config = RobertaConfig(
        **SIZES | {"pad_token_id": padding}, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, initializer_range=0.4, is_decoder=True,
    )
    torch.manual_seed(0)
    module = RobertaForCausalLM(config).eval()
    model = LanguageModel(module, tokenizer=tokenizer())
    with model.trace() as tracer:
        with tracer.invoke(SHORT):
            short = model.output.logits.save()
        with tracer.invoke(LONG):
            long = model.output.logits.save()
    assert_near(short[:, -2:], module(**encoded(SHORT)).logits)
    assert_near(long, module(**encoded(LONG)).logits)


def test_a_decoder_that_counts_positions_by_the_place_in_the_batch_is_refused() -> None:
    config = BartConfig(
        **SIZES, d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16,
    )
    model = LanguageModel(BartForCausalLM(config).eval(), tokenizer=tokenizer())
    with pytest.raises(BatchingError, match="counts positions by the place in the batch"):
        with model.trace([SHORT, LONG]):
            logits = model.output.logits.save()


def test_a_place_that_sees_padding_only_is_no_number_with_eager_attention() -> None:
    module = shrunk.small_model("causal", "hrm_text")
    module.set_attn_implementation("eager")
    model = LanguageModel(module, tokenizer=tokenizer())
    with pytest.raises(BatchingError, match="with eager attention"):
        with model.trace([SHORT, LONG]):
            logits = model.output.logits.save()
