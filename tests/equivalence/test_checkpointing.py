"""A part of the model that the backward pass computes again comes to the same values, edits too.

The oracle is the same block on the same model without checkpoints: its gradients are equal bit by
bit, since a checkpoint computes the same operations a second time.
"""

import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from nnsight_dsl import LanguageModel, NNsight, WriteError
from tests import models
from tests.models import LONG, assert_same


def new_model(*, is_checkpointed, reentrant=False):
    module = models.new_gpt2(attn_pdrop=0.1, resid_pdrop=0.1, embd_pdrop=0.1).train()
    module.config.use_cache = False
    if is_checkpointed:
        options = {"use_reentrant": reentrant}
        module.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    return LanguageModel(module, tokenizer=models.tokenizer())


def gradients(model):
    return {
        name: parameter.grad
        for name, parameter in model._module.named_parameters()
        if parameter.grad is not None
    }


def replaced(layer):
    layer.mlp.c_fc.output = layer.mlp.c_fc.output * 2


def cut(layer):
    layer.mlp.c_fc.output = layer.mlp.c_fc.output.detach() * 2


def edited_in_place(layer):
    layer.mlp.c_fc.output[:, 1] = 0


def edited_through_a_name(layer):
    hidden = layer.mlp.c_fc.output
    hidden[:, -1] *= 3


def input_replaced(layer):
    layer.mlp.input = layer.mlp.input * 3


def element_replaced(layer):
    layer.attn.output = (layer.attn.output[0] * 0.5, *layer.attn.output[1:])


def skipped(layer):
    layer.mlp.skip(layer.ln_2.output)


def noised(layer):
    layer.mlp.c_fc.output = layer.mlp.c_fc.output + torch.randn(64)


def read(layer):
    """Computing with a value in a block saves tensors, which are not the model's."""
    norm = layer.mlp.c_fc.output.pow(2).norm()
    layer.mlp.output = layer.mlp.output + norm * 0


def drawn(layer):
    """The block draws random numbers before the model's dropout does."""
    layer.mlp.c_fc.output
    torch.rand(3)


CHANGES = [
    replaced, cut, edited_in_place, edited_through_a_name, input_replaced, element_replaced,
    skipped, noised, read, drawn,
]  # fmt: skip


def in_the_block(model, change):
    torch.manual_seed(3)
    with model.trace(LONG):
        change(model.transformer.h[1])
        with model.output.logits.pow(2).sum().backward():
            pass
    return gradients(model)


def behind_the_block(model, change):
    torch.manual_seed(3)
    with model.trace(LONG):
        change(model.transformer.h[1])
        loss = model.output.logits.pow(2).sum().save()
    loss.backward()
    return gradients(model)


def plainly_in_the_block(model, change):
    torch.manual_seed(3)
    with model.trace(LONG):
        change(model.transformer.h[1])
        model.output.logits.pow(2).sum().backward()
    return gradients(model)


def in_another_thread(model, change):
    torch.manual_seed(3)
    with model.trace(LONG):
        change(model.transformer.h[1])
        loss = model.output.logits.pow(2).sum().save()
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    return gradients(model)


@pytest.mark.parametrize("go_back", [in_the_block, behind_the_block], ids=lambda one: one.__name__)
@pytest.mark.parametrize("change", CHANGES, ids=lambda one: one.__name__)
def test_gradients_are_those_without_checkpoints(change, go_back):
    expected = go_back(new_model(is_checkpointed=False), change)
    assert_same(go_back(new_model(is_checkpointed=True), change), expected)


@pytest.mark.parametrize(
    "go_back", [plainly_in_the_block, in_another_thread], ids=lambda one: one.__name__
)
def test_it_does_not_matter_where_the_pass_stands(go_back):
    expected = go_back(new_model(is_checkpointed=False), replaced)
    assert_same(go_back(new_model(is_checkpointed=True), replaced), expected)


def test_the_edit_makes_a_difference():
    plain = behind_the_block(new_model(is_checkpointed=True), lambda layer: None)
    edited = behind_the_block(new_model(is_checkpointed=True), replaced)
    weight = "transformer.h.0.mlp.c_fc.weight"
    assert not torch.equal(plain[weight], edited[weight])


