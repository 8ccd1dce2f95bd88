"""Minimised failures: what an invoke sees of a batch."""

import pytest
import torch

from nnsight_dsl import LanguageModel, NotCalledError
from tests.models import GPT2, LLAMA, tokenizer


def test_an_invoke_has_the_rows_of_its_own_sequences() -> None:
    model = LanguageModel(LLAMA.new(), tokenizer=tokenizer())
    options = {"max_new_tokens": 2, "num_beams": 4, "num_return_sequences": 2, "do_sample": False}
    with model.generate(**options) as tracer:
        with tracer.invoke("the cat"):
            first = model.generator.output.save()
        with tracer.invoke("a dog"):
            second = tracer.result.save()
    assert first.shape[0] == second.shape[0] == 2
    assert not torch.equal(first, second)


def test_an_edit_of_an_expanded_row_stays_in_its_invoke() -> None:
    module = GPT2.new()
    module.transformer.h[1].register_forward_hook(lambda *call: call[2][:1].expand(2, -1, -1))
    model = LanguageModel(module, tokenizer=tokenizer())
    with model.trace() as tracer:
        with tracer.invoke("the cat"):
            model.transformer.h[1].output[:] = 0
        with tracer.invoke("a dog"):
            hidden = model.transformer.h[1].output.clone().save()
    assert hidden.all()


def test_the_gradient_of_a_view_is_kept() -> None:
    model = LanguageModel(GPT2.new(), tokenizer=tokenizer())
    with model.trace() as tracer:
        with tracer.invoke("the cat"):
            hidden = model.transformer.h[1].output.save()
            hidden.retain_grad()
            model.output.logits.sum().backward()
        with tracer.invoke("a dog"):
            pass
    assert hidden.grad is not None
    assert hidden.grad.shape == hidden.shape


@pytest.mark.parametrize("others", [0, 1, 3])
@pytest.mark.parametrize("mode", ["gradients", "frozen", "no gradients"])
def test_a_second_read_gives_the_same_object(mode: str, others: int) -> None:
    module = GPT2.new()
    module.requires_grad_(mode == "gradients")
    model = LanguageModel(module, tokenizer=tokenizer())
    with torch.set_grad_enabled(mode != "no gradients"), model.trace() as tracer:
        are_same = [].save()
        for _ in range(others):
            with tracer.invoke("a dog"):
                model.transformer.h[0].output
        with tracer.invoke("the cat"):
            layer = model.transformer.h[0]
            are_same.append(layer.input is layer.input)
            are_same.append(layer.inputs is layer.inputs)
            attention = layer.attn.output
            are_same.append(attention is layer.attn.output)
            are_same.append(attention[0] is layer.attn.output[0])
            hidden = layer.output
            are_same.append(hidden is layer.output)
            layer.output = hidden * 2
            doubled = layer.output
            are_same.append(doubled is layer.output and doubled is not hidden)
            are_same.append(model.output is model.output)
            are_same.append(tracer.result is tracer.result)
    assert are_same == [True] * 8


def test_a_row_of_frozen_parameters_has_a_gradient_at_each_read() -> None:
    model = LanguageModel(GPT2.new().requires_grad_(False), tokenizer=tokenizer())
    with model.trace() as tracer:
        with tracer.invoke("a dog"):
            pass
        with tracer.invoke("the cat"):
            model.transformer.h[0].output.requires_grad_(True)
            hidden = model.transformer.h[0].output
            loss = model.output.logits.sum()
            with loss.backward():
                gradient = hidden.grad.save()
    assert gradient.abs().sum() > 0


def test_what_an_invoke_has_skipped_is_not_computed_for_it(unlinted: None) -> None:
    model = LanguageModel(GPT2.new(), tokenizer=tokenizer())
    layer = model.transformer.h[1]
    for others in (0, 2):
        with pytest.raises(NotCalledError, match=r"transformer\.h\.1 was skipped"):
            with model.trace() as tracer:
                with tracer.invoke("the cat"):
                    layer.skip(layer.input)
                    layer.mlp.output.save()
                for _ in range(others):
                    with tracer.invoke("a dog"):
                        pass


def test_others_are_offered_what_one_invoke_has_skipped() -> None:
    model = LanguageModel(GPT2.new(), tokenizer=tokenizer())
    layer = model.transformer.h[1]
    with model.trace() as tracer:
        with tracer.invoke("the cat"):
            layer.skip(layer.input)
        with tracer.invoke("a dog"):
            inner = layer.mlp.output.save()
    with model.trace("a dog"):
        expected = layer.mlp.output.save()
    torch.testing.assert_close(inner, expected)
