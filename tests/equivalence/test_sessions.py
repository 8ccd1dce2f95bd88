"""Sessions: several traces in one block."""

import pytest
import torch

from nnsight_dsl import NNsight, errors
from tests import models
from tests.models import assert_same
from tests.runtime.conftest import Stack


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Stack().requires_grad_(False)


@pytest.fixture
def model(module):
    return NNsight(module)


@pytest.fixture
def x(module):
    return torch.randn(2, module.layers[0].in_features)


def test_a_value_flows_to_the_next_trace_without_being_saved(model, module, x):
    with model.session():
        with model.trace(x):
            hidden = model.layers[1].output
        with model.trace(x * 2):
            model.layers[1].output[:] = hidden
            result = model.output.save()
    assert_same(result, module(x))
    with pytest.raises(NameError):
        hidden


def test_traces_stand_in_loops_and_under_conditions(model, module, x):
    with model.session():
        found = [].save()
        for factor in (1, 2, 3):
            if factor != 2:
                with model.trace(x * factor):
                    found.append(model.output)
    assert_same(found, [module(x), module(x * 3)])


def test_a_list_saved_across_traces_holds_all(model, module, x):
    with model.session():
        found = [].save()
        with model.trace(x):
            found.append(model.layers[0].output)
        with model.trace(x):
            found.append(model.layers[2].output)
    assert len(found) == 2
    assert_same(found[0], module.layers[0](x))


def test_a_session_stands_at_module_level(model, module, x, tmp_path):
    script = tmp_path / "session.py"
    script.write_text(
        "with model.session():\n"
        "    with model.trace(x) as tracer:\n"
        "        hidden = model.layers[1].output\n"
        "    norm = hidden.norm().save()\n"
    )
    namespace = {"model": model, "x": x, "__name__": "session"}
    exec(compile(script.read_text(), str(script), "exec"), namespace)
    assert_same(namespace["norm"], module.layers[1](module.layers[0](x)).norm())
    assert "hidden" not in namespace


def test_an_error_in_a_trace_of_a_session_ends_at_its_line(model, x):
    with pytest.raises(errors.OutOfOrderError) as caught:
        with model.session():
            with model.trace(x):
                late = model.layers[2].output
                early = model.layers[0].output
    last = caught.traceback[-1]
    first = test_an_error_in_a_trace_of_a_session_ends_at_its_line.__code__.co_firstlineno
    assert last.lineno + 1 == first + 5


def test_a_session_of_another_library_in_a_block_keeps_its_meaning(model, module, x):
    class Database:
        def session(self):
            return self

        def __enter__(self):
            return "rows"

        def __exit__(self, *error):
            return False

    with model.trace(x):
        with Database().session() as rows:
            hidden = model.layers[0].output.save()
            seen = (rows + "!").save()
    assert seen == "rows!"
    assert_same(hidden, module.layers[0](x))


def test_a_session_in_a_session(model, module, x):
    with model.session():
        with model.session():
            with model.trace(x):
                hidden = model.layers[1].output
            norm = hidden.norm().save()
        with model.trace(x * 2):
            model.layers[1].output = hidden
            result = model.output.save()
    assert_same(result, module(x))
    assert_same(norm, module.layers[1](module.layers[0](x)).norm())
    with pytest.raises(NameError):
        hidden


def test_a_session_is_left_by_break_of_its_own_loop(model, module, x):
    with model.session():
        found = [].save()
        for factor in (1, 2, 3):
            with model.trace(x * factor):
                value = model.output
            if value.sum() == module(x * 2).sum():
                break
            found.append(value)
        last = factor.save()
    assert_same(found, [module(x)])
    assert last == 2


def test_a_value_of_one_round_goes_into_the_next(model, module, x):
    with model.session():
        value = x
        for _ in range(3):
            with model.trace(value):
                value = model.layers[0].output
        result = value.save()
    by_hand = x
    for _ in range(3):
        by_hand = module.layers[0](by_hand)
    assert_same(result, by_hand)


def test_a_value_of_one_trace_decides_about_the_next(model, module, x):
    with model.session():
        with model.trace(x):
            positive = model.output.sum() > 0
        if positive:
            with model.trace(x):
                found = model.layers[0].output.save()
        else:
            with model.trace(x):
                found = model.layers[1].output.save()
    first = module.layers[0](x)
    assert_same(found, first if module(x).sum() > 0 else module.layers[1](first))


def test_a_helper_traces_in_a_session(model, module, x):
    def run(factor):
        with model.trace(x * factor):
            hidden = model.layers[1].output.save()
        return hidden

    with model.session():
        found = [run(factor) for factor in (1, 2)].save()
    assert_same(found, [module.layers[1](module.layers[0](x * factor)) for factor in (1, 2)])


def test_a_backward_pass_stands_in_a_session(x):
    module = Stack()
    model = NNsight(module)
    with model.session():
        with model.trace(x):
            hidden = model.layers[1].output
            loss = model.output.sum()
        with loss.backward():
            gradient = hidden.grad
        norm = gradient.norm().save()
    value = by_hand = module.layers[1](module.layers[0](x))
    for layer in module.layers[2:]:
        value = layer(value)
    (wanted,) = torch.autograd.grad(module.head(value).sum(), by_hand)
    assert_same(norm, wanted.norm())


def test_all_kinds_of_blocks_stand_in_a_session():
    gpt2 = models.wrapped(models.GPT2)
    ids = models.encoded("the cat")
    with gpt2.session():
        with gpt2.edit() as edited:
            gpt2.transformer.h[0].output[:] = 0
        with gpt2.scan("the cat"):
            width = gpt2.transformer.h[0].output.shape[-1]
        with edited.trace("the cat"):
            cleared = edited.transformer.h[0].output
        with gpt2.trace() as tracer:
            with tracer.invoke("the cat"):
                one = gpt2.lm_head.output
            with tracer.invoke("the dog"):
                other = gpt2.lm_head.output
        with gpt2.generate("the cat", max_new_tokens=2, do_sample=False) as tracer:
            tokens = tracer.result
        found = [width, bool(cleared.any()), one, other, tokens].save()
    bare = models.bare(models.GPT2)
    assert found[:2] == [16, False]
    models.assert_near(found[2], bare(**ids).logits)
    models.assert_near(found[3], bare(**models.encoded("the dog")).logits)
    assert_same(found[4], bare.generate(**ids, max_new_tokens=2, do_sample=False))


def test_traces_of_several_models_stand_in_a_session(model, module, x):
    other = NNsight(torch.nn.Linear(4, 2).requires_grad_(False))
    with model.session():
        with model.trace(x):
            hidden = model.layers[1].output
        with other.trace(hidden):
            result = other.output.save()
    assert_same(result, other._module(module.layers[1](module.layers[0](x))))


def test_a_name_around_a_session_that_is_not_saved_keeps_its_value(model, x):
    count = 1
    with model.session():
        count = 2
        with model.trace(x):
            count = 3
    assert count == 1


def test_a_value_between_the_traces_of_a_session_is_refused(model, x):
    with pytest.raises(errors.NotRunningError, match="in a session, and outside of its traces"):
        with model.session():
            with model.trace(x):
                early = model.layers[0].output
            late = model.layers[1].output


def test_an_unknown_option_of_a_session_is_refused(model):
    with pytest.raises(TypeError, match="max_new_tokens"):
        model.session(max_new_tokens=3)
