"""Guide: Multi-Token Generation."""

import pytest
import torch

from nnsight_dsl import GenerationEndedError
from tests.models import assert_same

EIFFEL = "The Eiffel Tower is in the city of"
STEPS = 5


def _by_step(plain, path, prompt=EIFFEL, count=STEPS):
    seen = []
    with plain.hooked(path, seen.append):
        plain.generate(prompt, count)
    assert len(seen) == count
    return seen


# guide 26
def test_generate(model, plain):
    with model.generate(EIFFEL, max_new_tokens=5) as tracer:
        hidden_states = model.transformer.h[-1].output.save()

        output = model.generator.output.save()

    decoded = model.tokenizer.decode(output[0])
    assert decoded == EIFFEL + " Paris, in France."
    assert_same(output, plain.generate(EIFFEL, 5))
    # DESIGN.md, Steps: outside of `iter` an access means the first occurrence, not "all steps".
    assert_same(hidden_states, _by_step(plain, "transformer.h.5")[0])


# guide 26
def test_generate_with_a_write_outside_of_iter(model, plain):
    # The guide: "interventions here apply to ALL generation steps by default". DESIGN.md, Steps,
    # puts step 0 in its place.
    with model.generate(EIFFEL, max_new_tokens=5):
        model.transformer.h[5].output[:] = 0
        output = model.generator.output.save()

    step = [0]

    def change(value):
        step[0] += 1
        return torch.zeros_like(value) if step[0] == 1 else None

    with plain.hooked("transformer.h.5", change):
        assert_same(output, plain.generate(EIFFEL, 5))


# guide 26
def test_result(model, plain):
    # the guide's table of tracer methods: "Get final output of traced function"
    with model.generate(EIFFEL, max_new_tokens=5) as tracer:
        tokens = tracer.result.save()
    with model.trace(EIFFEL) as tracer:
        output = tracer.result.save()

    assert_same(tokens, plain.generate(EIFFEL, 5))
    assert_same(output.logits, plain.logits(EIFFEL))


# guide 27
def test_all_steps(model, plain):
    with model.generate(EIFFEL, max_new_tokens=5) as tracer:
        logits = list().save()  # noqa: C408

        with tracer.iter[:]:
            logits.append(model.lm_head.output[0][-1].argmax(dim=-1))

    assert_same(torch.stack(logits), plain.generate(EIFFEL, 5)[0, -5:])


# guide 27
def test_all_steps_as_a_for_loop(model, plain):
    # Issue 4: `with tracer.iter[...]` and `for step in tracer.iter[...]` both.
    with model.generate(EIFFEL, max_new_tokens=5) as tracer:
        logits = list().save()  # noqa: C408
        for step in tracer.iter[:]:
            logits.append((step, model.lm_head.output[0][-1].argmax(dim=-1)))

    assert [step for step, _ in logits] == [0, 1, 2, 3, 4]
    assert_same(torch.stack([token for _, token in logits]), plain.generate(EIFFEL, 5)[0, -5:])


# guide 27
def test_a_slice_of_steps(model, plain):
    with model.generate(EIFFEL, max_new_tokens=5) as tracer:
        logits = list().save()  # noqa: C408

        with tracer.iter[1:3]:
            logits.append(model.lm_head.output)

    assert_same(logits, _by_step(plain, "lm_head")[1:3])


# guide 27
def test_one_step(model, plain):
    with model.generate(EIFFEL, max_new_tokens=5) as tracer:
        with tracer.iter[0]:
            first_logits = model.lm_head.output.save()

    assert_same(first_logits, _by_step(plain, "lm_head")[0])


# guide 27
def test_a_later_step(model, plain):
    with model.generate(EIFFEL, max_new_tokens=5) as tracer:
        with tracer.iter[2]:
            logits = model.lm_head.output.save()

    assert_same(logits, _by_step(plain, "lm_head")[2])


# guide 27
def test_a_list_of_steps(model, plain):
    with model.generate(EIFFEL, max_new_tokens=5) as tracer:
        logits = list().save()  # noqa: C408
        with tracer.iter[[0, 2, 4]]:
            logits.append(model.lm_head.output)

    assert_same(logits, _by_step(plain, "lm_head")[::2])


