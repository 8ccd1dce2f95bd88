"""Edits, caches and scans beside hand-written hooks."""

import warnings

import pytest
import torch

from nnsight_dsl import LanguageModel, errors, intervene
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


# what an edit holds, and where it holds


def logits_with(change, path="transformer.h.0"):
    with hooked(bare(GPT2), {path: change}):
        return bare(GPT2)(**encoded(LONG)).logits


def test_edits_in_place_and_of_a_copy_are_stacked(gpt2):
    try:
        with gpt2.edit(inplace=True):
            gpt2.transformer.h[0].output = gpt2.transformer.h[0].output * 2
        with gpt2.edit(inplace=True):
            gpt2.transformer.h[0].output = gpt2.transformer.h[0].output + 1
        with gpt2.edit() as copy:
            gpt2.transformer.h[0].output = gpt2.transformer.h[0].output ** 2
        with copy.trace(LONG):
            all_three = copy.lm_head.output.save()
        with gpt2.trace(LONG):
            two = gpt2.lm_head.output.save()
        gpt2.clear_edits()
        with gpt2.trace(LONG):
            none = gpt2.lm_head.output.save()
        with copy.trace(LONG):
            still = copy.lm_head.output.save()
    finally:
        gpt2.clear_edits()
    assert_same(all_three, logits_with(lambda out: (out * 2 + 1) ** 2))
    assert_same(two, logits_with(lambda out: out * 2 + 1))
    assert_same(none, logits_with(lambda out: None))
    assert_same(still, all_three)


def test_clearing_the_edits_of_a_copy_leaves_the_first_wrapper(gpt2):
    try:
        with gpt2.edit(inplace=True):
            gpt2.transformer.h[0].output = gpt2.transformer.h[0].output * 2
        with gpt2.edit() as copy:
            gpt2.transformer.h[0].output = gpt2.transformer.h[0].output ** 2
        copy.clear_edits()
        with copy.trace(LONG):
            plain = copy.lm_head.output.save()
        with gpt2.trace(LONG):
            edited = gpt2.lm_head.output.save()
    finally:
        gpt2.clear_edits()
    assert_same(plain, logits_with(lambda out: None))
    assert_same(edited, logits_with(lambda out: out * 2))


def test_plain_calls_of_wrapper_and_module_do_not_see_the_edits_of_a_copy(gpt2):
    with gpt2.edit() as copy:
        gpt2.transformer.h[0].output[:] = 0
    expected = bare(GPT2)(**encoded(LONG)).logits
    assert_same(gpt2(**encoded(LONG)).logits, expected)
    assert_same(gpt2._module(**encoded(LONG)).logits, expected)
    assert_same(copy._module(**encoded(LONG)).logits, expected)
    assert_same(copy(**encoded(LONG)).logits, logits_with(lambda out: out * 0))


def with_adapter():
    model = LanguageModel(models.new_gpt2(), tokenizer=models.tokenizer())
    torch.manual_seed(1)
    model.transformer.h[0].adapter = torch.nn.Linear(16, 16)
    return model


def test_an_edit_calls_an_auxiliary_module_that_blocks_can_read():
    model = with_adapter()
    adapter = model.transformer.h[0].adapter._module
    with model.edit() as edited:
        hidden = model.transformer.h[0].output
        model.transformer.h[0].output = model.transformer.h[0].adapter(hidden, hook=True)
    with edited.trace(LONG):
        given = edited.transformer.h[0].adapter.input.save()
        made = edited.transformer.h[0].adapter.output.save()
        logits = edited.lm_head.output.save()
    before = models.output_of(GPT2, LONG, "transformer.h.0")
    assert_same(given, before)
    assert_same(made, adapter(before))
    assert_same(logits, logits_with(adapter))


def test_a_block_edits_the_auxiliary_module_of_an_edit():
    model = with_adapter()
    with model.edit() as edited:
        hidden = model.transformer.h[0].output
        model.transformer.h[0].output = model.transformer.h[0].adapter(hidden, hook=True)
    with edited.trace(LONG):
        edited.transformer.h[0].adapter.output[:] = 1
        logits = edited.lm_head.output.save()
    assert_same(logits, logits_with(torch.ones_like))


