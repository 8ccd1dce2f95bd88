"""Gradients in a block equal those of autograd."""

import pytest
import torch

from nnsight_dsl import NNsight, errors
from tests import models
from tests.models import assert_same
from tests.runtime.conftest import Stack


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Stack()


@pytest.fixture
def model(module):
    return NNsight(module)


@pytest.fixture
def x(module):
    return torch.randn(2, module.layers[0].in_features)


def by_autograd(module, x, edit=None):
    """Return the gradients of each layer's output for the sum of the result, by hand."""
    outputs = []

    def keep(_module, _args, output):
        output.retain_grad()
        outputs.append(output)

    handles = [layer.register_forward_hook(keep) for layer in module.layers]
    result = module(x)
    if edit is not None:
        number, change = edit
        outputs[number].register_hook(change)
    result.sum().backward()
    for handle in handles:
        handle.remove()
    return [output.grad for output in outputs]


def test_gradients_are_read_in_reverse_order(model, module, x):
    expected = by_autograd(module, x)
    with model.trace(x):
        outputs = [layer.output for layer in model.layers]
        with model.output.sum().backward():
            found = [output.grad for output in reversed(outputs)].save()
    assert_same(found, list(reversed(expected)))


def test_a_gradient_that_is_edited_in_place_goes_on_edited(model, module, x):
    expected = by_autograd(module, x, (2, lambda grad: grad * 0))
    with model.trace(x):
        early, late = model.layers[0].output, None
        late = model.layers[2].output
        with model.output.sum().backward():
            late.grad[:] = 0
            found = early.grad.save()
    assert_same(found, expected[0])


def test_a_gradient_that_is_replaced_goes_on_replaced(model, module, x):
    expected = by_autograd(module, x, (2, lambda grad: grad * 3))
    with model.trace(x):
        early = model.layers[0].output
        late = model.layers[2].output
        with model.output.sum().backward():
            late.grad = late.grad * 3
            found = early.grad.save()
    assert_same(found, expected[0])


def test_an_edit_does_not_reach_a_sum_that_shares_the_gradient():
    a = torch.ones(3, requires_grad=True)
    model = NNsight(torch.nn.Identity())
    with model.trace(a * 1):
        left = model.output
        right = left * 1
        with (left + right).sum().backward():
            right.grad[:] = 0
            found = left.grad.save()
    # left gets 1 from the sum itself, and nothing by way of right
    assert_same(found, torch.ones(3))


def test_a_graph_that_is_retained_is_gone_through_twice(model, module, x):
    expected = by_autograd(module, x)
    with model.trace(x):
        hidden = model.layers[1].output
        result = model.output
        with result.sum().backward(retain_graph=True):
            first = hidden.grad.save()
        with (result * 2).sum().backward():
            second = hidden.grad.save()
    assert_same(first, expected[1])
    assert_same(second, expected[1] * 2)


def test_a_backward_pass_stands_outside_of_a_trace(model, module, x):
    expected = by_autograd(module, x)
    with model.trace(x):
        hidden = model.layers[1].output.save()
        result = model.output.save()
    loss = result.sum()
    with loss.backward():
        gradient = hidden.grad.save()
    assert_same(gradient, expected[1])


def test_a_plain_backward_is_as_ever(model, module, x):
    module(x).sum().backward()
    assert module.layers[0].weight.grad is not None


def test_names_of_the_backward_pass_are_the_blocks(model, module, x):
    expected = by_autograd(module, x)
    with model.trace(x):
        hidden = model.layers[1].output
        with model.output.sum().backward():
            gradient = hidden.grad
        norm = gradient.norm().save()
    assert_same(norm, expected[1].norm())


def test_a_view_has_its_part_of_the_gradient(model, module, x):
    expected = by_autograd(module, x)
    with model.trace(x):
        part = model.layers[1].output[:, 1]
        with model.output.sum().backward():
            found = part.grad.save()
    assert_same(found, expected[1][:, 1])


def test_a_leaf_has_its_gradient(model, module, x):
    module(x).sum().backward()
    expected = module.layers[0].weight.grad.clone()
    module.zero_grad()
    weight = module.layers[0].weight
    with model.trace(x):
        with model.output.sum().backward():
            found = weight.grad.save()
    assert_same(found, expected)


def test_gradients_of_several_invokes_are_of_their_rows():
    gpt2 = models.wrapped(models.GPT2)
    path = "transformer.h.1"
    alone = {}
    for prompt in ("the cat", "the dog"):
        with gpt2.trace(prompt):
            hidden = gpt2.get(path).output
            with gpt2.lm_head.output.sum().backward():
                alone[prompt] = hidden.grad.save()
    with gpt2.trace() as tracer:
        with tracer.invoke("the cat"):
            hidden = gpt2.transformer.h[1].output
            logits = gpt2.lm_head.output
            with logits.sum().backward(retain_graph=True):
                first = hidden.grad.save()
        with tracer.invoke("the dog"):
            hidden = gpt2.transformer.h[1].output
            logits = gpt2.lm_head.output
            with logits.sum().backward():
                second = hidden.grad.save()
    torch.testing.assert_close(first, alone["the cat"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(second, alone["the dog"], atol=1e-4, rtol=1e-4)


def test_an_order_error_names_both_lines(model, x):
    with pytest.raises(errors.GradientOrderError) as caught:
        with model.trace(x):
            early = model.layers[0].output
            late = model.layers[2].output
            with model.output.sum().backward():
                first = early.grad.save()
                second = late.grad.save()
    line = test_an_order_error_names_both_lines.__code__.co_firstlineno
    assert f"line {line + 7}" in str(caught.value)
    assert f"line {line + 6}" in str(caught.value)


def test_a_value_of_the_forward_is_refused_in_a_backward_pass(model, x):
    with pytest.raises(ValueError, match=r"Cannot request layers\.0\.output in a backward pass"):
        with model.trace(x):
            with model.output.sum().backward():
                model.layers[0].output.save()


def test_a_tensor_the_loss_does_not_come_from_is_refused(model, x):
    other = torch.ones(3, requires_grad=True) * 2
    with pytest.raises(errors.GradientError, match="not computed from"):
        with model.trace(x):
            with model.output.sum().backward():
                other.grad.save()


def test_hooks_are_gone_after_a_pass(model, x):
    with model.trace(x):
        hidden = model.layers[1].output.save()
        with model.output.sum().backward(retain_graph=True):
            gradient = hidden.grad.save()
    assert not hidden._backward_hooks
