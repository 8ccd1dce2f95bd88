"""Every architecture of transformers: prompts of unequal length in one batch, or a refusal.

Each row has to get what the plain model gives it alone, at each of its tokens, in a trace and in a
generation; else the batch is refused with a `BatchingError`, and then the plain model, given the
padded batch, has to be wrong, too. `make sweep-models` runs all architectures, `make test` those
with a rule of their own and some of the others.
"""

import copy
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from nnsight_dsl import BatchingError, LanguageModel
from nnsight_dsl.modeling import padding, positions
from nnsight_dsl.modeling.keywords import keywords_of
from tests import shrunk
from tests.models import encoded, token_ids, tokenizer

# hundreds of forwards of others, with warnings of their own
pytestmark = pytest.mark.filterwarnings("ignore")

PROMPTS = (
    "the cat",
    "a bird flew over ten",
    "the red dog ran under a blue tree on one green mat two",
)
STEPS = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
GENERATION = {**STEPS, "return_dict_in_generate": True, "output_logits": True}
NEAR = 2e-4
"""How far a row may be from what it is alone; what padding does is 0.005 at least."""

_EVERYTHING = "NNSIGHT_DSL_SWEEP" in os.environ
_ALWAYS = {
    *padding.MIXES, *padding.MIXES_ON_THE_LEFT,
    *padding.GENERATES_UNPADDED, *padding.GENERATES_ALONE,
    *"roberta xlm-roberta camembert data2vec-text roberta-prelayernorm xlm-roberta-xl xmod".split(),
    *"fnet xlstm cpmant bart mbart marian pegasus trocr".split(),
    *"whisper roformer mra fsmt hrm_text canine".split(),
}  # fmt: skip


def _kinds() -> Sequence[tuple[str, str]]:
    if _EVERYTHING:
        return shrunk.kinds()
    some = [
        (task, name)
        for number, (task, name) in enumerate(shrunk.kinds())
        if (task != "base" and name in _ALWAYS)
        or number % (40 if task == "base" else 8) == 0
        or name == "canine"
    ]
    return [kind for kind in some if kind not in shrunk.NOT_MADE]


@pytest.fixture(params=_kinds(), ids="-".join)
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    transformers.logging.set_verbosity_error()
    found: tuple[str, str] = request.param
    if found in shrunk.NOT_MADE:
        pytest.skip(shrunk.NOT_MADE[found])
    return found


def _first(output: Any) -> torch.Tensor:
    for name in ("logits", "prediction_logits", "last_hidden_state"):
        found = getattr(output, name, None)
        if found is not None:
            return found.detach()
    return output[0].detach()


def _decoded(module: Any, prompt: str) -> dict[str, torch.Tensor]:
    """What the decoder is given: as many tokens as a third of the prompt has."""
    if not module.config.is_encoder_decoder:
        return {}
    is_equal = module.config.model_type in padding.DECODES_UNPADDED
    count = 2 if is_equal else 1 + len(prompt.split()) // 3
    return {"decoder_input_ids": token_ids(prompt)[:, :count]}


def _alone(module: Any, prompt: str) -> torch.Tensor:
    torch.manual_seed(0)
    return _first(module(**encoded(prompt), **_decoded(module, prompt)))


def _own(value: torch.Tensor, module: Any, prompt: str, *, left: bool) -> torch.Tensor:
    decoded = _decoded(module, prompt)
    count = decoded["decoder_input_ids"].shape[1] if decoded else len(prompt.split())
    return value[:, -count:] if left else value[:, :count]


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape
    # what is minus infinity in both is the same; what is no number in one of them is not
    distances = torch.where(one == other, 0.0, (one - other).abs())
    return float(distances.nan_to_num(math.inf).max())


def _traced(model: LanguageModel, module: Any) -> list[torch.Tensor]:
    torch.manual_seed(0)
    with model.trace() as tracer:
        with tracer.invoke(PROMPTS[0], **_decoded(module, PROMPTS[0])):
            first = _first(model.output).save()
        with tracer.invoke(PROMPTS[1], **_decoded(module, PROMPTS[1])):
            second = _first(model.output).save()
        with tracer.invoke(PROMPTS[2], **_decoded(module, PROMPTS[2])):
            third = _first(model.output).save()
    return [first, second, third]


def _traced_far(model: LanguageModel, module: Any) -> float:
    """How far rows of a batch are from what they are alone."""
    return _far_from_alone(_traced(model, module), module, left=model._architecture.pads_left)


def _far_from_alone(values: Sequence[torch.Tensor], module: Any, *, left: bool) -> float:
    distances = []
    for prompt, value in zip(PROMPTS, values, strict=True):
        try:
            alone = _alone(module, prompt)
        except Exception:
            if prompt != PROMPTS[0]:
                raise
            # some need a few tokens to begin with
            continue
        # one returns as many places as there can be
        alone = _own(alone, module, prompt, left=left)
        distances.append(_distance(_own(value, module, prompt, left=left), alone))
    return max(distances)


def _padded(left: bool) -> dict[str, torch.Tensor]:
    batch = tokenizer()(
        list(PROMPTS), padding=True, padding_side="left" if left else "right", return_tensors="pt"
    )
    return dict(batch)


def _plain_far(module: Any, *, left: bool) -> float:
    """How far rows of a padded batch are from what they are alone, without this package."""
    batch = _padded(left)
    counting = padding.counting_of(module)
    if left and "position_ids" in keywords_of(module) and counting.padding_id is None:
        batch["position_ids"] = (
            positions.counted(batch["attention_mask"], batch["attention_mask"].shape[1])
            + counting.first
        )
    torch.manual_seed(0)
    return _far_from_alone(_first(module(**batch)).split(1), module, left=left)


