"""Scans and validation: what runs on fake tensors is what the real run would be."""

import gc
import warnings

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from nnsight_dsl import LanguageModel, NNsight, OutOfOrderError
from tests import models
from tests.models import GPT2, LONG, SHORT, assert_same, bare, encoded, recorded

CITY_FACTS = "examples/models/city-facts"


def fake_tensors():
    gc.collect()
    return sum(type(found) is FakeTensor for found in gc.get_objects())


# scan


def test_every_shape_is_that_of_a_run(gpt2: LanguageModel) -> None:
    with recorded(bare(GPT2)) as seen:
        bare(GPT2)(**encoded(LONG))
    with gpt2.scan(LONG) as tracer:
        cache = tracer.cache(device=None)
    shapes = {path: out[0].shape for path, out in seen.items() if torch.is_tensor(out[0])}
    assert shapes
    for path, shape in shapes.items():
        assert cache[f"model.{path}"].output.shape == shape


def test_options_of_the_forward_hold_in_a_scan(gpt2: LanguageModel) -> None:
    with gpt2.scan(LONG, output_hidden_states=True):
        shapes = [hidden.shape for hidden in gpt2.output.hidden_states]
    assert shapes == [torch.Size([1, 8, 16])] * 4


def test_names_that_were_not_saved_leave_a_scan(gpt2: LanguageModel) -> None:
    with gpt2.scan(LONG):
        hidden = gpt2.transformer.h[1].output
        tokens, width = hidden.shape[1:]
        total = 0
        for layer in gpt2.transformer.h[2:]:
            total += layer.output.numel()
    assert (tokens, width, total) == (8, 16, 128)
    assert isinstance(hidden, FakeTensor)


def test_edits_of_a_scan_have_the_shapes_of_real_ones(gpt2: LanguageModel) -> None:
    vector = torch.randn(16)
    with gpt2.scan(LONG):
        gpt2.transformer.h[0].output[:, -1] += vector
        gpt2.transformer.h[1].skip(gpt2.transformer.h[0].output)
        gpt2.lm_head.input = gpt2.lm_head.input[:, :3]
        shape = gpt2.lm_head.output.shape
    assert shape == (1, 3, 30)


def test_an_edit_that_does_not_fit_is_refused_at_its_line(gpt2: LanguageModel) -> None:
    with pytest.raises(RuntimeError, match="15") as caught:
        with gpt2.scan(LONG):
            gpt2.transformer.h[0].output[:] += torch.randn(15)
    line = test_an_edit_that_does_not_fit_is_refused_at_its_line.__code__.co_firstlineno + 3
    assert line in [entry.lineno + 1 for entry in caught.traceback]


def test_invokes_of_a_scan(gpt2: LanguageModel) -> None:
    with gpt2.scan() as tracer:
        with tracer.invoke(SHORT):
            first = gpt2.lm_head.output.shape
        with tracer.invoke([LONG, SHORT]):
            second = gpt2.lm_head.output.shape
        with tracer.invoke():
            both = gpt2.lm_head.output.shape
    assert (first, second, both) == ((1, 8, 30), (2, 8, 30), (3, 8, 30))


def test_a_scan_computes_nothing_and_changes_nothing() -> None:
    module = nn.BatchNorm1d(4)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    model = NNsight(module)
    with model.scan(torch.randn(3, 4)):
        shape = model.output.shape
    assert shape == (3, 4)
    assert_same(dict(module.state_dict()), before)
    assert type(module.weight) is nn.Parameter


def test_a_model_that_was_never_loaded_is_scanned_with_all_tools() -> None:
    model = LanguageModel(CITY_FACTS)
    with model.scan() as tracer:
        cache = tracer.cache(modules=["transformer.h.5"], device=None)
        with tracer.invoke("The Eiffel Tower is in"):
            width = model.transformer.h[0].output.shape[-1]
            model.transformer.h[0].output[:, -1] = 0
        with tracer.invoke("The Colosseum is in"):
            vocabulary = model.lm_head.output.shape[-1]
    assert (width, vocabulary) == (128, 1084)
    assert cache["model.transformer.h.5"].output.shape[-1] == 128
    assert all(parameter.is_meta for parameter in model.parameters())


def test_the_order_of_accesses_is_checked_in_a_scan(gpt2: LanguageModel) -> None:
    with pytest.raises(OutOfOrderError):
        with gpt2.scan(LONG):
            gpt2.transformer.h[1].output
            gpt2.transformer.h[0].output


# validate


def counting(model):
    """Count the calls of a layer on real tensors, by a hook that stands on it."""
    calls = []

    def count(_module, _args, output):
        if not isinstance(output, FakeTensor):
            calls.append(1)

    return calls, model._module.transformer.h[0].register_forward_hook(count)


