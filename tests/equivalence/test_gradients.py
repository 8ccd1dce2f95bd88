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


def test_branches_of_a_graph_have_gradients_beside_each_other():
    leaf = torch.randn(3, requires_grad=True)
    model = NNsight(torch.nn.Identity())
    with model.trace(leaf):
        root = model.output * 2
        one, other = root.sin(), root.cos()
        # autograd goes back through what was computed last first; neither is below the other
        with (one * other).sum().backward():
            late = other.grad.save()
            early = one.grad.save()
            whole = leaf.grad.save()
    doubled = leaf.detach() * 2
    assert_same(late, doubled.sin())
    assert_same(early, doubled.cos())
    assert_same(whole, 2 * (doubled.cos() ** 2 - doubled.sin() ** 2))


def test_two_results_of_one_operation_are_not_asked_for_one_after_the_other():
    leaf = torch.randn(4, requires_grad=True)
    model = NNsight(torch.nn.Identity())
    with pytest.raises(errors.GradientOrderError):
        with model.trace(leaf):
            one, other = (model.output * 2).chunk(2)
            with (one * other).sum().backward():
                late = other.grad.save()
                early = one.grad.save()


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


# several blocks, several passes


def alone(prompt, change=None):
    """Return autograd's gradient of the sum of the logits by a layer's output, for one prompt."""
    module = models.bare(models.GPT2)
    kept = []

    def keep(output):
        kept.append(output)
        output.retain_grad()
        if change is not None:
            output.register_hook(change)

    with models.hooked(module, {"transformer.h.1": keep}):
        module(**models.encoded(prompt)).logits.sum().backward()
    module.zero_grad()
    return kept[0].grad


def test_invokes_go_back_through_their_graph_without_retaining_it():
    gpt2 = models.wrapped(models.GPT2)
    with gpt2.trace() as tracer:
        with tracer.invoke("the cat"):
            hidden = gpt2.transformer.h[1].output
            with gpt2.lm_head.output.sum().backward():
                first = hidden.grad.save()
        with tracer.invoke("the red dog"):
            hidden = gpt2.transformer.h[1].output
            with gpt2.lm_head.output.sum().backward():
                second = hidden.grad.save()
        with tracer.invoke("a bird"):
            hidden = gpt2.transformer.h[1].output
            with gpt2.lm_head.output.sum().backward():
                third = hidden.grad.save()
    for found, prompt in ((first, "the cat"), (second, "the red dog"), (third, "a bird")):
        own = models.GPT2.own(found, prompt)
        torch.testing.assert_close(own, alone(prompt), atol=1e-3, rtol=1e-3)


def test_the_last_pass_of_a_batch_frees_the_graph():
    gpt2 = models.wrapped(models.GPT2)
    with gpt2.trace() as tracer:
        with tracer.invoke("the cat"):
            with gpt2.lm_head.output.sum().backward():
                pass
        with tracer.invoke("the dog"):
            loss = gpt2.lm_head.output.sum().save()
            with loss.backward():
                pass
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_an_edited_gradient_of_one_invoke_leaves_the_rows_of_another():
    gpt2 = models.wrapped(models.GPT2)
    with gpt2.trace() as tracer:
        with tracer.invoke("the cat"):
            early, late = gpt2.transformer.h[0].output, gpt2.transformer.h[1].output
            with gpt2.lm_head.output.sum().backward():
                late.grad[:] = 0
                cleared = early.grad.save()
        with tracer.invoke("the dog"):
            hidden = gpt2.transformer.h[1].output
            with gpt2.lm_head.output.sum().backward():
                other = hidden.grad.save()
    assert not cleared.any()
    torch.testing.assert_close(other, alone("the dog"), atol=1e-3, rtol=1e-3)


