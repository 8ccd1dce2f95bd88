"""The forms of a prompt, and arguments of a request that are no sampling parameters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nnsight_dsl.errors import BatchingError

from .conftest import ended, started

PROMPT = "The Eiffel Tower is in the city of"


def logits_of(model: Any, *prompt: Any, **options: Any) -> torch.Tensor:
    with model.trace(*prompt, temperature=0.0, **options):
        logits = model.logits.output.save()
    return logits


def test_each_form_of_a_prompt_means_the_same(gpt2: Any) -> None:
    ids = gpt2.tokenizer.encode(PROMPT)
    expected = logits_of(gpt2, PROMPT)
    padded = {"input_ids": [[0, 0, *ids]], "attention_mask": [[0, 0, *[1] * len(ids)]]}
    for form in (
        [PROMPT], ids, [ids], torch.tensor(ids), torch.tensor([ids]), gpt2.tokenizer(PROMPT),
        gpt2.tokenizer(PROMPT, return_tensors="pt"), padded, {"prompt": PROMPT},
        {"prompt_token_ids": ids},
    ):  # fmt: skip
        torch.testing.assert_close(logits_of(gpt2, form), expected)


def test_messages_of_a_chat_are_put_through_the_template(gpt2: Any) -> None:
    tokenizer = gpt2.tokenizer
    messages = [{"role": "user", "content": PROMPT}]
    before, tokenizer.chat_template = (
        tokenizer.chat_template,
        (
            "{% for one in messages %}{{ one.role }}: {{ one.content }}{% endfor %}"
            "{% if add_generation_prompt %} assistant:{% endif %}"
        ),
    )
    try:
        with gpt2.trace(temperature=0.0) as tracer:
            with tracer.invoke(messages):
                chat = gpt2.logits.output.save()
            with tracer.invoke(f"user: {PROMPT} assistant:"):
                text = gpt2.logits.output.save()
    finally:
        tokenizer.chat_template = before
    torch.testing.assert_close(chat, text)


@pytest.mark.parametrize("form", [[], [PROMPT, PROMPT], 3, {"input_ids": [[1], [2]]}, {"x": 1}])
def test_what_is_no_prompt_is_refused(gpt2: Any, form: Any) -> None:
    with pytest.raises(BatchingError, match="has one prompt"):
        logits_of(gpt2, form)


def test_a_priority_is_passed_on(gpt2: Any) -> None:
    torch.testing.assert_close(logits_of(gpt2, PROMPT, priority=0), logits_of(gpt2, PROMPT))


@pytest.fixture(scope="module")
def with_adapter(llama_folder: Path, tmp_path_factory: Any) -> Iterator[tuple[Any, Any]]:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter")
    module = AutoModelForCausalLM.from_pretrained(llama_folder)
    torch.manual_seed(1)
    config = LoraConfig(r=8, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False)
    adapted = get_peft_model(module, config)
    adapted.save_pretrained(folder)
    model = started(llama_folder, enable_lora=True, max_lora_rank=8)
    yield model, folder
    ended(model)


def test_an_adapter_is_used_by_its_request_alone(with_adapter: Any, hf_llama: Any) -> None:
    from vllm.lora.request import LoRARequest

    model, folder = with_adapter
    adapter = LoRARequest("adapter", 1, str(folder))
    with model.trace(temperature=0.0) as tracer:
        with tracer.invoke(PROMPT, lora_request=adapter):
            adapted = model.model.layers[1].self_attn.o_proj.output.save()
            changed = model.logits.output.save()
        with tracer.invoke(PROMPT):
            plain = model.model.layers[1].self_attn.o_proj.output.save()
    with hf_llama.trace(PROMPT):
        expected = hf_llama.model.layers[1].self_attn.o_proj.output.save()
    assert isinstance(adapted, torch.Tensor) and adapted.shape == plain.shape
    assert plain.shape == expected.shape
    torch.testing.assert_close(plain, expected, rtol=1e-3, atol=1e-3)
    assert (adapted - plain).abs().max() > 1e-2
    assert changed.shape[0] == 1
