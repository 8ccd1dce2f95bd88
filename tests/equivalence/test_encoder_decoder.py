"""Encoder-decoders: what goes to the encoder is padded, and so is what the decoder is given."""

from functools import cache
from typing import Any

import pytest
import torch

from nnsight_dsl import BatchingError, LanguageModel
from tests import models
from tests.architectures import new_bart
from tests.models import (
    LONG,
    MIDDLE,
    SHORT,
    Kind,
    assert_near,
    assert_same,
    bare,
    encoded,
    hooked,
    new_t5,
    token_ids,
)

T5 = Kind("t5", new_t5, "encoder.block", "layer.0", "layer.1", "shared", "lm_head", False)
BART = Kind(
    "bart", new_bart, "model.encoder.layers", "self_attn", "fc2", "model.shared", "lm_head", False
)
DECODER = {"t5": "decoder.block.1", "bart": "model.decoder.layers.1"}
GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
ANSWER = "a dog"
ANSWERS = {SHORT: "a dog", LONG: "the house over one", MIDDLE: "blue"}


@pytest.fixture(params=[T5, BART], ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def model(kind: Kind) -> LanguageModel:
    return models.wrapped(kind)


@cache
def _alone(kind: Kind, prompt: str) -> Any:
    return bare(kind)(**encoded(prompt), decoder_input_ids=token_ids(ANSWERS[prompt]))


def test_reads_of_encoder_and_decoder_are_what_hooks_see(kind: Kind, model: LanguageModel) -> None:
    paths = [kind.layer(1), DECODER[kind.name], kind.head]
    answer = token_ids(ANSWER)
    with models.recorded(bare(kind), paths) as seen:
        bare(kind)(**encoded(LONG), decoder_input_ids=answer)
    with model.trace(LONG, decoder_input_ids=answer):
        hidden = model.get(paths[0]).output.save()
        decoded = model.get(paths[1]).output.save()
        logits = model.get(paths[2]).output.save()
    assert_same([hidden, decoded, logits], [seen[path][0] for path in paths])


def test_an_edit_of_the_encoder_and_one_of_the_decoder(kind: Kind, model: LanguageModel) -> None:
    layer, decoder = kind.layer(0), DECODER[kind.name]

    def halved(output: Any) -> Any:
        return output * 0.5 if isinstance(output, torch.Tensor) else (output[0] * 0.5, *output[1:])

    answer = token_ids(ANSWER)
    with hooked(bare(kind), {layer: halved, decoder: halved}):
        expected = bare(kind)(**encoded(LONG), decoder_input_ids=answer).logits
    with model.trace(LONG, decoder_input_ids=answer):
        model.get(layer).output = halved(model.get(layer).output)
        model.get(decoder).output = halved(model.get(decoder).output)
        logits = model.output.logits.save()
    assert_same(logits, expected)


def test_each_invoke_has_decoder_tokens_of_its_own(kind: Kind, model: LanguageModel) -> None:
    with model.trace() as tracer:
        with tracer.invoke(SHORT, decoder_input_ids=token_ids(ANSWERS[SHORT])):
            short = model.output.logits.save()
        with tracer.invoke(LONG, decoder_input_ids=token_ids(ANSWERS[LONG])):
            hidden = model.get(kind.layer(1)).output.save()
            long = model.output.logits.save()
        with tracer.invoke(MIDDLE, decoder_input_ids=token_ids(ANSWERS[MIDDLE])):
            middle = model.output.logits.save()
    for prompt, logits in ((SHORT, short), (LONG, long), (MIDDLE, middle)):
        count = len(ANSWERS[prompt].split())
        assert logits.shape[:2] == (1, 4)
        assert_near(logits[:, :count], _alone(kind, prompt).logits)


def test_labels_go_to_the_decoder(kind: Kind, model: LanguageModel) -> None:
    losses = [
        bare(kind)(**encoded(prompt), labels=token_ids(ANSWERS[prompt])).loss
        for prompt in (SHORT, LONG)
    ]
    counts = [len(ANSWERS[prompt].split()) for prompt in (SHORT, LONG)]
    with model.trace() as tracer:
        with tracer.invoke(SHORT, labels=token_ids(ANSWERS[SHORT])):
            pass
        with tracer.invoke(LONG, labels=token_ids(ANSWERS[LONG])):
            pass
        with tracer.invoke():
            loss = model.output.loss.save()
    mean = sum(n * one for n, one in zip(counts, losses, strict=True)) / sum(counts)
    assert_near(loss, mean)


def test_decoder_tokens_for_some_invokes_only_are_refused(kind, model: LanguageModel) -> None:
    with pytest.raises(BatchingError, match="decoder_input_ids is given to some invokes"):
        with model.trace() as tracer:
            with tracer.invoke(SHORT, decoder_input_ids=token_ids(ANSWER)):
                short = model.output.logits.save()
            with tracer.invoke(LONG):
                long = model.output.logits.save()


def test_unequal_decoder_tokens_cannot_be_continued(kind: Kind, model: LanguageModel) -> None:
    with pytest.raises(BatchingError, match="continued after its padding"):
        with model.generate(**GREEDY) as tracer:
            with tracer.invoke(SHORT, decoder_input_ids=token_ids(ANSWERS[SHORT])):
                short = tracer.result.save()
            with tracer.invoke(LONG, decoder_input_ids=token_ids(ANSWERS[LONG])):
                long = tracer.result.save()


def test_equal_decoder_tokens_are_continued(kind: Kind, model: LanguageModel) -> None:
    first, second = token_ids("[PAD] a"), token_ids("[PAD] the")
    with model.generate(**GREEDY) as tracer:
        with tracer.invoke(SHORT, decoder_input_ids=first):
            short = tracer.result.save()
        with tracer.invoke(LONG, decoder_input_ids=second):
            long = tracer.result.save()
    for tokens, prompt, start in ((short, SHORT, first), (long, LONG, second)):
        expected = bare(kind).generate(**encoded(prompt), decoder_input_ids=start, **GREEDY)
        assert tokens.tolist() == expected.tolist()


def test_a_generation_runs_the_encoder_once_and_the_decoder_in_each_step(
    kind: Kind, model: LanguageModel
) -> None:
    layer, decoder = kind.layer(1), DECODER[kind.name]
    with models.recorded(bare(kind), [layer, decoder]) as seen:
        expected = bare(kind).generate(**encoded(LONG), **GREEDY)
    with model.generate(LONG, **GREEDY) as tracer:
        hidden = model.get(layer).output.save()
        decoded = [].save()
        for _ in tracer.iter[:]:
            decoded.append(model.get(decoder).output)
        tokens = tracer.result.save()
    assert_same(tokens, expected)
    assert_same([hidden], seen[layer])
    assert_same(list(decoded), seen[decoder])
    assert len(decoded) == 4


def test_unequal_prompts_generate_what_they_generate_alone(
    kind: Kind, model: LanguageModel
) -> None:
    layer = kind.layer(1)

    def halved(output: Any) -> Any:
        return output * 0.5 if isinstance(output, torch.Tensor) else (output[0] * 0.5, *output[1:])

    with hooked(bare(kind), {layer: halved}):
        edited = bare(kind).generate(**encoded(SHORT), **GREEDY)
    with model.generate(**GREEDY) as tracer:
        with tracer.invoke(SHORT):
            model.get(layer).output = halved(model.get(layer).output)
            short = tracer.result.save()
        with tracer.invoke(LONG):
            long = tracer.result.save()
    assert short.tolist() == edited.tolist()
    assert long.tolist() == bare(kind).generate(**encoded(LONG), **GREEDY).tolist()


def test_a_skipped_layer_of_the_encoder(kind: Kind, model: LanguageModel) -> None:
    first, second = kind.layer(0), kind.layer(1)
    kept = []
    answer = token_ids(ANSWER)
    with hooked(bare(kind), {first: kept.append, second: lambda output: kept[0]}):
        expected = bare(kind)(**encoded(LONG), decoder_input_ids=answer).logits
    with model.trace(LONG, decoder_input_ids=answer):
        model.get(second).skip(model.get(first).output)
        logits = model.output.logits.save()
    assert_same(logits, expected)
