"""Inputs of a language model: each form that it runs on, and each that is refused before."""

import re
import traceback
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from nnsight_dsl import InputError, LanguageModel, NNsight, NoInputError
from tests import models
from tests.models import GPT2, LONG, SHORT, WORDS, assert_near, assert_same, token_ids

IDS = token_ids(SHORT)
USER = {"role": "user", "content": SHORT}
TEMPLATE = (
    "{% for one in messages %}{{ one['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}ten{% endif %}{% if is_brief %} nine{% endif %}"
)

VALID = {
    "a text": SHORT,
    "texts": [SHORT],
    "a tuple of texts": (SHORT,),
    "an array of texts": np.array([SHORT]),
    "a list": IDS[0].tolist(),
    "a list of lists": IDS.tolist(),
    "a tuple": tuple(IDS[0].tolist()),
    "numpy ints": [np.int64(one) for one in IDS[0].tolist()],
    "tensors of one number": list(IDS[0]),
    "tensors": [IDS[0]],
    "arrays": [IDS[0].numpy()],
    "a vector": IDS[0],
    "int64": IDS,
    "int32": IDS.int(),
    "int8": IDS.to(torch.int8),
    "uint16": IDS.numpy().astype(np.uint16),
    "an array": IDS.numpy(),
    "an array of objects": np.array(IDS[0].tolist(), dtype=object),
    "an encoding": models.tokenizer()(SHORT, return_tensors="pt"),
    "an encoding of lists": models.tokenizer()(SHORT),
    "an encoding with offsets": models.tokenizer()(
        SHORT, return_tensors="pt", return_offsets_mapping=True, return_special_tokens_mask=True
    ),
    "a mapping": {"input_ids": IDS},
}

NO_TOKENS = "has no tokens; give a text"
INVALID = {
    "an empty text": ("", NO_TOKENS),
    "spaces": ("   ", NO_TOKENS),
    "an empty text in a list": ([SHORT, ""], "the text '' has no tokens"),
    "an empty list": ([], "the input is an empty list; give at least one prompt"),
    "an empty tuple": ((), "the input is an empty tuple"),
    "an empty row": ([[]], "a row of the input is empty"),
    "an empty tensor": (torch.zeros(1, 0, dtype=torch.long), "row 0 of input_ids has no tokens"),
    "no rows": (torch.zeros(0, 3, dtype=torch.long), "input_ids has no rows"),
    "an int": (12345, r"the input is the int 12345; token ids are a list, \[12345\]"),
    "a float": (1.5, "the input is the float 1.5; give a text"),
    "a bool": (True, "the input is True; give a text"),
    "None": (None, "the input is None; give a text"),
    "a set": ({"the"}, "a set has no order: give a list"),
    "bytes": (b"the cat", r"is the bytes b'the cat'; a prompt is a text: decode it"),
    "bytes in a list": ([b"the cat"], "item 0 of the input is the bytes"),
    "a range": (range(3), r"an object of type range; give a list: list\(value\)"),
    "a generator": ((one for one in "ab"), r"type generator; give a list: list\(value\)"),
    "an object": (object(), "an object of type object; give a text"),
    "a text and ids": ([SHORT, [3, 4]], r"item 0 .* 'the cat', and item 1 is the list \[3, 4\]"),
    "an id and a text": ([3, SHORT], "item 0 of the input is the int 3, and item 1 is the text"),
    "None in a list": ([None], "item 0 of the input is None"),
    "None beside texts": ([SHORT, None], "and item 1 is None; give prompts of one form"),
    "None beside ids": ([3, None], "and item 1 is None"),
    "None in an array": (np.array([None, SHORT], dtype=object), "item 0 of the input is None"),
    "bools": ([True, False], "item 0 of input_ids is True; token ids are integers"),
    "a bool in a row": ([[3, True]], "item 1 of input_ids is True"),
    "floats": ([3, 4.5], "item 1 of input_ids is the float 4.5"),
    "a tensor of floats": (torch.ones(1, 2), "type torch.float32; token ids are integers: write"),
    "a tensor of bools": (torch.tensor([[True]]), "type torch.bool; token ids are integers"),
    "an array of floats": (np.array([3.0]), "type torch.float64; token ids are integers"),
    "a negative id": ([3, -1], r"the id -1 in row 0, and GPT2LMHeadModel has embeddings for 0 to"),
    "an id too large": ([[3], [30]], "the id 30 in row 1, and GPT2LMHeadModel has embeddings"),
    "a huge id": ([10**30], r"input_ids has the id 1000"),
    "one number": (torch.tensor(3), r"a tensor of shape \(\); token ids are \[tokens\] or"),
    "three axes": (torch.ones(1, 2, 3).long(), r"shape \(1, 2, 3\); token ids are"),
    "rows of two axes": ([IDS, IDS], r"row 0 of input_ids is a tensor of shape \(1, 2\); a row"),
    "lists in lists in lists": ([[[3]]], r"item 0 of input_ids is the list \[3\]"),
    "texts in a list in a list": ([["the", "cat"]], "a list of texts in a list"),
    "an empty mapping": ({}, "neither token ids nor embeddings"),
    "a mapping of other things": ({"text": SHORT}, "'text' was given, and neither"),
    "a mapping with a mask only": ({"attention_mask": [[1, 1]]}, "neither token ids nor embedd"),
    "ids that are None": ({"input_ids": None}, "neither token ids nor embeddings"),
    "mappings": ([{"input_ids": [3]}], r"the keys \['input_ids'\]; a chat is a list of messages"),
    "a mask that is a text": ({"input_ids": [3], "attention_mask": "x"}, "no tensor can be made"),
    "a mask too short": ({"input_ids": [[3, 4]], "attention_mask": [[1]]}, "has 1 items in row 0"),
    "a mask of two rows": ({"input_ids": [3], "attention_mask": [[1], [1]]}, "mask has 2 rows"),
    "a message": (USER, r"a single message was given; a chat is a list: write \[message\]"),
    "a chat": ([USER], "has no chat template, as is usual for base models; set tokenizer.chat_"),
    "a chat with None": ([USER, None], "a mapping with the keys .*, and item 1 is None"),
    "a text too long": ("the " * 65, "a row of 65 tokens, and GPT2LMHeadModel has 64 positions"),
    "ids too long": ([[3] * 70], "a row of 70 tokens, and GPT2LMHeadModel has 64 positions"),
}