@pytest.mark.parametrize("options", [{"scan": True, "validate": True}, {"validate": True}], ids=str)
def test_what_does_not_fit_is_found_before_the_run(gpt2: LanguageModel, options) -> None:
    calls, handle = counting(gpt2)
    try:
        with pytest.raises(IndexError, match="index 1000"):
            with gpt2.trace(LONG, **options):
                gpt2.transformer.h[2].output[:, 1000] = 0
    finally:
        handle.remove()
    assert calls == []


def test_what_does_not_fit_in_an_invoke_is_found_before_the_run(gpt2: LanguageModel) -> None:
    calls, handle = counting(gpt2)
    try:
        with pytest.raises(IndexError, match="index 100"):
            with gpt2.trace(validate=True) as tracer:
                with tracer.invoke(SHORT):
                    gpt2.transformer.h[1].output[:, 1] = 0
                with tracer.invoke(LONG):
                    gpt2.transformer.h[2].output[:, 100] = 0
    finally:
        handle.remove()
    assert calls == []


def test_invokes_that_fit_run_as_ever(gpt2: LanguageModel) -> None:
    found = []
    for options in ({}, {"scan": True, "validate": True}):
        with gpt2.trace(**options) as tracer:
            barrier = tracer.barrier(2)
            cache = tracer.cache(modules=["lm_head"])
            with tracer.invoke("the cat"):
                hidden = gpt2.transformer.h[1].output
                barrier()
            with tracer.invoke("the dog"):
                barrier()
                gpt2.transformer.h[1].output = hidden
                logits = gpt2.lm_head.output.save()
                result = tracer.result.logits.save()
        found.append((logits, result, cache.model.lm_head.output))
    assert_same(*found)


def test_a_shape_error_of_the_model_is_found_before_the_run(gpt2: LanguageModel) -> None:
    calls, handle = counting(gpt2)
    try:
        with pytest.raises(RuntimeError, match=r"h\.1\.mlp\.c_proj\.input"):
            with gpt2.trace(LONG, validate=True):
                gpt2.transformer.h[1].mlp.c_proj.input = torch.zeros(1, 8, 5)
    finally:
        handle.remove()
    assert calls == []


def test_containers_around_the_block_hold_nothing_fake(gpt2: LanguageModel) -> None:
    outer = []
    nested = {"of": []}
    with gpt2.trace(LONG, validate=True):
        outer.append(gpt2.transformer.h[0].output)
        nested["of"].append(gpt2.transformer.h[1].output)
    assert [type(found) for found in (*outer, *nested["of"])] == [torch.Tensor] * 2


def test_a_block_that_looks_at_values_is_run(gpt2: LanguageModel) -> None:
    with gpt2.trace(LONG, scan=True, validate=True):
        if gpt2.transformer.h[0].output.sum() > -1e9:
            gpt2.transformer.h[1].output[:] = 0
        hidden = gpt2.transformer.h[1].output.save()
    assert type(hidden) is torch.Tensor
    assert not hidden.any()


def test_the_first_step_of_a_generation_is_validated(gpt2: LanguageModel) -> None:
    calls, handle = counting(gpt2)
    try:
        with pytest.raises(IndexError, match="index 100"):
            with gpt2.generate(LONG, max_new_tokens=3, validate=True) as tracer:
                for _ in tracer.iter[:]:
                    gpt2.transformer.h[1].output[:, 100] = 0
    finally:
        handle.remove()
    assert calls == []


@pytest.mark.parametrize("new", [models.new_gpt2, models.new_llama, models.new_t5])
def test_a_generation_that_fits_runs_as_ever(new) -> None:
    model = LanguageModel(new(), tokenizer=models.tokenizer())
    found = []
    for options in ({}, {"validate": True}):
        # a bounded loop that the first step does not reach is no reason to warn
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with model.generate(LONG, max_new_tokens=3, do_sample=False, **options) as tracer:
                seen = [].save()
                for step in tracer.iter[1:3]:
                    seen.append((step, model.lm_head.output))
                tokens = model.generator.output.save()
                text = model.tokenizer.decode(tokens[0]).save()
        found.append((seen, tokens, text))
    assert_same(*found)


def test_a_validated_run_leaves_no_fake_tensors(gpt2: LanguageModel) -> None:
    before = fake_tensors()
    with gpt2.trace(LONG, validate=True) as tracer:
        hidden = gpt2.transformer.h[1].output.save()
    assert type(hidden) is torch.Tensor
    assert fake_tensors() == before
