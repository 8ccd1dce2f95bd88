"""Guide: Modifying Activations (Interventions)."""

import pytest
import torch

from tests.models import assert_same


def _edited(plain, path, change, prompt="Hello"):
    with plain.hooked(path, change):
        return plain.logits(prompt)


# guide 18
def test_in_place(model, plain):
    with model.trace("Hello"):
        model.transformer.h[0].output[:] = 0
        logits = model.lm_head.output.save()

    assert_same(logits, _edited(plain, "transformer.h.0", torch.zeros_like))


# guide 18
def test_in_place_at_positions(model, plain):
    with model.trace("Hello"):
        model.transformer.h[0].output[:] = 0
        model.transformer.h[0].output[:, -1, :] = 0
        model.transformer.h[0].output[:, :, 0] = 1
        logits = model.lm_head.output.save()

    def change(output):
        new = torch.zeros_like(output)
        new[:, :, 0] = 1
        return new

    assert_same(logits, _edited(plain, "transformer.h.0", change))


# guide 19
def test_replacement(model, plain):
    # the embedding first: it runs before the layers
    with model.trace("Hello"):
        model.transformer.wte.output = model.transformer.wte.output * 0.5
        hs = model.transformer.h[0].output.clone()
        hs = hs * 2
        model.transformer.h[0].output = hs
        logits = model.lm_head.output.save()

    with plain.hooked("transformer.wte", lambda output: output * 0.5):
        assert_same(logits, _edited(plain, "transformer.h.0", lambda output: output * 2))


# guide 20
def test_tuple_output(model, plain):
    # Blocks return a tensor with transformers 5; the attention still returns a tuple.
    with model.trace("Hello"):
        full_output = model.transformer.h[0].attn.output.save()
        model.transformer.h[0].attn.output = (
            (  # noqa: RUF005
                torch.zeros_like(model.transformer.h[0].attn.output[0]),
            )
            + model.transformer.h[0].attn.output[1:]
        )
        logits = model.lm_head.output.save()

    assert isinstance(full_output, tuple)

    def change(output):
        return (torch.zeros_like(output[0]), *output[1:])

    assert_same(logits, _edited(plain, "transformer.h.0.attn", change))


# guide 20
def test_first_element_of_a_tensor_output_warns(model):
    # Issue 4: `[0]` on the tensor output of a transformers block warns once, with the remedy.
    with pytest.warns(UserWarning, match=r"first row.*write \.output"):
        with model.trace("Hello"):
            first = model.transformer.h[0].output[0].save()
    assert first.shape == (3, 128)


# guide 21
def test_clone_before(model, plain):
    with model.trace("Hello"):
        before = model.transformer.h[0].output.clone().save()

        model.transformer.h[0].output[:] = 0

        after = model.transformer.h[0].output.save()

    assert_same(before, plain.output("transformer.h.0", "Hello"))
    assert not after.any()