@pytest.fixture(scope="module")
def chatting() -> LanguageModel:
    """A model whose tokenizer has a template of chats."""
    backend = models.tokenizer().backend_tokenizer
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", eos_token="[EOS]", unk_token="[UNK]",
        model_input_names=["input_ids", "attention_mask"], chat_template=TEMPLATE,
    )  # fmt: skip
    return LanguageModel(models.new_gpt2(), tokenizer=words)


@pytest.mark.parametrize("name", VALID)
def test_an_input_of_each_form_is_the_plain_call(gpt2: LanguageModel, name: str) -> None:
    expected = models.logits_of(GPT2, SHORT)
    with gpt2.trace(VALID[name]):
        logits = gpt2.lm_head.output.save()
    assert_near(logits, expected)
    with gpt2.trace() as tracer:
        with tracer.invoke(LONG):
            pass
        with tracer.invoke(VALID[name]):
            logits = gpt2.lm_head.output[:, -2:].save()
    assert_near(logits, expected)
    plain = models.bare(GPT2).generate(IDS, max_new_tokens=3, do_sample=False)
    with gpt2.generate(VALID[name], max_new_tokens=3, do_sample=False) as tracer:
        tokens = tracer.result.save()
    assert torch.equal(tokens, plain)


@pytest.mark.parametrize("where", ["trace", "invoke", "generate", "scan"])
@pytest.mark.parametrize("name", INVALID)
def test_an_input_that_is_none_is_refused_at_its_line(
    gpt2: LanguageModel, name: str, where: str
) -> None:
    value, message = INVALID[name]
    with pytest.raises(InputError) as caught:
        if where == "trace":
            with gpt2.trace(value):  # here
                gpt2.lm_head.output.save()
        elif where == "generate":
            with gpt2.generate(value, max_new_tokens=2) as tracer:  # here
                tracer.result.save()
        elif where == "scan":
            with gpt2.scan(value):  # here
                width = gpt2.lm_head.output.shape
        else:
            with gpt2.trace() as tracer:
                with tracer.invoke(SHORT):
                    pass
                with tracer.invoke(value):  # here
                    gpt2.lm_head.output.save()
    assert re.search(message, str(caught.value)), str(caught.value)
    fact, _, remedy = str(caught.value).partition("; ")
    assert fact and remedy
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert {frame.filename for frame in frames} == {__file__}
    assert str(frames[-1].line).endswith("# here")


