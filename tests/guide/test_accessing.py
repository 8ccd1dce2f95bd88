"""Guide: Accessing Activations."""

import pytest
import torch

import nnsight_dsl
from nnsight_dsl import OutOfOrderError
from tests.models import assert_same


# guide 13
def test_print_the_model(model):
    text = repr(model)
    for line in ("GPT2LMHeadModel(", "(transformer): GPT2Model(", "(0-5): 6 x GPT2Block("):
        assert line in text
    assert "(lm_head): Linear(" in text


# guide 14
def test_outputs(model, plain):
    # The guide reads h[5] first, against its own rule of execution order.
    with model.trace("Hello"):
        # the attention's output is still a tuple
        attn_out = model.transformer.h[0].attn.output[0].save()
        mlp_out = model.transformer.h[0].mlp.output.save()
        layer_5_out = model.transformer.h[5].output.save()
        logits = model.lm_head.output.save()

    assert_same(attn_out, plain.output("transformer.h.0.attn", "Hello")[0])
    assert_same(mlp_out, plain.output("transformer.h.0.mlp", "Hello"))
    assert_same(layer_5_out, plain.output("transformer.h.5", "Hello"))
    assert_same(logits, plain.logits("Hello"))


# guide 14
def test_outputs_in_the_order_of_the_guide(model):
    # DESIGN.md, Runtime: a request that is asked too late fails at once.
    with pytest.raises(OutOfOrderError, match=r"transformer\.h\.0\.attn\.output has already"):
        with model.trace("Hello"):
            layer_5_out = model.transformer.h[5].output.save()
            attn_out = model.transformer.h[0].attn.output[0].save()


# guide 15
def test_inputs(model, plain):
    with model.trace("Hello"):
        layer_input = model.transformer.h[1].input.save()
        all_inputs = model.transformer.h[1].inputs.save()

    assert_same(layer_input, plain.output("transformer.h.0", "Hello"))
    args, kwargs = all_inputs
    assert isinstance(args, tuple)
    assert isinstance(kwargs, dict)
    assert args[0] is layer_input


# guide 16
def test_without_save_a_name_does_not_leave(model):
    with model.trace("Hello"):
        output = model.transformer.h[-1].output

    with pytest.raises(NameError):
        output


# guide 16
def test_with_save_it_does(model, plain):
    with model.trace("Hello"):
        output = model.transformer.h[-1].output.save()

    assert_same(output, plain.output("transformer.h.5", "Hello"))


# guide 17
def test_two_ways_to_save(model):
    with model.trace("Hello"):
        one = model.transformer.h[-1].output.save()
    with model.trace("Hello"):
        other = nnsight_dsl.save(model.transformer.h[-1].output)
    assert_same(one, other)


# guide 17
def test_save_works_on_any_object(model):
    class Own:
        def save(self):
            return "its own"

    # DESIGN.md, Names and saving: a type's own `save` wins over ours; the function is for those.
    with model.trace("Hello"):
        kept = nnsight_dsl.save(Own())
        shape = nnsight_dsl.save(model.transformer.h[0].output.shape)
        both = {"mean": model.transformer.h[-1].output.mean()}.save()
    assert isinstance(kept, Own)
    assert shape == (1, 3, 128)
    assert isinstance(both["mean"], torch.Tensor)
