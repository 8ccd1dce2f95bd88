"""Guide: Model Editing."""

import torch

from tests.models import assert_same


# guide 40
def test_not_in_place(model, plain):
    with model.edit() as model_edited:
        model.transformer.h[1].output[:, 1] = 0

    with model.trace("Hello"):
        out1 = model.transformer.h[1].output.save()

    with model_edited.trace("Hello"):
        out2 = model_edited.transformer.h[1].output.save()

    # Issue 4: `as edited` binds the edited model.
    assert model_edited is not model
    expected = plain.output("transformer.h.1", "Hello")
    assert_same(out1, expected)
    assert not out2[:, 1].any()
    assert_same(out2[:, 0], expected[:, 0])
    assert_same(out2[:, 2], expected[:, 2])


# guide 40
def test_an_edited_model_shares_its_weights(model):
    with model.edit() as model_edited:
        model.transformer.h[1].output[:, 1] = 0

    weights = zip(model.parameters(), model_edited.parameters(), strict=True)
    assert all(one is other for one, other in weights)


# guide 41
def test_in_place(model):
    with model.edit(inplace=True):
        model.transformer.h[1].output[:] = 0

    with model.trace("Hello"):
        output = model.transformer.h[1].output.save()

    assert not output.any()

    with model.trace() as tracer:
        with tracer.invoke("World"):
            other = model.transformer.h[1].output.save()
    assert not other.any()


# guide 41
def test_in_place_under_generate(model, plain):
    with model.edit(inplace=True):
        model.transformer.h[1].output[:] = 0

    with model.generate("Hello", max_new_tokens=3):
        output = model.generator.output.save()

    with plain.hooked("transformer.h.1", torch.zeros_like):
        assert_same(output, plain.generate("Hello", 3))


# guide 42
def test_clear_edits(model, plain):
    with model.edit(inplace=True):
        model.transformer.h[1].output[:] = 0
    model.clear_edits()

    with model.trace("Hello"):
        output = model.transformer.h[1].output.save()
    assert_same(output, plain.output("transformer.h.1", "Hello"))