def test_a_module_of_any_kind_takes_any_input() -> None:
    class Returns(torch.nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return args, kwargs

    model = NNsight(Returns())
    for value in (12345, True, {"a"}, b"x", [], "", None):
        with model.trace(value, max_tokens=3):
            result = model.output.save()
        assert result == ((value,), {"max_tokens": 3})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("atention_mask", None, "did you mean 'attention_mask'"),
        ("truncate", True, "did you mean 'truncation'"),
        ("foo", 1, "'foo' was given, and neither GPT2LMHeadModel.forward nor its tokenizer has"),
        ("max_new_tokens", 3, r"write model.generate\(..., max_new_tokens=...\)"),
        ("images", [1], "give what the model's processor returns"),
        ("pixel_values", IDS, "'pixel_values' was given"),
    ],
)
def test_a_keyword_that_would_get_lost_is_refused_in_a_trace(
    gpt2: LanguageModel, llama: LanguageModel, key: str, value: Any, message: str
) -> None:
    for model in (gpt2, llama):
        told = message.replace("GPT2LMHeadModel", type(model._module).__name__)
        with pytest.raises(InputError, match=told):
            with model.trace(SHORT, **{key: value}):
                model.lm_head.output.save()
        with pytest.raises(InputError, match=told):
            with model.trace() as tracer:
                with tracer.invoke(LONG):
                    pass
                with tracer.invoke(SHORT, **{key: value}):
                    model.lm_head.output.save()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("max_tokens", "write max_new_tokens"),
        ("n", "write num_return_sequences"),
        ("seed", r"write torch.manual_seed\(...\) before the run"),
        ("max_new_token", "did you mean 'max_new_tokens'"),
        ("temprature", "did you mean 'temperature'"),
        ("foo", "neither GPT2LMHeadModel.generate, GPT2LMHeadModel.forward nor its tokenizer has"),
    ],
)
def test_an_argument_that_generate_does_not_have_is_refused(
    gpt2: LanguageModel, key: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        with gpt2.generate(SHORT, **{key: 2}) as tracer:
            tracer.result.save()


@pytest.mark.parametrize(
    "options",
    [
        {"output_attentions": True}, {"output_hidden_states": True}, {"use_cache": False},
        {"logits_to_keep": 1}, {"return_dict": True}, {"is_causal": True},
        {"attention_mask": torch.ones(1, 2)}, {"past_key_values": None}, {"labels": IDS},
    ],
    ids=str,
)  # fmt: skip
def test_keywords_of_the_forward_reach_it(llama: LanguageModel, options: Any) -> None:
    expected = models.bare(models.LLAMA)(IDS, **options)
    with llama.trace(IDS, **options):
        output = llama.output.save()
    assert set(output.keys()) == set(expected.keys())
    assert_same(output.logits, expected.logits)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"truncation": True, "max_length": 3}, "the red dog"),
        (
            {"padding": "max_length", "max_length": 10, "padding_side": "right"},
            LONG + " [PAD] [PAD]",
        ),
        ({"add_special_tokens": False}, LONG),
        ({"text_pair": "ten"}, LONG + " ten"),
        ({"return_tensors": "pt"}, LONG),
        ({"return_offsets_mapping": True}, LONG),
    ],
    ids=str,
)
def test_options_of_the_tokenizer_reach_it(
    gpt2: LanguageModel, options: Any, expected: str
) -> None:
    wanted = token_ids(expected)
    with gpt2.trace(LONG, **options):
        ids = gpt2.transformer.wte.input.save()
    assert torch.equal(ids, wanted)
    several = {key: [one] if key == "text_pair" else one for key, one in options.items()}
    with gpt2.trace([LONG], **several):
        ids = gpt2.transformer.wte.input.save()
    assert torch.equal(ids, wanted)
    with gpt2.trace(**options) as tracer:
        with tracer.invoke(LONG):
            ids = gpt2.transformer.wte.input.save()
        with tracer.invoke(LONG):
            pass
    assert torch.equal(ids, wanted)
    with gpt2.trace() as tracer:
        with tracer.invoke(SHORT):
            pass
        with tracer.invoke(LONG, **options):
            ids = gpt2.transformer.wte.input.save()
    assert torch.equal(ids, wanted)