# guide 28
def test_a_condition_on_the_step(model, plain):
    with model.generate(EIFFEL, max_new_tokens=5) as tracer:
        outputs = list().save()  # noqa: C408

        with tracer.iter[:] as step_idx:
            if step_idx == 2:
                model.transformer.h[0].output[:] = 0

            outputs.append(model.transformer.h[-1].output)

    step = [-1]

    def change(value):
        step[0] += 1
        return torch.zeros_like(value) if step[0] == 2 else None

    with plain.hooked("transformer.h.0", change):
        expected = _by_step(plain, "transformer.h.5")
    assert_same(outputs, expected)
    assert not torch.equal(outputs[2], _by_step(plain, "transformer.h.5")[2])


# guide 29
def test_all(model, plain):
    with model.generate(EIFFEL, max_new_tokens=3) as tracer:
        hidden_states = list().save()  # noqa: C408

        with tracer.all():
            model.transformer.h[0].output[:] = 0
            hidden_states.append(model.transformer.h[-1].output)

    with plain.hooked("transformer.h.0", torch.zeros_like):
        assert_same(hidden_states, _by_step(plain, "transformer.h.5", count=3))


# guide 30
def test_next(model, plain):
    with model.generate(EIFFEL, max_new_tokens=3) as tracer:
        hs1 = model.transformer.h[-1].output.save()

        hs2 = model.transformer.h[-1].next().output.save()

        hs3 = model.transformer.h[-1].next().output.save()

    assert_same([hs1, hs2, hs3], _by_step(plain, "transformer.h.5", count=3))


# guide 31
def test_code_after_an_unbounded_loop_runs(model, plain):
    # The guide: it never executes. Issue 4 and DESIGN.md, Steps: it does.
    with model.generate(EIFFEL, max_new_tokens=3) as tracer:
        with tracer.iter[:]:
            hidden = model.transformer.h[-1].output.save()

        after = "reached".save()
        output = model.generator.output.save()

    assert after == "reached"
    assert_same(hidden, _by_step(plain, "transformer.h.5", count=3)[-1])
    assert_same(output, plain.generate(EIFFEL, 3))


# guide 31
def test_a_value_of_the_model_after_an_unbounded_loop(model, unlinted):
    # DESIGN.md, Steps: "An access there to a location inside the model raises, saying that the
    # generation ended after n steps."
    with pytest.raises(GenerationEndedError, match="3 steps"):
        with model.generate(EIFFEL, max_new_tokens=3) as tracer:
            with tracer.iter[:]:
                hidden = model.transformer.h[-1].output.save()

            final_logits = model.output.save()


# guide 32
def test_a_second_promptless_invoke(model, plain):
    # DESIGN.md, Invokes: with an input given to `generate`, a body of promptless invokes builds.
    with model.generate(EIFFEL, max_new_tokens=3) as tracer:
        with tracer.invoke():
            with tracer.iter[:]:
                hidden = model.transformer.h[-1].output.save()

        with tracer.invoke():
            final_logits = model.output.save()

    assert_same(hidden, _by_step(plain, "transformer.h.5", count=3)[-1])
    # an access outside of `iter` is step 0, in a separate invoke too
    assert_same(final_logits.logits, _by_step(plain, "lm_head", count=3)[0])


# guide 32
def test_bounded_iteration(model, plain):
    with model.generate(EIFFEL, max_new_tokens=3) as tracer:
        with tracer.iter[:3]:
            hidden = model.transformer.h[-1].output.save()
        output = model.generator.output.save()

    assert_same(hidden, _by_step(plain, "transformer.h.5", count=3)[-1])
    assert_same(output, plain.generate(EIFFEL, 3))


# guide 32
def test_explicit_steps(model, plain):
    with model.generate(EIFFEL, max_new_tokens=3) as tracer:
        first = model.lm_head.output.save()
        tracer.next()
        second = model.lm_head.output.save()
        tracer.next()
        third = model.lm_head.output.save()
        after = "reached".save()

    assert after == "reached"
    assert_same([first, second, third], _by_step(plain, "lm_head", count=3))
