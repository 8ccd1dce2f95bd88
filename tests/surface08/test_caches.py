"""Section 3: what `tracer.cache()` returns."""

from __future__ import annotations

import pickle

import pytest
import torch

from tests import models
from tests.models import assert_same

H0, H1 = "model.transformer.h.0", "model.transformer.h.1"


@pytest.fixture
def cache(gpt2):
    with gpt2.trace(models.SHORT) as tracer:
        cache = tracer.cache()
    return cache


@pytest.fixture
def outputs(gpt2):
    with gpt2.trace(models.SHORT):
        outputs = [gpt2.transformer.h[0].output, gpt2.transformer.h[1].output].save()
    return outputs


def test_row_modules_by_path_with_and_without_the_root_name(gpt2, outputs) -> None:
    # r07
    for modules in ([H0], ["transformer.h.0"], H0, [gpt2.transformer.h[0]], gpt2.transformer.h[0]):
        with gpt2.trace(models.SHORT) as tracer:
            cache = tracer.cache(modules=modules)
        assert list(cache.keys()) == [H0]
        assert_same(cache[H0].output, outputs[0])


def test_row_an_unknown_module_is_refused(gpt2) -> None:
    with pytest.raises(AttributeError, match="no_such"):
        with gpt2.trace(models.SHORT) as tracer:
            cache = tracer.cache(modules=["model.no_such"])


def test_row_paths_and_containers(cache, outputs) -> None:
    for path in (H1, "transformer.h.1"):
        assert_same(cache[path].output, outputs[1])
    assert_same(cache["model.transformer.h"][1].output, outputs[1])
    assert_same(cache["transformer"]["h.1"].output, outputs[1])


def test_row_navigation_by_attribute_and_index(cache, outputs) -> None:
    assert_same(cache.transformer.h[0].output, outputs[0])
    assert_same(cache.model.transformer.h[0].output, outputs[0])
    assert_same(cache.transformer.h[-1].output, cache.transformer.h[2].output)
    assert_same(cache.root.transformer.h[1].output, outputs[1])


def test_row_aliases_in_paths(as_08: None) -> None:
    from nnsight import TransformersModel

    rename = {"transformer.h": "layers", "mlp": "feedforward"}
    model = TransformersModel(models.new_gpt2(), tokenizer=models.tokenizer(), rename=rename)
    with model.trace(models.SHORT) as tracer:
        cache = tracer.cache(modules=["model.layers.0", "layers.1.feedforward"])
        first = model.layers[0].output.save()
    assert list(cache.keys()) == [H0, f"{H1}.mlp"]
    assert_same(cache.layers[0].output, first)
    assert_same(cache["model.layers"][0].output, first)
    assert cache.model.layers[1].feedforward.output is cache[f"{H1}.mlp"].output


def test_row_what_is_not_kept_is_none(gpt2) -> None:
    with gpt2.trace(models.SHORT) as tracer:
        cache = tracer.cache(modules=[H0])
        inputs = tracer.cache(modules=[H0], include_output=False, include_inputs=True)
    assert cache[H0].inputs is None
    assert cache[H0].input is None
    assert inputs[H0].output is None
    args, _ = inputs[H0].inputs
    assert_same(args[0], inputs[H0].input)


def test_row_len_is_the_number_of_visits(gpt2) -> None:
    with gpt2.generate(models.SHORT, max_new_tokens=3, min_new_tokens=3) as tracer:
        cache = tracer.cache(modules=[H0])
        result = tracer.result.save()
    assert len(cache[H0]) == 3
    assert len(cache.transformer.h[0].output) == 3
    assert len(cache) == 1


def test_row_keys_and_in(cache) -> None:
    assert H0 in cache
    assert "transformer.h.0" in cache
    assert "model.no_such" not in cache
    keys = list(cache.keys())
    assert keys.index(H0) < keys.index(H1)
    assert list(cache) == keys == [path for path, _ in cache.items()]


def test_row_an_unknown_path_is_an_attribute_error(gpt2, cache) -> None:
    with pytest.raises(AttributeError, match="not in the cache"):
        cache["model.no_such"]
    with pytest.raises(AttributeError, match="not in the cache"):
        cache.transformer.no_such
    with gpt2.trace(models.SHORT) as tracer:
        one = tracer.cache(modules=[H0])
    with pytest.raises(AttributeError, match="not in the cache"):
        one.lm_head
    # as in 0.6
    with pytest.raises(KeyError):
        one["model.lm_head"]
    with pytest.raises(AttributeError, match="no values of its own"):
        one.transformer.output


def test_row_pickling_leaves_the_model_out(gpt2, cache) -> None:
    loaded = pickle.loads(pickle.dumps(cache))
    assert loaded._cache.model is None
    assert loaded.keys() == cache.keys()
    assert_same(loaded[H0].output, cache[H0].output)
    assert_same(loaded["transformer.h"][0].output, cache[H0].output)
    assert_same(loaded.transformer.h[0].output, cache[H0].output)
    loaded._cache.model = gpt2
    assert_same(loaded.transformer.h[-1].output, cache.transformer.h[-1].output)


def test_row_positional_arguments_and_non_blocking(gpt2) -> None:
    with gpt2.trace(models.SHORT) as tracer:
        cache = tracer.cache([H0], torch.device("cpu"), torch.float64, True, True, True, True)
    assert cache[H0].output.dtype is torch.float64
    assert cache[H0].inputs is not None


def test_row_rows_of_the_invoke(gpt2) -> None:
    with gpt2.trace() as tracer:
        with tracer.invoke(models.SHORT):
            one = tracer.cache([H0])
        with tracer.invoke([models.SHORT, models.LONG]):
            two = tracer.cache([H0])
    assert one[H0].output.shape[0] == 1
    assert two[H0].output.shape[0] == 2


def test_row_captures_in_the_graph(gpt2) -> None:
    with gpt2.trace(models.SHORT) as tracer:
        cache = tracer.cache([H0], device=None, detach=False)
    cache[H0].output.sum().backward()


def test_row_calls_with_hook_are_recorded(gpt2) -> None:
    with gpt2.trace(models.SHORT) as tracer:
        cache = tracer.cache(["model.lm_head"])
        gpt2.lm_head(gpt2.transformer.h[0].output, hook=True)
    assert len(cache.lm_head) == 2


def test_a_name_that_is_the_roots_and_a_modules_is_both(as_08: None) -> None:
    from nnsight import TransformersModel

    model = TransformersModel(models.new_llama(), tokenizer=models.tokenizer())
    with model.trace(models.SHORT) as tracer:
        cache = tracer.cache()
        first = model.model.layers[0].output.save()
        logits = model.output.logits.save()
    assert_same(cache["model.model.layers.0"].output, first)
    assert_same(cache["model.layers.0"].output, first)
    assert_same(cache.model.layers[0].output, first)
    assert_same(cache.model.model.layers[0].output, first)
    assert_same(cache.model.output.logits, logits)
    assert_same(cache["model.lm_head"].output, logits)


def test_the_cache_of_06(gpt2_06) -> None:
    with gpt2_06.trace(models.SHORT) as tracer:
        cache = tracer.cache()
    assert cache.model.transformer.h[0].inputs is None
    assert cache[H0].output is cache.model.transformer.h[0].output
