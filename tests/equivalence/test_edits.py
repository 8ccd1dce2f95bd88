"""Edits, caches and scans beside hand-written hooks."""

import warnings

import pytest
import torch

from nnsight_dsl import LanguageModel, errors
from tests import models
from tests.models import GPT2, assert_same, bare, encoded, hooked

LONG = models.LONG
PATH = "transformer.h.1"


@pytest.fixture
def gpt2() -> LanguageModel:
    return models.wrapped(GPT2)


@pytest.fixture
def zeroed():
    """Logits with the second token zeroed after one layer, by hand."""

    def zero(output):
        output = output.clone()
        output[:, 1] = 0
        return output

    with hooked(bare(GPT2), {PATH: zero}):
        return bare(GPT2)(**encoded(LONG)).logits


def test_an_edited_wrapper_has_the_edit_and_the_first_one_has_not(gpt2, zeroed):
    with gpt2.edit() as edited:
        gpt2.transformer.h[1].output[:, 1] = 0
    with gpt2.trace(LONG):
        plain = gpt2.lm_head.output.save()
    with edited.trace(LONG):
        changed = edited.lm_head.output.save()
    assert_same(plain, bare(GPT2)(**encoded(LONG)).logits)
    assert_same(changed, zeroed)


def test_an_edited_wrapper_runs_its_edits_without_a_block(gpt2, zeroed):
    with gpt2.edit() as edited:
        gpt2.transformer.h[1].output[:, 1] = 0
    assert_same(edited.trace(LONG, trace=False).logits, zeroed)
    assert_same(edited(**encoded(LONG)).logits, zeroed)
    assert_same(gpt2(**encoded(LONG)).logits, bare(GPT2)(**encoded(LONG)).logits)


def test_an_edit_in_place_stays_until_it_is_cleared(gpt2, zeroed):
    with gpt2.edit(inplace=True):
        gpt2.transformer.h[1].output[:, 1] = 0
    with gpt2.trace(LONG):
        changed = gpt2.lm_head.output.save()
    assert_same(changed, zeroed)
    gpt2.clear_edits()
    with gpt2.trace(LONG):
        plain = gpt2.lm_head.output.save()
    assert_same(plain, bare(GPT2)(**encoded(LONG)).logits)


def test_edits_are_stacked_in_their_order(gpt2):
    with gpt2.edit() as once:
        gpt2.transformer.h[1].output = gpt2.transformer.h[1].output ** 2
    with once.edit() as twice:
        once.transformer.h[1].output = once.transformer.h[1].output * 3
    with hooked(bare(GPT2), {PATH: lambda output: output**2 * 3}):
        expected = bare(GPT2)(**encoded(LONG)).logits
    with twice.trace(LONG):
        logits = twice.lm_head.output.save()
    assert_same(logits, expected)


def test_an_edit_is_made_in_each_step_of_a_generation(gpt2):
    with gpt2.edit() as edited:
        gpt2.transformer.h[1].output = gpt2.transformer.h[1].output ** 2
    with hooked(bare(GPT2), {PATH: lambda output: output**2}):
        expected = bare(GPT2).generate(**encoded(LONG), max_new_tokens=4, do_sample=False)
    with edited.generate(LONG, max_new_tokens=4, do_sample=False) as tracer:
        tokens = tracer.result.save()
    assert_same(tokens, expected)


def test_an_edit_keeps_the_values_of_its_names(gpt2):
    factor = 2.0
    with gpt2.edit() as edited:
        gpt2.transformer.h[1].output = gpt2.transformer.h[1].output ** factor
    factor = 5.0
    with hooked(bare(GPT2), {PATH: lambda output: output**2.0}):
        expected = bare(GPT2)(**encoded(LONG)).logits
    with edited.trace(LONG):
        logits = edited.lm_head.output.save()
    assert_same(logits, expected)


