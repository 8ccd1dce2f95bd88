"""Guide: Critical Gotchas."""

import pytest
import torch

from nnsight_dsl import NoInputError, OutOfOrderError
from tests.models import assert_same


# guide 77
def test_forgetting_save(model, plain):
    output = "outer"
    with model.trace("Hello"):
        output = model.transformer.h[-1].output  # noqa: NNS301
    # DESIGN.md, Same names: an outer name that is bound without saving keeps its old value.
    assert output == "outer"

    with model.trace("Hello"):
        output = model.transformer.h[-1].output.save()
    assert_same(output, plain.output("transformer.h.5", "Hello"))


# guide 78
def test_in_place_and_replacement(model, plain):
    with model.trace("Hello"):
        model.transformer.h[0].output[:] = 0
        in_place = model.lm_head.output.save()

    with model.trace("Hello"):
        model.transformer.h[0].output = torch.zeros_like(model.transformer.h[0].output)
        replaced = model.lm_head.output.save()

    with plain.hooked("transformer.h.0", torch.zeros_like):
        expected = plain.logits("Hello")
    assert_same(in_place, expected)
    assert_same(replaced, expected)


# guide 78
def test_replacement_is_a_new_tensor(model):
    with model.trace("Hello"):
        before = model.transformer.h[0].output.save()
        model.transformer.h[0].output = torch.zeros_like(model.transformer.h[0].output)
        after = model.transformer.h[0].output.save()

    assert before is not after
    assert before.any()
    assert not after.any()


# guide 79
def test_element_of_a_tuple(model, plain):
    # The guide: "This replaces the whole tuple!" DESIGN.md, Element replacement: `m.output[0] = x`
    # replaces the element. On the attention, whose output is still a tuple.
    with model.trace("Hello"):
        new_tensor = torch.ones_like(model.transformer.h[0].attn.output[0])
        model.transformer.h[0].attn.output[0] = new_tensor
        output = model.transformer.h[0].attn.output.save()
        logits = model.lm_head.output.save()

    assert isinstance(output, tuple)
    assert torch.all(output[0] == 1)
    with plain.hooked("transformer.h.0.attn", lambda out: (torch.ones_like(out[0]), *out[1:])):
        assert_same(logits, plain.logits("Hello"))


# guide 79
def test_in_place_in_the_first_element(model, plain):
    with model.trace("Hello"):
        model.transformer.h[0].attn.output[0][:] = 0
        logits = model.lm_head.output.save()

    with plain.hooked("transformer.h.0.attn", lambda out: (torch.zeros_like(out[0]), *out[1:])):
        assert_same(logits, plain.logits("Hello"))


# guide 79
def test_replacing_the_tuple(model, plain):
    with model.trace("Hello"):
        new_tensor = torch.ones_like(model.transformer.h[0].attn.output[0])
        model.transformer.h[0].attn.output = (new_tensor,) + model.transformer.h[0].attn.output[1:]  # noqa: RUF005
        logits = model.lm_head.output.save()

    with plain.hooked("transformer.h.0.attn", lambda out: (torch.ones_like(out[0]), *out[1:])):
        assert_same(logits, plain.logits("Hello"))


# guide 79
def test_element_of_a_tuple_by_a_name(model):
    # DESIGN.md, Element replacement: `o = m.output; o[0] = x` on a tuple raises as in Python.
    with pytest.raises(TypeError, match="does not support item assignment"):
        with model.trace("Hello"):
            output = model.transformer.h[0].attn.output
            output[0] = torch.ones_like(output[0])


# guide 80
def test_without_a_clone(model):
    with model.trace("Hello"):
        before = model.transformer.h[0].output.save()  # noqa: NNS302
        model.transformer.h[0].output[:] = 0
        after = model.transformer.h[0].output.save()

    # DESIGN.md, Names: aliases stay aliases.
    assert_same(before, after)
    assert not before.any()


# guide 80
def test_with_a_clone(model, plain):
    with model.trace("Hello"):
        before = model.transformer.h[0].output.clone().save()
        model.transformer.h[0].output[:] = 0
        after = model.transformer.h[0].output.save()

    assert_same(before, plain.output("transformer.h.0", "Hello"))
    assert not after.any()


# guide 81
def test_execution_order(model, plain):
    with model.trace("Hello"):
        out1 = model.transformer.h[1].output.save()
        out5 = model.transformer.h[5].output.save()

    assert_same(out1, plain.output("transformer.h.1", "Hello"))
    assert_same(out5, plain.output("transformer.h.5", "Hello"))


# guide 81
def test_against_execution_order(model):
    # The guide: a deadlock. DESIGN.md, Runtime: nothing waits for ever, it fails at once.
    with pytest.raises(OutOfOrderError, match=r"transformer\.h\.1\.output has already passed"):
        with model.trace("Hello"):
            out5 = model.transformer.h[5].output.save()
            out1 = model.transformer.h[1].output.save()


# guide 82
def test_another_order_in_a_promptless_invoke(model, plain):
    with model.trace() as tracer:
        with tracer.invoke("Hello"):
            out5 = model.transformer.h[5].output.save()

        # DESIGN.md, Invokes: promptless invokes share the one forward.
        with tracer.invoke():
            out1 = model.transformer.h[1].output.save()

    assert_same(out5, plain.output("transformer.h.5", "Hello"))
    assert_same(out1, plain.output("transformer.h.1", "Hello"))


# guide 83
def test_a_trace_needs_an_input(model, plain):
    with pytest.raises(NoInputError, match=r"model\.trace\(input\)"):
        with model.trace():
            output = model.output.save()

    with model.trace("Hello"):
        given = model.output.save()

    with model.trace() as tracer:
        with tracer.invoke("Hello"):
            invoked = model.output.save()

    assert_same(given.logits, plain.logits("Hello"))
    assert_same(invoked.logits, given.logits)


# guide 84
def test_values_are_tensors(model, capsys):
    with model.trace("Hello"):
        hs = model.transformer.h[0].output
        kind = type(hs)
        assert kind is torch.Tensor

        shape = hs.shape.save()
        zeros = torch.zeros(shape).save()

        print(shape)

    assert shape == (1, 3, 128)
    assert zeros.shape == shape
    assert capsys.readouterr().out == "torch.Size([1, 3, 128])\n"


# guide 85
def test_shapes_without_a_run(model):
    with model.scan("Hello"):
        shape = model.transformer.h[0].output.shape

    assert shape == (1, 3, 128)


# guide 86
def test_trace_or_generate(model, plain):
    with model.trace("Hello"):
        once = model.output.save()

    with model.generate("Hello", max_new_tokens=5):
        tokens = model.generator.output.save()

    assert_same(once.logits, plain.logits("Hello"))
    assert tokens.shape == (1, 8)
    assert_same(tokens, plain.generate("Hello", 5))


# guide 87
def test_device(model, plain):
    torch.manual_seed(0)
    with model.trace("Hello"):
        device = model.transformer.h[0].output.device
        noise = torch.randn(128).to(device).save()
        model.transformer.h[0].output[:, -1, :] += noise
        logits = model.lm_head.output.save()

    assert noise.device == model.device

    def change(value):
        new = value.clone()
        new[:, -1, :] += noise
        return new

    with plain.hooked("transformer.h.0", change):
        assert_same(logits, plain.logits("Hello"))