def test_what_is_computed_again_is_no_visit():
    model = new_model(is_checkpointed=True)
    counts = []
    mlp = model._module.transformer.h[1].mlp
    handle = mlp.register_forward_pre_hook(lambda *_: counts.append(1))
    with model.trace(LONG) as tracer:
        cache = tracer.cache(modules=["transformer.h.1.mlp"])
        seen = [].save()
        for number in tracer.iter[:]:
            seen.append(model.transformer.h[1].mlp.output)
            if number == 0:
                loss = model.output.logits.pow(2).sum()
                with loss.backward():
                    pass
    handle.remove()
    assert len(counts) == 2
    assert len(seen) == 1
    assert isinstance(cache.model.transformer.h[1].mlp.output, torch.Tensor)


def test_the_gradient_of_a_value_inside_is_read():
    found = []
    for is_checkpointed in (False, True):
        model = new_model(is_checkpointed=is_checkpointed)
        torch.manual_seed(3)
        with model.trace(LONG):
            hidden = model.transformer.h[1].mlp.c_fc.output
            model.transformer.h[1].mlp.output = model.transformer.h[1].mlp.output * 2
            with model.output.logits.pow(2).sum().backward():
                gradient = hidden.grad.save()
        found.append(gradient)
    assert found[0].any()
    assert_same(*found)


def test_a_graph_that_is_retained_is_computed_again_each_time():
    found = []
    for is_checkpointed in (False, True):
        model = new_model(is_checkpointed=is_checkpointed)
        torch.manual_seed(3)
        with model.trace(LONG):
            replaced(model.transformer.h[1])
            loss = model.output.logits.pow(2).sum().save()
        loss.backward(retain_graph=True)
        loss.backward()
        found.append(gradients(model))
    assert_same(*found)


def test_rows_of_invokes_are_edited_again_alike():
    found = []
    for is_checkpointed in (False, True):
        model = new_model(is_checkpointed=is_checkpointed)
        torch.manual_seed(3)
        with model.trace() as tracer:
            with tracer.invoke("the cat"):
                model.transformer.h[1].mlp.output[:] = 0
            with tracer.invoke("the red dog"):
                model.transformer.h[1].mlp.output = model.transformer.h[1].mlp.output * 2
            with tracer.invoke():
                loss = model.output.logits.pow(2).sum().save()
        loss.backward()
        found.append(gradients(model))
    assert_same(*found)


class Twice(nn.Module):
    """One layer is called twice in each of two checkpointed regions; one region is in another."""

    def __init__(self, *, is_checkpointed: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.is_checkpointed = is_checkpointed

    def part(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(torch.tanh(self.layer(x))))

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self.part, x * 2) + x.pow(2)

    def run(self, function, x):
        return checkpoint(function, x, use_reentrant=False) if self.is_checkpointed else function(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self.part, self.run(self.whole, x))


@pytest.mark.parametrize("number", range(4))
def test_the_visit_that_was_edited_is_edited_again(number):
    found = []
    for is_checkpointed in (False, True):
        torch.manual_seed(0)
        module = Twice(is_checkpointed=is_checkpointed)
        model = NNsight(module)
        x = torch.linspace(-1, 1, 4)[None].requires_grad_()
        with model.trace(x) as tracer:
            with tracer.iter[number]:
                model.layer.output = model.layer.output.pow(3)
            loss = model.output.pow(2).sum().save()
        loss.backward()
        found.append([x.grad, module.layer.weight.grad, loss.detach()])
    assert_same(*found)


def test_nothing_is_left_on_the_module():
    model = new_model(is_checkpointed=True)

    def state():
        return {
            name: (set(one.__dict__), [*one._forward_hooks], [*one._forward_pre_hooks])
            for name, one in model._module.named_modules()
        }

    before = state()
    behind_the_block(model, skipped)
    assert state() == before


def test_an_edit_under_the_older_form_is_refused():
    model = new_model(is_checkpointed=True, reentrant=True)
    with pytest.raises(WriteError, match=r"h\.1\.mlp\.c_fc\.output was edited.*use_reentrant"):
        behind_the_block(model, edited_in_place)


def test_a_read_under_the_older_form_is_none():
    model = new_model(is_checkpointed=True, reentrant=True)
    with model.trace(LONG):
        hidden = model.transformer.h[1].mlp.c_fc.output.save()
        loss = model.output.logits.pow(2).sum().save()
    loss.backward()
    assert hidden.shape == (1, 8, 64)
