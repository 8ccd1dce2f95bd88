"""Loops over steps at their edges, and over visits in a run with one forward of the root."""

import warnings

import pytest
import torch
from torch import nn

from nnsight_dsl import GenerationEndedError, NNsight, OutOfOrderError, intervene
from tests import models
from tests.models import GPT2, LONG, assert_same, bare, encoded

STEPS = 4


class Uneven(nn.Module):
    """One layer is called twice, another four times, a third once."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(4, 4)
        self.often = nn.Linear(4, 4)
        self.once = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number in range(4):
            if number < 2:
                x = self.twice(x)
            x = self.often(x)
        return self.once(x)


@pytest.fixture
def module():
    torch.manual_seed(5)
    return Uneven().requires_grad_(False)


@pytest.fixture
def model(module):
    return NNsight(module)


@pytest.fixture
def x():
    return torch.linspace(-1, 1, 4)[None]


@pytest.fixture
def visits(module, x):
    with models.recorded(module, ["twice", "often", "once"]) as seen:
        module(x)
    return seen


def by_step(path, count=STEPS, prompt=LONG):
    with models.recorded(bare(GPT2), [path]) as seen:
        bare(GPT2).generate(**encoded(prompt), max_new_tokens=count, do_sample=False)
    return seen[path]


# visits


def test_a_round_is_the_visit_of_its_number_to_each_location(model, module, x, visits):
    with model.trace(x) as tracer:
        seen = [].save()
        for number in tracer.iter[:2]:
            seen.append((number, model.twice.output, model.often.output))
    assert_same(seen, [(k, visits["twice"][k], visits["often"][k]) for k in range(2)])


def test_a_write_in_a_round_is_one_to_that_visit(model, module, x):
    with model.trace(x) as tracer:
        with tracer.iter[2]:
            model.often.output = model.often.output * 3
        result = model.output.save()
    count = iter(range(4))
    with models.hooked(module, {"often": lambda out: out * 3 if next(count) == 2 else None}):
        assert_same(result, module(x))


def test_an_open_loop_ends_with_the_location_of_fewest_visits(model, x, visits):
    with model.trace(x) as tracer:
        seen = [].save()
        order = [].save()
        for number in tracer.iter[:]:
            order.append(number)
            try:
                seen.append((model.twice.output, model.often.output))
            finally:
                order.append("left")
        else:
            order.append("else")
        result = tracer.result.save()
    assert_same(seen, list(zip(visits["twice"], visits["often"], strict=False)))
    assert order == [0, "left", 1, "left", 2, "left", "else"]
    assert_same(result, visits["once"][0])


def test_an_open_with_block_ends_there_too(model, x, visits):
    with model.trace(x) as tracer:
        seen = [].save()
        with tracer.iter[:]:
            seen.append((model.twice.output, model.often.output))
        result = tracer.result.save()
    assert len(seen) == 2
    assert_same(result, visits["once"][0])


def test_an_open_loop_over_one_location_has_a_round_for_each_visit(model, x, visits):
    with model.trace(x) as tracer:
        seen = [].save()
        for _ in tracer.iter[:]:
            seen.append(model.often.output)
        after = ["ran"].save()
    assert_same(seen, visits["often"])
    assert after == ["ran"]


def test_a_bounded_loop_that_outruns_the_visits_warns_once(model, x, visits):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with model.trace(x) as tracer:
            seen = [].save()
            for _ in tracer.iter[:4]:
                seen.append((model.twice.output, model.often.output))
            result = tracer.result.save()
    assert len(seen) == 2
    assert_same(result, visits["once"][0])
    (warning,) = caught
    assert "visit 2 (from 0) of twice.output, which had 2 visits" in str(warning.message)
    assert warning.filename == __file__


def test_a_bounded_loop_whose_rounds_never_begin_warns_once(model, x, visits):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with model.trace(x) as tracer:
            seen = [].save()
            for _ in tracer.iter[:9]:
                seen.append(model.often.output)
    assert_same(seen, visits["often"])
    (warning,) = caught
    assert "visit 4" in str(warning.message)


def test_loops_in_one_another_end_with_the_inner_location(model, x, visits):
    with model.trace(x) as tracer:
        order = [].save()
        for outer in tracer.iter[:]:
            first = model.twice.output
            for inner in tracer.iter[outer + 1 :]:
                model.twice.output
                order.append((outer, inner))
            order.append(("over", outer))
    assert order == [(0, 1), ("over", 0)]


def test_a_loop_of_an_intervention_ends_there_too(model, x, visits):
    @intervene
    def collect(model, tracer, into):
        for _ in tracer.iter[:]:
            into.append((model.twice.output, model.often.output))
        into.append("after")

    with model.trace(x) as tracer:
        seen = [].save()
        collect(model, tracer, seen)
    assert seen.pop() == "after"
    assert_same(seen, list(zip(visits["twice"], visits["often"], strict=False)))


def test_a_visit_that_has_passed_is_refused_at_once(model, x):
    with pytest.raises(OutOfOrderError, match=r"twice\.output has already passed for visit 1"):
        with model.trace(x) as tracer:
            with tracer.iter[1]:
                model.often.output
                model.twice.output


def test_a_location_that_is_never_called_is_no_end_of_a_loop(module, x):
    module.unused = nn.Linear(4, 4)
    model = NNsight(module)
    with pytest.raises(ValueError, match=r"unused\.output was never computed"):
        with model.trace(x) as tracer:
            for _ in tracer.iter[:]:
                model.unused.output


def test_next_moves_to_the_next_visit(model, x, visits):
    with model.trace(x):
        first = model.often.output.save()
        second = model.often.next().output.save()
        third = model.next().often.output.save()
    assert_same([first, second, third], visits["often"][:3])


# steps


def test_module_iter_is_tracer_iter():
    gpt2 = models.wrapped(GPT2)
    expected = by_step("transformer.h.1")
    with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False):
        seen = [].save()
        for step in gpt2.transformer.h[1].iter[1:3]:
            seen.append((step, gpt2.transformer.h[1].output))
        with gpt2.lm_head.iter[3] as step:
            seen.append((step, gpt2.transformer.h[1].output))
    assert_same(seen, [(step, expected[step]) for step in (1, 2, 3)])


def test_module_all_is_tracer_all():
    gpt2 = models.wrapped(GPT2)
    with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False):
        seen = [].save()
        with gpt2.transformer.h[1].all():
            seen.append(gpt2.transformer.h[1].output)
    assert_same(seen, by_step("transformer.h.1"))


def test_next_counts_from_the_step_of_the_loop_around_it():
    gpt2 = models.wrapped(GPT2)
    expected = by_step("transformer.h.1")
    with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        with tracer.iter[1]:
            here = gpt2.transformer.h[1].output.save()
            tracer.next()
            there = gpt2.transformer.h[1].output.save()
    assert_same([here, there], expected[1:3])


def test_nested_loops_are_pinned_to_the_inner_step():
    gpt2 = models.wrapped(GPT2)
    expected = by_step("transformer.h.1")
    with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        seen = [].save()
        for outer in tracer.iter[[0, 2]]:
            seen.append((outer, gpt2.transformer.h[0].output.shape[1]))
            for inner in tracer.iter[outer + 1]:
                seen.append((inner, gpt2.transformer.h[1].output))
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert_same([seen[1][1], seen[3][1]], [expected[1], expected[3]])


def test_a_step_that_an_inner_loop_has_left_behind_is_refused():
    gpt2 = models.wrapped(GPT2)
    with pytest.raises(OutOfOrderError, match="step 1 is over, the generation is at step 2"):
        with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
            for _ in tracer.iter[:]:
                for _ in tracer.iter[1:3]:
                    gpt2.lm_head.output


@pytest.mark.parametrize("key", [slice(0, 3), [0, 1, 2], 0], ids=str)
def test_a_late_request_in_a_bounded_loop_is_refused_in_its_step(key):
    gpt2 = models.wrapped(GPT2)
    begun = []
    handle = gpt2._module.register_forward_pre_hook(lambda *_: begun.append(1))
    try:
        with pytest.raises(OutOfOrderError, match=r"h\.0\.output has already passed in step 0"):
            with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
                with tracer.iter[key]:
                    gpt2.transformer.h[2].output
                    gpt2.transformer.h[0].output
    finally:
        handle.remove()
    # at once: the generation did not go on to a step that has such a value
    assert len(begun) == 1


def test_what_a_loop_had_saved_is_there_when_a_round_fails():
    gpt2 = models.wrapped(GPT2)
    with pytest.raises(OutOfOrderError):
        with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
            seen = [].save()
            for step in tracer.iter[:]:
                seen.append(gpt2.transformer.h[1].output)
                if step == 2:
                    gpt2.transformer.h[0].output
    assert_same(seen, by_step("transformer.h.1")[:3])


def test_next_beyond_the_last_step_says_how_many_there_were():
    gpt2 = models.wrapped(GPT2)
    with pytest.raises(GenerationEndedError, match="step 2, and the generation ended after 2"):
        with gpt2.generate(LONG, max_new_tokens=2, do_sample=False) as tracer:
            seen = [].save()
            for _ in range(5):
                seen.append(gpt2.lm_head.output)
                tracer.next()
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (-1, ValueError),
        (slice(-2, None), ValueError),
        (slice(None, None, -1), ValueError),
        ([2, 1], ValueError),
        ("all", ValueError),
        (1.5, TypeError),
        (None, TypeError),
        (True, TypeError),
    ],
    ids=str,
)
def test_a_key_that_is_no_step_is_refused(key, kind):
    gpt2 = models.wrapped(GPT2)
    with pytest.raises(kind, match="step"):
        with gpt2.generate(LONG, max_new_tokens=2, do_sample=False) as tracer:
            for _ in tracer.iter[key]:
                gpt2.lm_head.output


def test_each_invoke_has_a_loop_of_its_own_length():
    gpt2 = models.wrapped(GPT2)
    expected = by_step("transformer.h.1", prompt="the cat")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with gpt2.generate(max_new_tokens=3, do_sample=False) as tracer:
            with tracer.invoke("the cat"):
                first = [].save()
                for _ in tracer.iter[:]:
                    first.append(gpt2.transformer.h[1].output)
            with tracer.invoke("the cat"):
                second = [].save()
                for _ in tracer.iter[1:7]:  # noqa: NNS501
                    second.append(gpt2.transformer.h[1].output)
    for found, wanted in zip([*first, *second], [*expected[:3], *expected[1:3]], strict=True):
        models.assert_near(found, wanted)
    assert ["step 3" in str(one.message) for one in caught] == [True]


# names


def test_a_name_that_is_bound_behind_the_block_is_not_bound_in_it(model, x):
    with pytest.raises(UnboundLocalError, match="later"):
        with model.trace(x):
            seen = [later].save()  # noqa: F821
    later = 1


def test_a_name_that_a_later_invoke_binds_is_not_bound_in_an_earlier_one():
    gpt2 = models.wrapped(GPT2)
    with pytest.raises(NameError, match="hidden"):
        with gpt2.trace() as tracer:
            with tracer.invoke("the cat"):
                gpt2.transformer.h[1].output = hidden  # noqa: F821
            with tracer.invoke("the dog"):
                hidden = gpt2.transformer.h[0].output
