"""Sections 3, 4, 5 and 12: traces, edits, scans, saving and generation."""

from __future__ import annotations

import copy
import linecache
import warnings
from textwrap import dedent

import pytest
import torch

from nnsight_dsl.blocks.import_hook import compile_module
from tests import models
from tests.models import assert_same

NEW = {"max_new_tokens": 3, "min_new_tokens": 3}

# tests/surface08/test_dialect.py is about this warning
pytestmark = pytest.mark.filterwarnings("ignore:a loop over all steps ended:UserWarning")


@pytest.fixture
def ids(gpt2):
    with gpt2.generate(models.SHORT, **NEW) as tracer:
        ids = tracer.result.save()
    return ids


def run(text: str, *, lowered: bool, **names):
    """Run a text as a script does, or as a module under the import hook."""
    filename = f"<{hash(text)}>"
    text = dedent(text)
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    exec(compile_module(text, filename) if lowered else compile(text, filename, "exec"), names)
    return names


# generation


@pytest.mark.parametrize("lowered", [False, True])
def test_row_generate_without_a_block_runs(gpt2, ids, lowered) -> None:
    text = """
        found = model.generate(prompt, **NEW)
        def ask():
            return model.generate(prompt, **NEW)
        asked = ask()
        both = [model.generate(prompt, **NEW), ask()]
        with model.generate(prompt, **NEW) as tracer:
            traced = tracer.result.save()
        with ask() as tracer:
            passed_on = tracer.result.save()
        def inner():
            with (model.generate(prompt, **NEW) if prompt else model.trace(prompt)) as tracer:
                chosen = tracer.result.save()
            return chosen
        chosen = inner()
        with model.session():
            with model.generate(prompt, **NEW) as tracer:
                session = tracer.result.save()
    """
    names = run(text, lowered=lowered, model=gpt2, prompt=models.SHORT, NEW=NEW)
    for found in ("found", "asked", "traced", "passed_on", "chosen", "session"):
        assert_same(names[found], ids)
    for found in names["both"]:
        assert_same(found, ids)


def test_row_generate_without_a_block_is_a_tracer_in_06(gpt2_06) -> None:
    tracer = gpt2_06.generate(models.SHORT, **NEW)
    assert not isinstance(tracer, torch.Tensor)


def test_row_trace_and_scan_without_with_run_nothing(gpt2) -> None:
    for opened in (gpt2.trace(models.SHORT), gpt2.scan(models.SHORT)):
        assert not isinstance(opened, torch.Tensor)


# edits


def test_row_edit_binds_the_tracer_and_the_model(gpt2) -> None:
    with gpt2.edit() as (tracer, edited):
        gpt2.transformer.h[1].output[:] = 0
    with edited.trace(models.SHORT):
        zeros = edited.transformer.h[1].output.save()
    with gpt2.trace(models.SHORT):
        kept = gpt2.transformer.h[1].output.save()
    assert not zeros.any()
    assert kept.any()


def test_row_edit_bound_to_one_name_is_the_pair_and_acts_as_the_model(gpt2) -> None:
    with gpt2.edit() as pair:
        gpt2.transformer.h[1].output[:] = 0
    tracer, edited = pair
    with pair[1].trace(models.SHORT):
        one = gpt2.transformer.h[1].output.save()
    with pair.trace(models.SHORT):
        two = gpt2.transformer.h[1].output.save()
    assert not one.any()
    assert not two.any()


def test_row_edit_in_place_binds_the_tracer(gpt2) -> None:
    with gpt2.edit(inplace=True) as tracer:
        gpt2.transformer.h[1].output[:] = 0
    assert not hasattr(tracer, "transformer")
    with gpt2.trace(models.SHORT):
        zeros = gpt2.transformer.h[1].output.save()
    assert not zeros.any()
    gpt2.clear_edits()
    assert not gpt2._edits


def zeros_by_step(model) -> list[bool]:
    with model.generate(models.SHORT, **NEW) as tracer:
        found = [].save()
        for _ in tracer.iter[:]:
            found.append(not model.transformer.h[1].output.any())
    return found


def test_row_an_edit_in_a_generation_is_made_at_the_first_visit(gpt2) -> None:
    with gpt2.edit() as (tracer, edited):
        gpt2.transformer.h[1].output[:] = 0
    assert zeros_by_step(edited) == [True, False, False]
    assert zeros_by_step(copy.deepcopy(edited)) == [True, False, False]


def test_row_an_edit_under_iter_is_made_in_those_steps(gpt2) -> None:
    with gpt2.edit() as (tracer, edited):
        for _ in tracer.iter[1:]:
            gpt2.transformer.h[1].output[:] = 0
    assert zeros_by_step(edited) == [False, True, True]
    with gpt2.edit() as (tracer, edited):
        for _ in tracer.all():
            gpt2.transformer.h[1].output[:] = 0
    assert zeros_by_step(edited) == [True, True, True]