def _as_exact_as_can_be(module: nn.Module) -> nn.Module:
    """Some go through their layers so often that single precision tells nothing."""
    return module.double() if getattr(module.config, "model_type", None) == "hrm_text" else module


@pytest.mark.parametrize("side", ["right", "left"])
def test_unequal_prompts_get_what_they_get_alone_or_are_refused(
    kind: tuple[str, str], side: str
) -> None:
    if side == "left" and kind[0] in ("causal", "seq2seq"):
        return  # these are padded on one side, whatever the tokenizer says
    module: Any = _as_exact_as_can_be(shrunk.small_model(*kind))
    words = copy.copy(tokenizer())
    words.padding_side = side
    model = LanguageModel(module, tokenizer=words)
    with torch.no_grad():
        try:
            far = _traced_far(model, module)
        except BatchingError as error:
            assert "one batch" in str(error)
            if "attention_mask" in keywords_of(module):
                left = model._architecture.pads_left
                assert _is_wrong_or_fails(lambda: _plain_far(module, left=left))
            return
        assert far < NEAR


def _is_wrong_or_fails(distance: Callable[[], float]) -> bool:
    try:
        return distance() > NEAR
    except (RuntimeError, IndexError, ValueError):
        return True


def _generated_plainly(module: Any) -> list[Any]:
    """The rows of a padded batch that the plain model generates from."""
    torch.manual_seed(0)
    batch = module.generate(**_padded(left=True), **GENERATION)
    return [
        transformers.generation.GenerateDecoderOnlyOutput(
            sequences=batch.sequences[number : number + 1],
            logits=tuple(step[number : number + 1] for step in batch.logits),
        )
        for number in range(len(PROMPTS))
    ]


def _generated_far(outputs: Sequence[Any], module: Any) -> float:
    far = 0.0
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        torch.manual_seed(0)
        alone = module.generate(**encoded(prompt), **GENERATION)
        pairs = zip(output.logits, alone.logits, strict=True)
        far = max([far, *(_distance(one, other) for one, other in pairs)])
        if far < NEAR:
            assert output.sequences[:, -4:].tolist() == alone.sequences[:, -4:].tolist()
    return far


def _generated(model: LanguageModel) -> list[Any]:
    torch.manual_seed(0)
    with model.generate(**GENERATION) as tracer:
        with tracer.invoke(PROMPTS[0]):
            first = tracer.result.save()
        with tracer.invoke(PROMPTS[1]):
            second = tracer.result.save()
        with tracer.invoke(PROMPTS[2]):
            third = tracer.result.save()
    return [first, second, third]


def test_unequal_prompts_generate_what_they_generate_alone_or_are_refused(
    kind: tuple[str, str],
) -> None:
    if kind[0] == "base":
        return
    module: Any = _as_exact_as_can_be(shrunk.small_model(*kind))
    if not getattr(module, "can_generate", bool)():
        return
    if kind in shrunk.NOT_GENERATING:
        pytest.skip(shrunk.NOT_GENERATING[kind])
    model = LanguageModel(module, tokenizer=tokenizer())
    with torch.no_grad():
        try:
            outputs = _generated(model)
        except BatchingError:
            assert _is_wrong_or_fails(lambda: _generated_far(_generated_plainly(module), module))
            return
        assert _generated_far(outputs, module) < NEAR


BEAMS = {
    "max_new_tokens": 3,
    "min_new_tokens": 3,
    "do_sample": False,
    "num_beams": 3,
    "num_return_sequences": 2,
    "return_dict_in_generate": True,
    "output_scores": True,
}
EQUAL = ("the cat ran under a tree", "a red dog flew over ten")


def test_rows_of_one_length_get_what_they_get_alone(kind: tuple[str, str]) -> None:
    module: Any = _as_exact_as_can_be(shrunk.small_model(*kind))
    model = LanguageModel(module, tokenizer=tokenizer())
    with torch.no_grad():
        torch.manual_seed(0)
        with model.trace() as tracer:
            with tracer.invoke(EQUAL[0], **_decoded(module, EQUAL[0])):
                first = _first(model.output).save()
            with tracer.invoke(EQUAL[1], **_decoded(module, EQUAL[1])):
                second = _first(model.output).save()
        for value, prompt in zip((first, second), EQUAL, strict=True):
            assert _distance(value, _alone(module, prompt)) < NEAR


def test_beams_of_rows_of_one_length_are_those_of_each_alone(kind: tuple[str, str]) -> None:
    if kind[0] == "base":
        return
    module: Any = _as_exact_as_can_be(shrunk.small_model(*kind))
    if not getattr(module, "can_generate", bool)() or kind in shrunk.NOT_GENERATING:
        return
    if module.config.model_type in {*padding.GENERATES_ALONE, "reformer", "xlstm"}:
        return  # refused, generates nothing at all, has no beams
    model = LanguageModel(module, tokenizer=tokenizer())
    with torch.no_grad():
        torch.manual_seed(0)
        with model.generate(**BEAMS) as tracer:
            with tracer.invoke(EQUAL[0]):
                first = tracer.result.save()
            with tracer.invoke(EQUAL[1]):
                second = tracer.result.save()
        for output, prompt in zip((first, second), EQUAL, strict=True):
            torch.manual_seed(0)
            alone = module.generate(**encoded(prompt), **BEAMS)
            assert output.sequences.tolist() == alone.sequences.tolist()
            assert _distance(output.sequences_scores, alone.sequences_scores) < NEAR
