"""Minimised failures: what an invoke sees of a batch."""

import torch

from nnsight_dsl import LanguageModel
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