def test_views_in_several_invokes_have_their_part_of_the_gradient():
    gpt2 = models.wrapped(models.GPT2)
    with gpt2.trace() as tracer:
        with tracer.invoke("the cat"):
            part = gpt2.transformer.h[1].output[:, 0, 3:5]
            with gpt2.lm_head.output.sum().backward():
                first = part.grad.save()
        with tracer.invoke("the dog"):
            part = gpt2.transformer.h[1].output[:, -1]
            with gpt2.lm_head.output.sum().backward():
                second = part.grad.save()
    torch.testing.assert_close(first, alone("the cat")[:, 0, 3:5], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(second, alone("the dog")[:, -1], atol=1e-3, rtol=1e-3)


def test_a_freed_graph_says_how_to_keep_it(model, x):
    with pytest.raises(errors.FreedGraphError, match="retain_graph=True") as caught:
        with model.trace(x):
            loss = model.output.pow(2).sum()
            with loss.backward():
                pass
            with (loss * 2).backward():
                pass
    assert isinstance(caught.value, RuntimeError)
    line = test_a_freed_graph_says_how_to_keep_it.__code__.co_firstlineno
    assert caught.traceback[-1].lineno + 1 == line + 6


def test_a_plain_backward_in_two_invokes_says_how_to_keep_the_graph():
    gpt2 = models.wrapped(models.GPT2)
    with pytest.raises(RuntimeError, match="second time") as caught:
        with gpt2.trace() as tracer:
            with tracer.invoke("the cat"):
                gpt2.lm_head.output.sum().backward()
            with tracer.invoke("the dog"):
                gpt2.lm_head.output.sum().backward()
    assert "retain_graph=True" in caught.value.__notes__[0]
    gpt2._module.zero_grad()


def test_terms_of_a_loss_have_gradients_of_their_own(model, module, x):
    expected = by_autograd(module, x)
    with model.trace(x):
        hidden = model.layers[4].output
        penalty = hidden.pow(2).sum()
        loss = model.output.sum() + 0.5 * penalty
        with loss.backward():
            of_penalty = penalty.grad.save()
            found = hidden.grad.save()
            value = hidden.detach().save()
    assert_same(of_penalty, torch.tensor(0.5))
    torch.testing.assert_close(found, expected[4] + value)


def test_a_pass_in_a_pass_over_another_loss(model, module, x):
    expected = by_autograd(module, x)
    with model.trace(x):
        hidden = model.layers[1].output
        inner = model.layers[3].output.sum()
        with model.output.sum().backward(retain_graph=True):
            first = hidden.grad.save()
        with inner.backward():
            second = hidden.grad.save()
    by_hand = module.layers[0](x)
    by_hand = module.layers[1](by_hand)
    (wanted,) = torch.autograd.grad(module.layers[3](module.layers[2](by_hand)).sum(), by_hand)
    assert_same(first, expected[1])
    assert_same(second, wanted)


def test_arguments_of_backward_are_autograds(model, module, x):
    weights = torch.linspace(0, 1, 6).reshape(2, 3)
    with model.trace(x):
        hidden = model.layers[1].output
        with model.output.backward(gradient=weights):
            found = hidden.grad.save()
    by_hand = module.layers[1](module.layers[0](x))
    value = by_hand
    for layer in module.layers[2:]:
        value = layer(value)
    (wanted,) = torch.autograd.grad(module.head(value), by_hand, weights)
    assert_same(found, wanted)


def test_several_passes_outside_of_a_trace(model, module, x):
    expected = by_autograd(module, x)
    with model.trace(x):
        hidden = model.layers[1].output.save()
        result = model.output.save()
    with result.sum().backward(retain_graph=True):
        first = hidden.grad.save()
    with (result.sum() * 3).backward():
        second = hidden.grad.save()
    assert_same(first, expected[1])
    torch.testing.assert_close(second, expected[1] * 3)


def test_a_pass_outside_of_a_trace_edits_what_goes_on(model, module, x):
    expected = by_autograd(module, x, (3, lambda grad: grad * 5))
    with model.trace(x):
        early, late = model.layers[1].output.save(), model.layers[3].output.save()
        result = model.output.save()
    with result.sum().backward():
        late.grad = late.grad * 5
        found = early.grad.save()
    assert_same(found, expected[1])


@pytest.mark.parametrize("state", [torch.no_grad, torch.inference_mode])
def test_no_graph_is_an_error_that_says_why(model, x, state):
    with pytest.raises(errors.GradientError, match=r"no graph .*no_grad.*trace outside of no_grad"):
        with state():
            with model.trace(x):
                hidden = model.layers[1].output
                with model.output.sum().backward():
                    found = hidden.grad.save()


def test_a_generation_has_no_graph():
    gpt2 = models.wrapped(models.GPT2)
    with pytest.raises(errors.GradientError, match=r"no graph .*model\.generate"):
        with gpt2.generate("the cat", max_new_tokens=2):
            hidden = gpt2.transformer.h[1].output
            with gpt2.lm_head.output.sum().backward():
                found = hidden.grad.save()


def test_a_leaf_that_a_block_puts_in_has_its_gradient(model, module, x):
    with model.trace(x):
        leaf = torch.ones(2, 4, requires_grad=True)
        model.layers[2].output = leaf
        with model.output.sum().backward():
            found = leaf.grad.save()
    expected = by_autograd(module, x)
    # the layers behind it are linear, so their gradient does not depend on the value
    assert_same(found, expected[2])


def test_gradients_stand_under_a_condition_and_in_a_loop(model, module, x):
    expected = by_autograd(module, x)
    with model.trace(x):
        outputs = [layer.output for layer in model.layers]
        with model.output.sum().backward():
            found = {}.save()
            for number in range(5, -1, -1):
                if number % 2:
                    found[number] = outputs[number].grad
    assert sorted(found) == [1, 3, 5]
    for number, gradient in found.items():
        assert_same(gradient, expected[number])
