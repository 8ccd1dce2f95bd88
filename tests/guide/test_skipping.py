"""Guide: Module Skipping."""

import pytest
import torch

from nnsight_dsl import NotCalledError, OutOfOrderError
from tests.models import assert_same


# guide 55
def test_skip(model, plain):
    with model.trace("Hello"):
        layer0_out = model.transformer.h[0].output.save()

        model.transformer.h[1].skip(layer0_out)

        layer1_out = model.transformer.h[1].output.save()
        logits = model.lm_head.output.save()

    # The guide saves only the second and compares rows; a name that was not saved stays inside
    # (DESIGN.md, Names).
    assert torch.equal(layer0_out, layer1_out)
    first = plain.output("transformer.h.0", "Hello")
    with plain.hooked("transformer.h.1", lambda _output: first):
        assert_same(logits, plain.logits("Hello"))


# guide 55
def test_the_module_is_not_run(model):
    ran = []
    handle = model._module.transformer.h[1].mlp.register_forward_hook(lambda *_: ran.append(1))
    try:
        with model.trace("Hello"):
            layer0_out = model.transformer.h[0].output
            model.transformer.h[1].skip(layer0_out)
    finally:
        handle.remove()
    assert ran == []


# guide 55
def test_no_value_below_a_skipped_module(model):
    with pytest.raises((NotCalledError, OutOfOrderError), match=r"transformer\.h\.1\.mlp"):
        with model.trace("Hello"):
            layer0_out = model.transformer.h[0].output
            model.transformer.h[1].skip(layer0_out)
            inner = model.transformer.h[1].mlp.output.save()


# guide 55
def test_no_skip_backwards(model):
    with pytest.raises(OutOfOrderError, match=r"transformer\.h\.1"):
        with model.trace("Hello"):
            layer2_out = model.transformer.h[2].output
            model.transformer.h[1].skip(layer2_out)
