"""Guide: Conditionals and Iteration."""

import torch

from tests.models import assert_same


# guide 37
def test_a_condition_on_a_value(model):
    with model.trace("Hello") as tracer:
        output = model.transformer.h[0].output

        if torch.all(output < 100000):
            model.transformer.h[-1].output[:] = 0

        result = model.transformer.h[-1].output.save()

    assert not result.any()


# guide 37
def test_a_condition_that_does_not_hold(model, plain):
    with model.trace("Hello") as tracer:
        output = model.transformer.h[0].output

        if torch.all(output > 100000):
            model.transformer.h[-1].output[:] = 0

        result = model.transformer.h[-1].output.save()

    assert_same(result, plain.output("transformer.h.5", "Hello"))


# guide 38
def test_a_condition_in_a_session(model):
    # h[4] in the place of h[5], which is the last here
    with model.session() as session:
        with model.trace("Hello"):
            if torch.all(model.transformer.h[4].output < 100000):
                model.transformer.h[-1].output[:] = 0

            output = model.transformer.h[-1].output.save()

    assert not output.any()


# guide 39
def test_a_loop_in_a_session(model, plain):
    with model.session() as session:
        results = list().save()  # noqa: C408

        for prompt in ["Hello", "World", "Test"]:
            with model.trace(prompt):
                results.append(model.lm_head.output.argmax(dim=-1))

    expected = [plain.logits(prompt).argmax(dim=-1) for prompt in ("Hello", "World", "Test")]
    assert_same(results, expected)
