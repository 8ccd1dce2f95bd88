"""Section 6.1 of the page on 0.8's surface: `peft=` and `load_adapter`."""

from __future__ import annotations

from pathlib import Path

import peft

from tests import models


def test_an_adapter_is_put_in_replaced_and_taken_out(as_08: None, tmp_path: Path) -> None:
    from nnsight import TransformersModel

    models.new_gpt2().save_pretrained(tmp_path / "base")
    models.tokenizer().save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(
        r=2, target_modules=["c_fc"], fan_in_fan_out=True, init_lora_weights=False
    )
    adapted = peft.get_peft_model(models.new_gpt2(), config)
    adapted.save_pretrained(tmp_path / "adapter")
    plain = models.new_gpt2()(**models.encoded("the cat")).logits
    expected = adapted.eval()(**models.encoded("the cat")).logits

    model = TransformersModel(
        str(tmp_path / "base"), task="text-generation", peft=str(tmp_path / "adapter")
    )
    with model.trace("the cat"):
        model.transformer.h[0].mlp.c_fc.base_layer.output.save()
        first = model.output.logits.save()
    model.load_adapter(None)
    with model.trace("the cat"):
        second = model.output.logits.save()
    model.load_adapter(str(tmp_path / "adapter"))
    with model.trace("the cat"):
        third = model.output.logits.save()

    models.assert_same([first, second, third], [expected, plain, expected])