def test_an_auxiliary_module_of_an_edit_is_called_in_each_step():
    model = with_adapter()
    adapter = model.transformer.h[0].adapter._module
    with model.edit(inplace=True):
        hidden = model.transformer.h[0].output
        model.transformer.h[0].output = model.transformer.h[0].adapter(hidden, hook=True)
    with model.generate(LONG, max_new_tokens=3, do_sample=False) as tracer:
        seen = [].save()
        for _ in tracer.iter[:]:
            seen.append(model.transformer.h[0].adapter.output)
        tokens = tracer.result.save()
    with hooked(bare(GPT2), {"transformer.h.0": adapter}):
        with models.recorded(bare(GPT2), ["transformer.h.0"]) as expected:
            wanted = bare(GPT2).generate(**encoded(LONG), max_new_tokens=3, do_sample=False)
    assert_same(tokens, wanted)
    assert_same(seen, expected["transformer.h.0"])


@intervene
def scale(model, layer: int, factor: float):
    model.transformer.h[layer].output = model.transformer.h[layer].output * factor


def test_an_edit_calls_an_intervention(gpt2):
    with gpt2.edit() as edited:
        scale(gpt2, 0, 3.0)
    with edited.trace(LONG):
        logits = edited.lm_head.output.save()
    with edited.generate(LONG, max_new_tokens=3, do_sample=False) as tracer:
        tokens = tracer.result.save()
    assert_same(logits, logits_with(lambda out: out * 3.0))
    with hooked(bare(GPT2), {"transformer.h.0": lambda out: out * 3.0}):
        assert_same(tokens, bare(GPT2).generate(**encoded(LONG), max_new_tokens=3, do_sample=False))


def test_an_edit_that_loops_over_steps_is_made_in_those(gpt2):
    with gpt2.edit() as edited:
        with gpt2.iter[1:3]:
            gpt2.transformer.h[0].output[:] = 0
    with edited.generate(LONG, max_new_tokens=4, do_sample=False) as tracer:
        any_left = [].save()
        for _ in tracer.iter[:]:
            any_left.append(bool(edited.transformer.h[0].output.any()))
    assert any_left == [True, False, False, True]


def test_an_edit_skips_a_layer(gpt2):
    with gpt2.edit() as edited:
        gpt2.transformer.h[1].skip(gpt2.transformer.h[0].output)
    with edited.trace(LONG):
        logits = edited.lm_head.output.save()
    first = models.output_of(GPT2, LONG, "transformer.h.0")
    assert_same(logits, logits_with(lambda _out: first, "transformer.h.1"))


def test_an_edit_holds_for_all_rows_of_invokes(gpt2):
    with gpt2.edit() as edited:
        gpt2.transformer.h[1].output[:, -1] = 0
    with edited.trace() as tracer:
        with tracer.invoke("the cat"):
            first = edited.transformer.h[1].output.save()
        with tracer.invoke(LONG):
            second = edited.transformer.h[1].output.save()
    assert not first[:, -1].any()
    assert not second[:, -1].any()
    assert first[:, -2].any()
    assert second[:, -2].any()


def test_an_edit_holds_in_a_session_and_in_a_scan(gpt2):
    with gpt2.edit() as edited:
        gpt2.lm_head.input = gpt2.lm_head.input[:, :3]
    with edited.session():
        with edited.trace(LONG):
            logits = edited.lm_head.output.save()
    with edited.scan(LONG):
        shape = edited.lm_head.output.shape
    models.assert_near(logits, bare(GPT2)(**encoded(LONG)).logits[:, :3])
    assert shape == (1, 3, 30)


def test_names_that_an_edit_saves_are_not_the_blocks(gpt2):
    with gpt2.edit() as edited:
        hidden = gpt2.transformer.h[1].output.save()
    hidden = "mine"
    with edited.trace(LONG):
        logits = edited.lm_head.output.save()
    assert hidden == "mine"


def test_an_edit_that_fails_says_where_it_stands(gpt2):
    with gpt2.edit() as edited:
        gpt2.transformer.h[20].output[:] = 0  # noqa: NNS201
    with pytest.raises(IndexError, match="number 20") as caught:
        with edited.trace(LONG):
            pass
    line = test_an_edit_that_fails_says_where_it_stands.__code__.co_firstlineno + 2
    assert line in [entry.lineno + 1 for entry in caught.traceback]


def test_an_unknown_option_of_an_edit_is_refused(gpt2):
    with pytest.raises(TypeError, match="in_place"):
        gpt2.edit(in_place=True)


def test_an_edit_that_goes_to_the_next_step_is_made_once(gpt2):
    with gpt2.edit() as edited:
        gpt2.lm_head.next().output[:, -1, 3] = 100.0
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    with edited.generate(LONG, **options) as tracer:
        seen = [].save()
        for _ in tracer.iter[:]:
            seen.append(edited.lm_head.output[0, -1, 3].item())
    assert [value == 100.0 for value in seen] == [False, True, False, False]