def test_one_second_text_for_a_list_is_refused(gpt2: LanguageModel) -> None:
    with pytest.raises(InputError, match="'text_pair' is one text, and the input is a list of 2"):
        with gpt2.trace([SHORT, LONG], text_pair="ten"):
            gpt2.lm_head.output.save()


def test_words_of_a_text_that_is_split(gpt2: LanguageModel) -> None:
    with gpt2.trace(SHORT.split(), is_split_into_words=True):
        ids = gpt2.transformer.wte.input.save()
    assert torch.equal(ids, IDS)


def test_a_length_is_the_generations_in_generate(gpt2: LanguageModel) -> None:
    with gpt2.generate(SHORT, max_length=4, do_sample=False) as tracer:
        tokens = tracer.result.save()
    assert torch.equal(tokens, models.bare(GPT2).generate(IDS, max_length=4, do_sample=False))


def test_a_length_that_texts_are_cut_to_is_theirs_in_generate(gpt2: LanguageModel) -> None:
    cut = {"truncation": True, "max_length": 2}
    short = models.bare(GPT2).generate(IDS, max_new_tokens=2, do_sample=False)
    with gpt2.generate(f"{SHORT} ran under", max_new_tokens=2, do_sample=False, **cut) as tracer:
        tokens = tracer.result.save()
    assert torch.equal(tokens, short)
    with gpt2.generate(max_new_tokens=2, do_sample=False) as tracer:
        with tracer.invoke(f"{SHORT} ran under", **cut):
            tokens = tracer.result.save()
        with tracer.invoke(f"{SHORT} ran under"):
            whole = tracer.result.save()
        with tracer.invoke(SHORT, padding="max_length", max_length=4, padding_side="left"):
            filled = tracer.result.save()
    assert torch.equal(tokens[:, 2:], short)
    assert torch.equal(filled[:, 2:], short)
    assert (tokens[0, :2] == models.PAD).all()
    assert whole.shape == (1, 6)
    assert (whole != models.PAD).all()


def test_options_of_the_tokenizer_without_a_text_are_refused(gpt2: LanguageModel) -> None:
    with pytest.raises(InputError, match="'truncation' is an option of the tokenizer, and the"):
        with gpt2.trace(IDS, truncation=True):
            gpt2.lm_head.output.save()


def test_a_chat_goes_through_the_template(chatting: LanguageModel) -> None:
    with chatting.trace([USER]):
        ids = chatting.transformer.wte.input.save()
    assert torch.equal(ids, token_ids("the cat ten"))
    with chatting.trace([USER], add_generation_prompt=False):
        ids = chatting.transformer.wte.input.save()
    assert torch.equal(ids, IDS)
    with chatting.trace([USER], is_brief=True, truncation=True, max_length=9):
        ids = chatting.transformer.wte.input.save()
    assert torch.equal(ids, token_ids("the cat ten nine"))
    with chatting.generate([USER], max_new_tokens=2, do_sample=False) as tracer:
        tokens = tracer.result.save()
    plain = models.bare(GPT2).generate(token_ids("the cat ten"), max_new_tokens=2, do_sample=False)
    assert torch.equal(tokens, plain)


