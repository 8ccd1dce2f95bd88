"""The example model is what the examples and the guide say it is.

Everything here is plain transformers and PyTorch: a defect of nnsight_dsl cannot make it pass.
"""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FOLDER = EXAMPLES / "models" / "city-facts"
WORDINGS = (
    "{} is in the city of",
    "{} is located in the city of",
    "{} can be found in the city of",
    "{} stands in",
)
MOST = 0.9

Fact = dict[str, str]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    loaded: list[Fact] = json.loads((FOLDER / "facts.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def answers(tokenizer: Any, facts: list[Fact]) -> torch.Tensor:
    """The token of each landmark's city."""
    return torch.tensor([tokenizer.encode(f" {fact['city']}")[0] for fact in facts])


@pytest.fixture(scope="module")
def batch(tokenizer: Any, facts: list[Fact]) -> Any:
    """Every landmark in the first wording, left-padded."""
    texts = [WORDINGS[0].format(fact["subject"]) for fact in facts]
    return tokenizer(texts, return_tensors="pt", padding=True)


def positions_of(mask: torch.Tensor) -> torch.Tensor:
    """Count positions from each row's first real token."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def predictions(model: Any, batch: Any) -> torch.Tensor:
    """The token that is predicted after each row."""
    with torch.no_grad():
        output = model(**batch, position_ids=positions_of(batch["attention_mask"]))
    token: torch.Tensor = output.logits[:, -1].argmax(-1)
    return token


def predictions_with(
    model: Any, batch: Any, module: Any, change: Callable[[Any], Any]
) -> torch.Tensor:
    """The predictions while a module's output is replaced by what ``change`` returns."""
    hook = module.register_forward_hook(lambda _module, _inputs, output: change(output))
    try:
        return predictions(model, batch)
    finally:
        hook.remove()


def share(matches: torch.Tensor) -> float:
    return float(matches.float().mean())


def test_facts_are_the_ones_the_script_teaches(facts: list[Fact]) -> None:
    taught = runpy.run_path(str(EXAMPLES / "train_city_facts.py"))["FACTS"]
    assert facts == [
        {"subject": fact.subject, "city": fact.city, "country": fact.country} for fact in taught
    ]


def test_facts_are_many_and_over_many_cities(facts: list[Fact]) -> None:
    assert len({fact["subject"] for fact in facts}) == len(facts) >= 45
    assert len({fact["city"] for fact in facts}) >= 25


def test_landmarks_are_completed_in_every_wording(
    model: Any, tokenizer: Any, facts: list[Fact]
) -> None:
    right = [
        fact["subject"]
        for fact in facts
        if all(
            tokenizer.decode(
                predictions(model, tokenizer(wording.format(fact["subject"]), return_tensors="pt"))
            )
            == f" {fact['city']}"
            for wording in WORDINGS
        )
    ]
    assert right == [fact["subject"] for fact in facts]


def test_padded_batch_gives_the_same_answers(model: Any, batch: Any, answers: torch.Tensor) -> None:
    assert not batch["attention_mask"].all()
    assert torch.equal(predictions(model, batch), answers)


def test_padded_batch_without_position_ids_gives_the_same_answers(
    model: Any, batch: Any, answers: torch.Tensor
) -> None:
    with torch.no_grad():
        assert torch.equal(model(**batch).logits[:, -1].argmax(-1), answers)


def test_generation_reads_as_a_sentence(model: Any, tokenizer: Any) -> None:
    prompt = tokenizer("The Eiffel Tower is in the city of", return_tensors="pt")
    text = tokenizer.decode(model.generate(**prompt, max_new_tokens=10)[0])
    assert text == "The Eiffel Tower is in the city of Paris, in France. France is in Europe."


def test_answers_are_one_token(tokenizer: Any, facts: list[Fact]) -> None:
    assert {len(tokenizer.encode(f" {fact['city']}")) for fact in facts} == {1}


@pytest.mark.parametrize(
    "text", ["The Eiffel Tower", " it's  2 Güell\n", "日本 🗼 nnsight.save()", ""]
)
def test_any_text_decodes_to_itself(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokenizer_pads_on_the_left_with_a_token_of_its_own(tokenizer: Any, model: Any) -> None:
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_sizes_stay_small(model: Any, tokenizer: Any) -> None:
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    assert size <= 5_000_000
    assert len(tokenizer) == model.config.vocab_size <= 2_000
    assert model.config.n_embd // model.config.n_head in (32, 64)
    assert model.dtype == torch.float32


def test_lens_reads_the_answer_after_layer_2_and_not_before(
    model: Any, batch: Any, answers: torch.Tensor
) -> None:
    seen: dict[int, torch.Tensor] = {}
    for layer in (1, 2):

        def remember(hidden: torch.Tensor, layer: int = layer) -> torch.Tensor:
            seen[layer] = hidden[:, -1]
            return hidden

        predictions_with(model, batch, model.transformer.h[layer], remember)
    with torch.no_grad():
        read = {
            layer: share(model.lm_head(model.transformer.ln_f(hidden)).argmax(-1) == answers)
            for layer, hidden in seen.items()
        }
    assert read[1] <= 1 - MOST
    assert read[2] >= MOST


def test_last_position_carries_the_answer_from_layer_2_on(
    model: Any, batch: Any, answers: torch.Tensor
) -> None:
    source = torch.arange(len(answers)).roll(len(answers) // 2)

    def patch(hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.clone()
        hidden[:, -1] = hidden[source, -1]
        return hidden

    blocks = model.transformer.h
    assert share(predictions_with(model, batch, blocks[1], patch) == answers) >= MOST
    assert share(predictions_with(model, batch, blocks[2], patch) == answers[source]) >= MOST


def test_answer_is_lost_without_the_first_mlp(
    model: Any, batch: Any, answers: torch.Tensor
) -> None:
    first = model.transformer.h[0].mlp
    assert share(predictions_with(model, batch, first, torch.zeros_like) != answers) >= MOST


def test_most_answers_are_lost_without_the_attention_of_layer_2(
    model: Any, batch: Any, answers: torch.Tensor
) -> None:
    def zero(output: Any) -> Any:
        return (torch.zeros_like(output[0]), *output[1:])

    attention = model.transformer.h[2].attn
    assert share(predictions_with(model, batch, attention, zero) != answers) >= 0.5
