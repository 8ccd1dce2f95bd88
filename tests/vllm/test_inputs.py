"""The forms of a prompt, and arguments of a request that are no sampling parameters."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nnsight_dsl.errors import BatchingError

from .conftest import ended, started

PROMPT = "The Eiffel Tower is in the city of"
TEMPLATE = (
    "{% for one in messages %}{{ one.role }}: {{ one.content }}{% endfor %}"
    "{% if add_generation_prompt %} assistant:{% endif %}"
)


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
    get_peft_model(module, config).save_pretrained(folder)
    whole = tmp_path_factory.mktemp("llama") / "with a template"
    shutil.copytree(llama_folder, whole)
    (whole / "chat_template.jinja").write_text(TEMPLATE)
    model = started(whole, enable_lora=True, max_lora_rank=8)
    yield model, folder
    ended(model)


def test_an_adapter_is_that_of_its_request(with_adapter: Any, hf_llama: Any) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from vllm.lora.request import LoRARequest

    # one after the other: vLLM's CPU build gives an adapter to all requests of a batch
    model, folder = with_adapter
    projection = model.model.layers[1].self_attn.o_proj
    with model.trace(PROMPT, lora_request=LoRARequest("adapter", 1, str(folder))):
        adapted = projection.output.save()
    with model.trace(PROMPT):
        plain = projection.output.save()
    expected = []
    base = AutoModelForCausalLM.from_pretrained(model._engine_args["model"])
    for module in (hf_llama._module, PeftModel.from_pretrained(base, folder)):
        (o_proj,) = (
            one
            for name, one in module.named_modules()
            if name.endswith("layers.1.self_attn.o_proj")
        )
        handle = o_proj.register_forward_hook(lambda *call: expected.append(call[2].detach()))
        module(**hf_llama.tokenizer(PROMPT, return_tensors="pt"))
        handle.remove()
    torch.testing.assert_close(plain, expected[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(adapted, expected[1], rtol=1e-3, atol=1e-3)


def test_messages_of_a_chat_are_put_through_the_template(with_adapter: Any) -> None:
    model, _ = with_adapter
    chat = logits_of(model, [{"role": "user", "content": PROMPT}])
    text = logits_of(model, f"user: {PROMPT} assistant:")
    torch.testing.assert_close(chat, text)