def test_row_an_edit_in_06_is_made_in_each_step(gpt2_06) -> None:
    with gpt2_06.edit() as edited:
        gpt2_06.transformer.h[1].output[:] = 0
    assert zeros_by_step(edited) == [True, True, True]


def test_row_a_direct_call_of_an_edited_model_has_no_edits(gpt2) -> None:
    with gpt2.edit(inplace=True):
        gpt2.lm_head.output[:] = 0
    ids = models.tokenizer()(models.SHORT, return_tensors="pt")
    assert gpt2(**ids).logits.any()
    assert not gpt2.trace(models.SHORT, trace=False).logits.any()


# scans


def test_row_of_a_scan_what_was_saved_leaves(gpt2) -> None:
    with gpt2.scan(models.SHORT):
        hidden = gpt2.transformer.h[0].output
        shape = hidden.shape.save()
    assert shape[0] == 1
    with pytest.raises(NameError):
        hidden


def test_row_of_a_scan_in_06_all_names_leave(gpt2_06) -> None:
    with gpt2_06.scan(models.SHORT):
        shape = gpt2_06.transformer.h[0].output.shape
    assert shape[0] == 1


# stopping


def test_row_stop_ends_the_run_for_all_invokes(gpt2) -> None:
    ended = []
    with gpt2.trace() as tracer:
        with tracer.invoke(models.SHORT):
            try:
                first = gpt2.transformer.h[0].output.save()
                logits = gpt2.lm_head.output.save()
            finally:
                ended.append(1)
        with tracer.invoke(models.LONG):
            second = gpt2.transformer.h[1].output.save()
            tracer.stop()
    assert first.shape[0] == second.shape[0] == 1
    assert ended == [1]
    with pytest.raises(NameError):
        logits
    # and the next run is as ever
    with gpt2.trace(models.SHORT):
        logits = gpt2.lm_head.output.save()
    assert logits.any()


def test_row_stop_in_06_ends_the_run_for_all_invokes(gpt2_06) -> None:
    with gpt2_06.trace() as tracer:
        with tracer.invoke(models.SHORT):
            tracer_one = gpt2_06.transformer.h[0].output.save()
            tracer.stop()
        with tracer.invoke(models.LONG):
            logits = gpt2_06.lm_head.output.save()
    assert tracer_one.any()
    with pytest.raises(NameError):
        logits


# saving


def test_row_save_out_of_a_run_is_a_value_error(gpt2) -> None:
    import nnsight

    for value in (torch.ones(1), [1], 1, "text", {"a": 1}):
        with pytest.raises(ValueError, match="only while the model runs"):
            nnsight.save(value)
        with pytest.raises(ValueError, match="only while the model runs"):
            value.save()


def test_row_save_out_of_a_run_is_silent_in_06(gpt2_06) -> None:
    import nnsight

    ones = torch.ones(1)
    assert nnsight.save(ones) is ones
    assert [1].save() == [1]


def test_the_method_of_tensors_goes_with_compat(gpt2) -> None:
    from nnsight_dsl import compat

    assert hasattr(torch.ones(1), "save")
    with gpt2.trace(models.SHORT):
        hidden = gpt2.transformer.h[0].output.save()
    assert hasattr(torch.ones(1), "save")
    compat.uninstall()
    assert not hasattr(torch.ones(1), "save")


# deprecations


def test_row_model_iter_and_all_warn(gpt2, ids) -> None:
    from nnsight import NNsightDeprecationWarning

    for loop in ("for step in model.iter[:]", "for step in model.all()", "with model.all()"):
        text = f"""
            with model.generate(prompt, **NEW) as tracer:
                steps = list().save()
                {loop}:
                    steps.append(model.lm_head.output)
        """
        with pytest.warns(NNsightDeprecationWarning, match=r"model\.(iter|all)") as caught:
            names = run(text, lowered=False, model=gpt2, prompt=models.SHORT, NEW=NEW)
        assert len(names["steps"]) == 3
        assert caught[0].lineno == 4


def test_row_with_tracer_iter_warns_and_for_does_not(gpt2) -> None:
    from nnsight import NNsightDeprecationWarning

    with pytest.warns(NNsightDeprecationWarning, match="for step in tracer"):
        with gpt2.generate(models.SHORT, **NEW) as tracer:
            found = [].save()
            with tracer.iter[:2]:
                found.append(gpt2.lm_head.output)
    assert len(found) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error", NNsightDeprecationWarning)
        zeros_by_step(gpt2)
