"""Guide: Gradients and Backpropagation."""

import pytest
import torch

from nnsight_dsl import GradientError, GradientOrderError
from tests.models import assert_near, assert_same


def _after(plain, index):
    """Autograd's gradient of the sum of the logits, by the output of a layer."""
    seen = []

    def keep(output):
        seen.append(output.detach().requires_grad_())
        return seen[0]

    handle = plain.module.transformer.h[index].register_forward_hook(lambda _m, _a, o: keep(o))
    try:
        encoded = plain.tokenizer("Hello", return_tensors="pt")
        loss = plain.module(**encoded).logits.sum()
    finally:
        handle.remove()
    return torch.autograd.grad(loss, seen[0])[0]


# guide 33
def test_reading(model, plain):
    with model.trace("Hello"):
        hs = model.transformer.h[-1].output
        hs.requires_grad_(True)

        logits = model.lm_head.output
        loss = logits.sum()

        with loss.backward():
            grad = hs.grad.save()

    assert grad.shape == (1, 3, 128)
    assert_same(grad, _after(plain, 5))


# guide 33
def test_reverse_order(model, plain):
    with model.trace("Hello"):
        early = model.transformer.h[1].output
        late = model.transformer.h[4].output
        with model.lm_head.output.sum().backward():
            late_grad = late.grad.save()
            early_grad = early.grad.save()

    assert_same(late_grad, _after(plain, 4))
    assert_same(early_grad, _after(plain, 1))


# guide 33
def test_forward_order_is_an_error(model):
    with pytest.raises(GradientOrderError):
        with model.trace("Hello"):
            early = model.transformer.h[1].output
            late = model.transformer.h[4].output
            with model.lm_head.output.sum().backward():
                early_grad = early.grad.save()
                late_grad = late.grad.save()


# guide 33
def test_only_gradients_inside_backward(model):
    with pytest.raises(ValueError, match=r"Cannot request .* in a backward"):
        with model.trace("Hello"):
            loss = model.lm_head.output.sum()
            with loss.backward():
                hidden = model.transformer.h[0].output.save()


# guide 34
def test_modifying(model, plain):
    with model.trace("Hello"):
        early = model.transformer.h[2].output
        hs = model.transformer.h[-1].output
        hs.requires_grad_(True)

        logits = model.lm_head.output

        with logits.sum().backward():
            hs_grad = hs.grad.clone().save()

            hs.grad[:] = 0

            before = early.grad.save()

    assert_same(hs_grad, _after(plain, 5))
    # what was set to zero is what goes on backwards
    assert not before.any()


# guide 35
def test_two_passes(model, plain):
    with model.trace("Hello"):
        hs = model.transformer.h[-1].output
        hs.requires_grad_(True)
        logits = model.lm_head.output

        with logits.sum().backward(retain_graph=True):
            grad1 = hs.grad.save()

        modified_logits = logits * 2
        with modified_logits.sum().backward():
            grad2 = hs.grad.save()

    assert_same(grad1, _after(plain, 5))
    assert_near(grad2, 2 * grad1)


# guide 36
def test_standalone(model, plain):
    with model.trace("Hello"):
        hs = model.transformer.h[-1].output
        hs.requires_grad_(True)
        hs = hs.save()
        logits = model.lm_head.output.save()

    loss = logits.sum()
    with loss.backward():
        grad = hs.grad.save()

    assert grad.shape == (1, 3, 128)
    assert_same(grad, _after(plain, 5))


# guide 36
def test_a_value_of_the_model_in_a_standalone_backward(model):
    with model.trace("Hello"):
        logits = model.lm_head.output.save()
    with pytest.raises(GradientError, match=r"Cannot request .* in a backward"):
        with logits.sum().backward():
            hidden = model.transformer.h[0].output.save()