def test_a_cache_holds_what_hooks_see_after_the_edits(gpt2):
    with gpt2.trace(LONG) as tracer:
        cache = tracer.cache(modules=[gpt2.transformer.h[1], "lm_head"], include_inputs=True)
        gpt2.transformer.h[1].output[:] = 0
    assert set(cache) == {"model.transformer.h.1", "model.lm_head"}
    assert (cache["model.transformer.h.1"].output == 0).all()
    assert cache.model.transformer.h[1].output is cache["model.transformer.h.1"].output
    with hooked(bare(GPT2), {PATH: lambda output: output * 0}):
        expected = bare(GPT2)(**encoded(LONG)).logits
    assert_same(cache.model.lm_head.output, expected.detach())
    args, kwargs = cache["model.lm_head"].inputs
    assert args[0].shape == cache.model.lm_head.input.shape


def test_a_cache_of_a_generation_holds_each_step(gpt2):
    with gpt2.generate(LONG, max_new_tokens=3, do_sample=False) as tracer:
        cache = tracer.cache(modules=[gpt2.lm_head])
        logits = [].save()
        for _ in tracer.iter[:]:
            logits.append(gpt2.lm_head.output)
    assert len(logits) > 1
    assert_same(cache.model.lm_head.output, logits)


def test_a_cache_of_an_invoke_holds_its_rows(gpt2):
    with gpt2.trace() as tracer:
        with tracer.invoke("the cat"):
            first = gpt2.lm_head.output.save()
            cache = tracer.cache(modules=[gpt2.lm_head])
        with tracer.invoke("the dog"):
            second = gpt2.lm_head.output.save()
    assert_same(cache.model.lm_head.output, first.detach())


def test_a_path_that_is_not_cached_says_what_is(gpt2):
    with gpt2.trace(LONG) as tracer:
        cache = tracer.cache(modules=[gpt2.lm_head])
    with pytest.raises(KeyError, match=r"model\.lm_head"):
        cache["model.transformer.h.0"]


def test_shapes_of_a_scan_are_those_of_a_run(gpt2):
    with gpt2.scan(LONG):
        hidden = gpt2.transformer.h[1].output.shape
        logits = gpt2.lm_head.output.shape
    expected = bare(GPT2)(**encoded(LONG), output_hidden_states=True)
    assert hidden == expected.hidden_states[1].shape
    assert logits == expected.logits.shape


def test_a_model_that_is_not_loaded_is_scanned():
    model = LanguageModel("examples/models/city-facts")
    with model.scan("The Eiffel Tower is in"):
        width = model.transformer.h[0].output.shape[-1]
    assert width == 128
    assert model.device.type == "meta"


def test_a_scan_finds_an_index_out_of_range(gpt2):
    with pytest.raises(IndexError):
        with gpt2.scan("the cat"):
            gpt2.transformer.h[0].output[:, 10] = 0


def test_validation_finds_it_before_the_model_runs(gpt2):
    calls = []
    handle = gpt2._module.transformer.wte.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(IndexError):
        with gpt2.trace("the cat", validate=True):
            gpt2.transformer.h[0].output[:, 10] = 0
    # once, on fake tensors
    assert len(calls) == 1
    handle.remove()
    with gpt2.trace("the cat", scan=True, validate=True):
        hidden = gpt2.transformer.h[0].output.save()
    assert type(hidden) is torch.Tensor


def test_the_first_item_of_a_tensor_output_warns_once(gpt2):
    def read():
        with gpt2.trace(LONG):
            return_value = gpt2.transformer.h[0].output[0].save()  # noqa: NNS203
        return return_value

    with pytest.warns(UserWarning, match=r"first row.*write \.output"):
        read()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read()


def test_settings_are_kept(tmp_path, monkeypatch):
    from nnsight_dsl.config import Config

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    config = Config()
    config.APP.CROSS_INVOKER = False
    config.save()
    assert Config().APP.CROSS_INVOKER is False


def test_names_of_another_invoke_are_refused_where_the_setting_says_so(gpt2, monkeypatch):
    from nnsight_dsl import CONFIG

    monkeypatch.setattr(CONFIG.APP, "CROSS_INVOKER", False)
    with pytest.raises(errors.SharedNameError, match="CROSS_INVOKER"):
        with gpt2.trace() as tracer:
            with tracer.invoke("the cat"):
                hidden = gpt2.transformer.wte.output
            with tracer.invoke("the dog"):
                gpt2.transformer.wte.output = hidden
