"""Guide: Tracing Context."""

import pytest
import torch

from nnsight_dsl import NoInputError
from tests.models import assert_same


# guide 9
def test_single_input(model, plain):
    with model.trace("Hello World"):
        output = model.output.save()

    assert_same(output.logits, plain.logits("Hello World"))


# guide 9
def test_generation(model, plain):
    with model.generate("Hello", max_new_tokens=5):
        output = model.generator.output.save()

    assert_same(output, plain.generate("Hello", 5))


# guide 10
def test_argument_or_invokes(model, plain):
    with model.trace("Hello"):
        one = model.output.save()

    with model.trace() as tracer:
        with tracer.invoke("Hello"):
            other = model.output.save()

    assert_same(one.logits, plain.logits("Hello"))
    assert_same(other.logits, one.logits)


# guide 10
def test_neither_argument_nor_invokes(model):
    with pytest.raises(NoInputError):
        with model.trace():
            output = model.output.save()


# guide 11
def test_implicit_invoke(model):
    with model.trace("Hello"):
        implicit = model.output.save()

    with model.trace() as tracer:
        with tracer.invoke("Hello"):
            explicit = model.output.save()

    assert_same(implicit.logits, explicit.logits)


# guide 12
def test_print_and_stop(model, capsys):
    reached = []
    handle = model._module.transformer.h[1].register_forward_hook(lambda *_: reached.append(1))
    try:
        with model.trace("Hello") as tracer:
            print("Debug:", model.transformer.h[0].output.shape)
            tracer.stop()
    finally:
        handle.remove()

    assert capsys.readouterr().out == "Debug: torch.Size([1, 3, 128])\n"
    assert reached == []


# guide 12
def test_stop_keeps_what_was_saved(model, plain):
    with model.trace("Hello") as tracer:
        hidden = model.transformer.h[0].output.save()
        tracer.stop()

    assert isinstance(hidden, torch.Tensor)
    assert_same(hidden, plain.output("transformer.h.0", "Hello"))