def test_several_chats_are_rows(chatting: LanguageModel) -> None:
    with chatting.trace([[USER], [USER, USER]]):
        logits = chatting.lm_head.output.save()
    assert_near(logits[:1, -3:], models.logits_of(GPT2, "the cat ten"))
    assert_near(logits[1:], models.logits_of(GPT2, "the cat the cat ten"))
    with chatting.trace() as tracer:
        with tracer.invoke([USER]):
            one = chatting.lm_head.output[:, -3:].save()
        with tracer.invoke(LONG):
            pass
    assert_near(one, models.logits_of(GPT2, "the cat ten"))


def test_a_message_without_a_role_is_refused(chatting: LanguageModel) -> None:
    with pytest.raises(InputError, match="message 1 of the chat is the text 'the cat'; a message"):
        with chatting.trace([[USER, SHORT]]):
            chatting.lm_head.output.save()


def test_a_variable_of_the_template_without_a_chat_is_refused(chatting: LanguageModel) -> None:
    with pytest.raises(InputError, match="'is_brief' is an option of the template of chats"):
        with chatting.trace(SHORT, is_brief=True):
            chatting.lm_head.output.save()


def test_an_empty_text_with_a_special_token_is_a_prompt() -> None:
    from tokenizers.processors import TemplateProcessing

    backend = type(models.tokenizer().backend_tokenizer).from_str(
        models.tokenizer().backend_tokenizer.to_str()
    )
    backend.post_processor = TemplateProcessing(single="[EOS] $A", special_tokens=[("[EOS]", 1)])
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")
    model = LanguageModel(models.new_gpt2(), tokenizer=words)
    with model.trace(""):
        logits = model.lm_head.output.save()
    assert_near(logits, models.logits_of(GPT2, "[EOS]"))


def test_a_name_of_transformers_for_the_prompt(gpt2: LanguageModel) -> None:
    with gpt2.generate(inputs=IDS, max_new_tokens=2, do_sample=False) as tracer:
        tokens = tracer.result.save()
    plain = models.bare(GPT2).generate(IDS, max_new_tokens=2, do_sample=False)
    assert torch.equal(tokens, plain)


def test_no_input_at_all_has_an_error_of_its_own(gpt2: LanguageModel) -> None:
    with pytest.raises(NoInputError):
        with gpt2.trace(output_attentions=True):
            gpt2.lm_head.output.save()


def test_the_padding_of_a_generation_is_transformers_own() -> None:
    module = models.new_gpt2()
    module.generation_config.pad_token_id = None
    module.generation_config.eos_token_id = WORDS.index("ten")
    model = LanguageModel(module, tokenizer=models.tokenizer())
    ids = token_ids("the cat", "a bird")
    expected = module.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=None)
    with model.generate(ids, max_new_tokens=12, do_sample=False) as tracer:
        tokens = tracer.result.save()
    assert torch.equal(tokens, expected)


def test_padding_among_ids_is_masked_by_generate_as_without_invokes(gpt2: LanguageModel) -> None:
    padded = token_ids("[PAD] [PAD] the cat")
    alone = models.bare(GPT2).generate(padded, max_new_tokens=4, do_sample=False)
    with gpt2.generate(padded, max_new_tokens=4, do_sample=False) as tracer:
        single = tracer.result.save()
    assert torch.equal(single, alone)
    with gpt2.generate(max_new_tokens=4, do_sample=False) as tracer:
        with tracer.invoke(padded):
            first = tracer.result.save()
        with tracer.invoke(LONG):
            pass
    assert torch.equal(first[:, -4:], alone[:, -4:])


def test_a_keyword_is_not_its_own_suggestion() -> None:
    class Closed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(len(WORDS), 4)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            embedded: torch.Tensor = self.embed(input_ids)
            return embedded

    model = LanguageModel(Closed(), tokenizer=models.tokenizer())
    with pytest.raises(InputError) as caught:
        with model.trace(SHORT, output_attentions=True):
            model.embed.output.save()
    assert str(caught.value).count("'output_attentions'") == 1
    with model.trace(SHORT):
        embedded = model.embed.output.save()
    assert embedded.shape == (1, 2, 4)
