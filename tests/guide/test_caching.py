"""Guide: Caching Activations."""

import pytest
import torch

from tests.models import assert_same


# guide 45
def test_all_modules(model, plain):
    with model.trace("Hello") as tracer:
        cache = tracer.cache()

    # DESIGN.md, Names: `tracer.cache()` saves itself.
    layer0_out = cache["model.transformer.h.0"].output
    assert_same(layer0_out, plain.output("transformer.h.0", "Hello"))
    # the containers are never called
    called = {
        f"model.{path}".removesuffix(".")
        for path, module in plain.module.named_modules()
        if path not in ("transformer.h",)
    }
    assert set(cache) <= called
    assert {f"model.transformer.h.{number}.mlp" for number in range(6)} <= set(cache)
    assert {"model", "model.transformer", "model.lm_head"} <= set(cache)


# guide 46
def test_some_modules(model, plain):
    with model.trace("Hello") as tracer:
        cache = tracer.cache(
            modules=[model.transformer.h[0], model.transformer.h[1], model.lm_head]
        )

    assert list(cache) == ["model.transformer.h.0", "model.transformer.h.1", "model.lm_head"]
    assert_same(cache["model.lm_head"].output, plain.logits("Hello"))


# guide 47
def test_inputs(model, plain):
    with model.trace("Hello") as tracer:
        cache = tracer.cache(include_inputs=True)

    layer1_input = cache["model.transformer.h.1"].inputs
    args, kwargs = layer1_input
    assert isinstance(kwargs, dict)
    assert_same(args[0], plain.output("transformer.h.0", "Hello"))


# guide 48
def test_interventions(model):
    with model.trace("Hello") as tracer:
        cache = tracer.cache()

        model.transformer.h[0].output[:] = 0

    assert torch.all(cache["model.transformer.h.0"].output == 0)


# guide 49
def test_attribute_style(model):
    with model.trace("Hello") as tracer:
        cache = tracer.cache()

    out1 = cache["model.transformer.h.0"].output
    out2 = cache.model.transformer.h[0].output
    assert out1 is out2
    with pytest.raises(KeyError):
        cache["model.transformer.h.100"]
