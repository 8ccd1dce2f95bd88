"""Minimised failures of inputs: what goes to the forward, and what is refused before it."""

import copy

import pytest
import torch
import transformers

from nnsight_dsl import BatchingError, InputError, LanguageModel
from tests import models
from tests.models import EOS, GPT2, LONG, PAD, SHORT, WORDS, assert_near, assert_same, token_ids


def padded(*texts: str) -> transformers.BatchEncoding:
    """What a user's own tokenizer makes of texts, padded on the left."""
    tokens = models.tokenizer()
    return tokens(list(texts), return_tensors="pt", padding=True, padding_side="left")


def new_whisper(kind):
    config = transformers.WhisperConfig(
        vocab_size=len(WORDS), d_model=16, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24,
        decoder_ffn_dim=24, num_mel_bins=8, max_source_positions=16, max_target_positions=32,
        decoder_start_token_id=EOS, pad_token_id=PAD, eos_token_id=EOS, bos_token_id=EOS,
        suppress_tokens=None, begin_suppress_tokens=None, init_std=0.4,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return kind(config).eval()


@pytest.fixture
def gpt2() -> LanguageModel:
    return models.wrapped(GPT2)


def test_a_cache_of_an_earlier_trace_is_looked_at_in_full():
    plain = models.new_llama()
    model = LanguageModel(models.new_llama(), tokenizer=models.tokenizer())
    with model.trace(LONG, use_cache=True):
        cache = model.output.past_key_values.save()
    expected = plain(torch.cat([token_ids(LONG), token_ids(SHORT)], 1)).logits[:, -2:]
    with model.trace(token_ids(SHORT), past_key_values=cache):
        logits = model.lm_head.output.save()
    assert_near(logits, expected)


def test_a_text_after_a_cache_has_no_mask_of_its_own():
    plain = models.new_llama()
    model = LanguageModel(models.new_llama(), tokenizer=models.tokenizer())
    with model.trace(LONG, use_cache=True):
        cache = model.output.past_key_values.save()
    expected = plain(torch.cat([token_ids(LONG), token_ids(SHORT)], 1)).logits[:, -2:]
    with model.trace(SHORT, past_key_values=cache):
        logits = model.lm_head.output.save()
    assert_near(logits, expected)


class PassesOn(transformers.LlamaForCausalLM):
    """As remote code and wrappers do."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def test_a_forward_that_passes_on_its_keywords_gets_its_mask():
    plain = models.new_llama()
    module = models.new_llama()
    module.__class__ = PassesOn
    model = LanguageModel(module, tokenizer=models.tokenizer())
    given = padded(SHORT, LONG)
    with model.trace(given):
        logits = model.lm_head.output[:, -1].save()
    assert_near(logits, plain(**given).logits[:, -1])
    mask = given["attention_mask"].clone()
    mask[1, 2] = 0
    with model.trace(input_ids=given["input_ids"], attention_mask=mask):
        masked = model.lm_head.output[:, -1].save()
    assert_near(masked, plain(input_ids=given["input_ids"], attention_mask=mask).logits[:, -1])
    with model.trace([SHORT, LONG]):
        texts = model.lm_head.output[:, -1].save()
    assert_near(texts, logits)


def test_positions_reach_a_decoder_below_a_forward_that_has_none():
    module = new_whisper(transformers.WhisperForCausalLM)
    model = LanguageModel(module, tokenizer=models.tokenizer())
    with model.trace() as tracer:
        with tracer.invoke(SHORT):
            short = model.proj_out.output[:, -2:].save()
        with tracer.invoke(LONG):
            long = model.proj_out.output.save()
    assert_near(short, module(token_ids(SHORT)).logits)
    assert_near(long, module(token_ids(LONG)).logits)
    options = {"min_new_tokens": 3, "max_new_tokens": 3, "do_sample": False}
    with model.generate([SHORT, LONG], **options) as tracer:
        together = tracer.result.save()
    alone = module.generate(token_ids(SHORT), **options)
    assert together[0, -3:].tolist() == alone[0, -3:].tolist()


def test_what_the_user_padded_on_the_left_is_what_the_texts_are(gpt2):
    expected = models.bare(GPT2)(token_ids(SHORT)).logits[0, -1]
    with gpt2.trace(padded(SHORT, LONG)):
        logits = gpt2.lm_head.output[0, -1].save()
    assert_near(logits, expected)
    with gpt2.trace(**padded(SHORT, LONG)):
        logits = gpt2.lm_head.output[0, -1].save()
    assert_near(logits, expected)


def test_positions_of_the_user_are_not_touched(gpt2):
    given = padded(SHORT, LONG)
    positions = torch.arange(8).expand(2, 8)
    with gpt2.trace(**given, position_ids=positions):
        seen = gpt2.transformer.wpe.input.save()
    assert torch.equal(seen, positions)


def test_ids_alone_go_in_without_a_mask(gpt2):
    with gpt2.trace(token_ids(SHORT)):
        given = gpt2.inputs.save()
    assert given[0] == ()
    assert set(given[1]) == {"input_ids"}


@pytest.mark.parametrize("where", ["trace", "invoke"])
def test_options_of_the_tokenizer_go_to_the_tokenizer(gpt2, where):
    options = {"truncation": True, "max_length": 4}
    if where == "trace":
        with gpt2.trace(LONG, **options):
            embedded = gpt2.transformer.wte.output.save()
    else:
        with gpt2.trace() as tracer:
            with tracer.invoke(LONG, **options):
                embedded = gpt2.transformer.wte.output.save()
    assert embedded.shape[1] == 4


def test_sound_goes_in_without_tokens():
    module = new_whisper(transformers.WhisperForConditionalGeneration)
    sound = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(0))
    expected = module.generate(input_features=sound, max_new_tokens=4)
    model = LanguageModel(module, tokenizer=models.tokenizer())
    with model.generate({"input_features": sound}, max_new_tokens=4) as tracer:
        as_mapping = tracer.result.save()
    with model.generate(input_features=sound, max_new_tokens=4) as tracer:
        as_keyword = tracer.result.save()
    with model.generate(max_new_tokens=4) as tracer:
        with tracer.invoke(input_features=sound[:1]):
            first = tracer.result.save()
        with tracer.invoke(input_features=sound[1:]):
            second = tracer.result.save()
    assert torch.equal(as_mapping, expected)
    assert torch.equal(as_keyword, expected)
    assert torch.equal(torch.cat([first, second]), expected)
    starts = torch.tensor([[EOS], [EOS]])
    with model.trace(input_features=sound, decoder_input_ids=starts):
        logits = model.proj_out.output.save()
    assert_same(logits, module(input_features=sound, decoder_input_ids=starts).logits)


@pytest.mark.parametrize("text", ["", "   ", ["the cat", ""]])
def test_a_text_without_tokens_is_refused(gpt2, text):
    with pytest.raises(InputError, match="has no tokens; give a text"):
        with gpt2.trace(text):
            gpt2.lm_head.output.save()


def test_a_number_is_no_prompt(gpt2):
    with pytest.raises(InputError, match=r"the input is the int 12345; token ids are a list, \["):
        with gpt2.trace(12345):
            gpt2.lm_head.output.save()


def test_a_text_for_a_model_of_sound_is_refused():
    model = LanguageModel(
        new_whisper(transformers.WhisperForConditionalGeneration), tokenizer=models.tokenizer()
    )
    for prompt in (SHORT, token_ids(SHORT), {"input_ids": token_ids(SHORT)}):
        with pytest.raises(InputError, match="takes input_features in their place; give input_feat"):
            with model.trace(prompt):
                model.proj_out.output.save()


def test_an_encoder_decoder_without_tokens_for_its_decoder_says_so():
    model = LanguageModel(models.new_t5(), tokenizer=models.tokenizer())
    with pytest.raises(ValueError) as caught:
        with model.trace(SHORT):
            model.lm_head.output.save()
    assert "give decoder_input_ids= or labels=" in caught.value.__notes__[0]


def test_encoder_outputs_stand_for_the_prompt():
    module = models.new_t5()
    model = LanguageModel(module, tokenizer=models.tokenizer())
    encoded = module.encoder(token_ids(LONG))
    start = [[PAD, 4]]
    expected = module(encoder_outputs=encoded, decoder_input_ids=torch.tensor(start)).logits
    with model.trace(encoder_outputs=encoded, decoder_input_ids=start):
        logits = model.lm_head.output.save()
    assert_same(logits, expected)
    options = {"max_new_tokens": 3, "do_sample": False}
    with model.generate(encoder_outputs=encoded, **options) as tracer:
        tokens = tracer.result.save()
    assert torch.equal(tokens, module.generate(encoder_outputs=encoded, **options))


def test_a_tensor_by_position_is_the_models_main_argument():
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=8, patch_size=4,
    )  # fmt: skip
    module = transformers.ViTForImageClassification(config).eval()
    model = LanguageModel(module, tokenizer=models.tokenizer())
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = module(images).logits
    with model.trace(images):
        logits = model.output.logits.save()
    assert_same(logits, expected)
    with model.trace() as tracer:
        with tracer.invoke(images[:1]):
            first = model.output.logits.save()
        with tracer.invoke(pixel_values=images[1:]):
            others = model.output.logits.save()
    assert_near(torch.cat([first, others]), expected)


@pytest.mark.parametrize("kind", [GPT2, models.LLAMA], ids=lambda kind: kind.name)
def test_a_mask_of_the_user_covers_cached_and_new_tokens(kind):
    model = models.wrapped(kind)
    batch = padded(SHORT, LONG)
    with model.trace(batch, use_cache=True):
        cache = model.output.past_key_values.save()
    new = token_ids("a dog", "the mat")
    mask = torch.cat([batch["attention_mask"], torch.ones(2, 2).long()], 1)
    with model.trace(new, past_key_values=cache, attention_mask=mask):
        logits = model.lm_head.output.save()
    assert_near(logits[:1], models.logits_of(kind, f"{SHORT} a dog")[:, -2:])
    assert_near(logits[1:], models.logits_of(kind, f"{LONG} the mat")[:, -2:])


def test_prompts_of_unequal_length_after_a_cache_are_refused(gpt2):
    with gpt2.trace([SHORT, "a dog"], use_cache=True):
        cache = gpt2.output.past_key_values.save()
    with pytest.raises(BatchingError, match="nothing says which of those are padding"):
        with gpt2.trace(["the", "red dog"], past_key_values=cache):
            gpt2.lm_head.output.save()
    with pytest.raises(BatchingError, match="nothing says which of those are padding"):
        with gpt2.trace(["the", "red"], past_key_values=cache, padding="max_length", max_length=4):
            gpt2.lm_head.output.save()
    with gpt2.trace(["the", "red"], past_key_values=cache):
        logits = gpt2.lm_head.output.save()
    assert_near(logits[:1], models.logits_of(GPT2, f"{SHORT} the")[:, -1:])


SMALL = {
    "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "num_labels": 3, "initializer_range": 0.4,
}  # fmt: skip


def new_bert(kind):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return kind(transformers.BertConfig(**SMALL)).eval()


def test_ids_of_choices_have_three_axes(gpt2):
    module = new_bert(transformers.BertForMultipleChoice)
    model = LanguageModel(module)
    ids = torch.arange(12).reshape(2, 3, 2) % len(WORDS)
    expected = module(ids, labels=torch.tensor([0, 2]))
    with model.trace(ids, labels=torch.tensor([0, 2])):
        output = model.output.save()
    assert_same(output.logits, expected.logits)
    assert_same(output.loss, expected.loss)
    with model.trace() as tracer:
        with tracer.invoke(ids[:1]):
            model.output.logits.save()
        with tracer.invoke(ids[1:]):
            logits = model.output.logits.save()
    assert_near(logits, expected.logits[1:])
    with pytest.raises(BatchingError, match="a different number of choices"):
        with model.trace() as tracer:
            with tracer.invoke(ids[:1]):
                model.output.logits.save()
            with tracer.invoke(ids[1:, :2]):
                model.output.logits.save()
    with pytest.raises(InputError, match=r"shape \(2, 3, 2\); token ids are"):
        with gpt2.trace(ids):
            gpt2.output.save()


@pytest.mark.parametrize("labels", [[2, 1], torch.tensor([2, 1])], ids=["list", "tensor"])
def test_labels_of_a_classifier_are_of_rows(labels):
    module = new_bert(transformers.BertForSequenceClassification)
    model = LanguageModel(module, tokenizer=models.tokenizer())
    alone = [
        module(token_ids(text), labels=torch.as_tensor(one)[None]).loss
        for text, one in zip([SHORT, LONG], labels, strict=True)
    ]
    with model.trace([SHORT, LONG], labels=labels):
        loss = model.output.loss.save()
    assert_near(loss, sum(alone) / 2)
    with model.trace() as tracer:
        with tracer.invoke(SHORT, labels=labels[:1]):
            model.output.logits.save()
        with tracer.invoke(LONG, labels=labels[1:]):
            loss = model.output.loss.save()
    assert_near(loss, sum(alone) / 2)
    with pytest.raises(BatchingError, match="labels is given to some invokes"):
        with model.trace() as tracer:
            with tracer.invoke(SHORT, labels=labels[:1]):
                model.output.logits.save()
            with tracer.invoke(LONG):
                model.output.logits.save()


@pytest.mark.parametrize("padding", [None, -1, len(WORDS)])
def test_padding_has_an_embedding_whatever_the_model_and_its_tokenizer_say(padding):
    module = models.new_gpt2()
    module.config.pad_token_id, module.config.eos_token_id = padding, 50256
    # of the test's own: it is given another token
    for tokenizer in (None, copy.deepcopy(models.tokenizer())):
        if tokenizer is not None:
            tokenizer.add_special_tokens({"pad_token": "[NEW]"})
        model = LanguageModel(module, tokenizer=tokenizer)
        with model.trace() as tracer:
            with tracer.invoke(token_ids(SHORT)):
                short = model.lm_head.output.save()
            with tracer.invoke(token_ids(LONG)):
                long = model.lm_head.output.save()
        assert_near(short[:, -2:], models.logits_of(GPT2, SHORT))
        assert_near(long, models.logits_of(GPT2, LONG))


def test_outputs_of_an_encoder_for_one_invoke_each_are_refused_in_words():
    module = models.new_t5()
    model = LanguageModel(module)
    with pytest.raises(BatchingError, match="encoder_outputs is of type BaseModelOutput"):
        with model.trace() as tracer:
            for _ in range(2):
                outputs = module.encoder(token_ids(LONG))
                with tracer.invoke(encoder_outputs=outputs, decoder_input_ids=[[PAD]]):
                    model.lm_head.output.save()
