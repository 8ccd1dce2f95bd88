"""What the pages of interpreto show, as tests: its sdist has none.

Each is an example of its docstrings, with assertions that hold for any model.
"""

import pytest
import torch
from interpreto import AllLayersSplitter, LogitLens, ModelWithSplitPoints
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = "The Eiffel Tower is in the city of"
GRANULARITIES = ModelWithSplitPoints.activation_granularities


def split(point, **options):
    return ModelWithSplitPoints("gpt2", point, automodel=AutoModelForCausalLM, **options)


def hidden_states(name, text):
    """The oracle: what the model of transformers returns."""
    model = AutoModelForCausalLM.from_pretrained(name).eval()
    with torch.no_grad():
        ids = AutoTokenizer.from_pretrained(name)(text, return_tensors="pt")
        return model(**ids, output_hidden_states=True)


@pytest.mark.parametrize("point", [0, 1, 2, "transformer.h.1", "transformer.h.2.mlp"])
def test_a_split_point_gives_activations(point):
    model = split(point)
    activations, _ = model.get_activations([TEXT], activation_granularity=GRANULARITIES.TOKEN)
    assert activations.shape[-1] == 32
    assert activations.isfinite().all()


@pytest.mark.parametrize("granularity", [GRANULARITIES.ALL_TOKENS, GRANULARITIES.TOKEN])
def test_activations_are_the_hidden_states(granularity):
    activations, _ = split("transformer.h.1").get_activations(
        [TEXT], activation_granularity=granularity
    )
    assert torch.allclose(activations, hidden_states("gpt2", TEXT).hidden_states[2][0], atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batches_give_the_activations_of_each(batch_size):
    model = split(1, batch_size=batch_size)
    texts = [TEXT, "Paris", "The city of light"]
    together, _ = model.get_activations(texts, activation_granularity=GRANULARITIES.TOKEN)
    apart = [
        model.get_activations([text], activation_granularity=GRANULARITIES.TOKEN)[0]
        for text in texts
    ]
    assert torch.allclose(together, torch.cat(apart), atol=1e-5)


@pytest.mark.parametrize("point", [0, 2])
def test_the_width_at_a_split_point(point):
    assert split(point).get_latent_shape()[-1] == 32


def test_a_split_point_can_be_set_again():
    model = split(0)
    model.split_point = 2
    assert model.split_point == "transformer.h.2"


def test_a_split_point_that_does_not_exist_is_refused():
    with pytest.raises(ValueError):
        split("transformer.h.99")


def test_a_model_that_is_loaded_needs_its_tokenizer():
    loaded = AutoModelForCausalLM.from_pretrained("gpt2")
    with pytest.raises(ValueError):
        ModelWithSplitPoints(loaded, 1)
    model = ModelWithSplitPoints(loaded, 1, tokenizer=AutoTokenizer.from_pretrained("gpt2"))
    assert (
        model.get_activations([TEXT], activation_granularity=GRANULARITIES.TOKEN)[0].shape[-1] == 32
    )


@pytest.mark.parametrize("name", ["gpt2", "Maykeye/TinyLLama-v0", "yujiepan/qwen2-tiny-random"])
def test_all_layers_are_split(name):
    splitter = AllLayersSplitter(name)
    activations = splitter.get_activations(TEXT)
    assert len(activations) == len(splitter.split_points) + 1
    oracle = hidden_states(name, TEXT)
    for ours, theirs in zip(activations[:-1], oracle.hidden_states[:-1], strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)
    assert torch.allclose(splitter.apply_head(activations[-1]), oracle.logits, atol=1e-4)


@pytest.mark.parametrize("align", [True, False])
def test_a_logit_lens_ranks_tokens_at_each_layer(align):
    lens = LogitLens("gpt2", top_k=3)
    results = lens(TEXT, align)
    assert list(results) == lens.splitter.activation_names
    assert all(one["top_indices"].shape[-1] == 3 for one in results.values())


def test_a_logit_lens_explains_what_it_generates():
    lens = LogitLens("gpt2", top_k=3)
    text, results = lens.generate(TEXT, max_new_tokens=4)
    assert isinstance(text, str)
    assert next(iter(results.values()))["top_indices"].shape[1] == 4
