"""Guide: Quick Reference, Core Concepts, NNsight vs LanguageModel."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import nnsight_dsl
from nnsight_dsl import LanguageModel, NNsight, OutOfOrderError
from tests.guide.parts import FOLDER
from tests.models import assert_near, assert_same


# guide 1
def test_basic_pattern(model, plain):
    # Issue 4: `.output[0]` of the guide is written `.output`, here and everywhere below.
    # h[-1] is asked for before h[0] in the guide, which its own rule forbids: turned round.
    with model.trace("input text"):
        model.transformer.h[0].output[:] = 0
        hidden_states = model.transformer.h[-1].output.save()

    with plain.hooked("transformer.h.0", torch.zeros_like):
        assert_same(hidden_states, plain.output("transformer.h.5", "input text"))


# guide 1
def test_basic_pattern_in_the_order_of_the_guide(model):
    # DESIGN.md, Runtime: a request that is asked too late fails at once.
    with pytest.raises(OutOfOrderError, match=r"transformer\.h\.0\.output"):
        with model.trace("input text"):
            hidden_states = model.transformer.h[-1].output.save()
            model.transformer.h[0].output[:] = 0


# guide 1
def test_any_torch_module():
    torch_model = torch.nn.Linear(2, 3)
    model = NNsight(torch_model)
    with model.trace(torch.ones(1, 2)):
        output = model.output.save()
    assert_same(output, torch_model(torch.ones(1, 2)))


# guide 2
def test_deferred_execution(model, plain):
    with model.trace("Hello"):
        hs = model.transformer.h[-1].output
        hs = hs.save()

    assert isinstance(hs, torch.Tensor)
    assert hs.shape == (1, 3, 128)
    assert_same(hs, plain.output("transformer.h.5", "Hello"))


# guide 3
def test_invokes_in_order_of_definition(model, plain):
    order = []
    with model.trace() as tracer:
        with tracer.invoke("Hello"):
            layer_2 = model.transformer.h[2].output.save()
            order.append("first, layer 2")
            layer_5 = model.transformer.h[5].output.save()
            order.append("first, layer 5")

        with tracer.invoke("World"):
            layer_0 = model.transformer.h[0].output.save()
            order.append("second, layer 0")
            last = model.transformer.h[5].output
            order.append("second, layer 5")

    assert_near(layer_2[:, -3:], plain.output("transformer.h.2", "Hello"))
    assert_near(layer_5[:, -3:], plain.output("transformer.h.5", "Hello"))
    assert_near(layer_0, plain.output("transformer.h.0", "World"))
    # DESIGN.md: one forward; machines are served in the order of their definition at each value.
    assert order == ["second, layer 0", "first, layer 2", "first, layer 5", "second, layer 5"]


# guide 4
def test_promptless_invokes(model, plain):
    with model.trace() as tracer:
        with tracer.invoke("Hello"):
            out_1 = model.lm_head.output[:, -1].save()

        with tracer.invoke(["World", "Test"]):
            out_2 = model.lm_head.output[:, -1].save()

        with tracer.invoke():
            out_all = model.lm_head.output[:, -1].save()

        with tracer.invoke():
            out_all_2 = model.lm_head.output[:, -1].save()

    vocabulary = model.config.vocab_size
    assert out_1.shape == (1, vocabulary)
    assert out_2.shape == (2, vocabulary)
    assert out_all.shape == out_all_2.shape == (3, vocabulary)
    assert_same(out_all, torch.cat([out_1, out_2]))
    assert_same(out_all_2, out_all)
    for row, prompt in zip(out_all, ["Hello", "World", "Test"], strict=True):
        assert_near(row, plain.logits(prompt)[0, -1])


# guide 5
def test_base_class():
    net = torch.nn.Sequential(torch.nn.Linear(5, 10), torch.nn.Linear(10, 2))
    model = NNsight(net)
    x = torch.rand(1, 5)

    with model.trace(x):
        output = model.output.save()

    assert_same(output, net(x))


# guide 6
def test_language_model_from_a_path():
    model = LanguageModel(str(FOLDER), device_map="auto", dispatch=True)

    with model.trace("The Eiffel Tower is in"):
        hidden_states = model.transformer.h[-1].output.save()

    assert hidden_states.shape == (1, 5, 128)
    assert model.tokenizer.decode(model.tokenizer("Paris").input_ids) == "Paris"


# guide 7
def test_options_reach_from_pretrained():
    # sdpa in the place of flash attention, which needs a GPU
    model = LanguageModel(
        str(FOLDER),
        device_map="auto",
        torch_dtype=torch.float16,
        trust_remote_code=True,
        attn_implementation="sdpa",
    )
    assert model.device.type == "meta"

    with model.trace("Hello"):
        hidden_states = model.transformer.h[0].output.save()

    assert hidden_states.dtype is torch.float16
    assert model.config._attn_implementation == "sdpa"
    assert model.device.type == "cpu"


# guide 8
def test_wrapping_a_loaded_model():
    hf_model = AutoModelForCausalLM.from_pretrained(FOLDER)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)

    model = LanguageModel(hf_model, tokenizer=tokenizer)

    with model.trace("Hello"):
        output = model.lm_head.output.save()
    assert_same(
        output.detach(), hf_model(**tokenizer("Hello", return_tensors="pt")).logits.detach()
    )


# guide 8
def test_wrapping_a_loaded_model_without_its_tokenizer():
    model = LanguageModel(AutoModelForCausalLM.from_pretrained(FOLDER))
    with pytest.raises(AttributeError, match=r"(?i)tokenizer") as caught:
        with model.trace("Hello"):
            output = model.output.save()
    assert isinstance(caught.value, nnsight_dsl.TokenizerNotFoundError)
