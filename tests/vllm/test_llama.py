"""A decoder that carries its residual apart means the same in an engine as in transformers."""

from __future__ import annotations

import torch

PROMPT = "The Eiffel Tower is in the city of"
GREEDY = {"temperature": 0.0}


def agree(one, other, within=1e-4):
    assert one.shape == other.shape
    assert (one - other).abs().max() <= within * max(1.0, other.abs().max().item())


def read_all(model, trace):
    with trace:
        first_input = model.model.layers[0].input.save()
        first = model.model.layers[0].output.save()
        entered = model.model.layers[1].input_layernorm.input.save()
        normed = model.model.layers[1].input_layernorm.output.save()
        attended = model.model.layers[1].self_attn.input.save()
        attention_norm = model.model.layers[1].post_attention_layernorm.input.save()
        mlp = model.model.layers[1].mlp.output.save()
        hidden = model.model.layers[1].output.save()
        last = model.model.layers[3].input.save()
        summed = model.model.norm.input.save()
        final = model.model.norm.output.save()
    return (
        first_input, first, entered, normed, attended, attention_norm, mlp, hidden, last, summed,
        final,
    )  # fmt: skip


def test_reads_are_those_of_transformers(llama, hf_llama):
    read = read_all(llama, llama.trace(PROMPT))
    expected = read_all(hf_llama, hf_llama.trace(PROMPT))
    for one, other in zip(read, expected, strict=True):
        agree(one, other)


def edited_logits(model, trace, edit, head):
    with trace:
        edit(model)
        logits = head(model).save()
    return logits


def of_engine(model):
    return model.logits.output


def of_transformers(model):
    return model.lm_head.output[:, -1]


def check(llama, hf_llama, edit):
    logits = edited_logits(llama, llama.trace(PROMPT), edit, of_engine)
    expected = edited_logits(hf_llama, hf_llama.trace(PROMPT), edit, of_transformers)
    plain = edited_logits(llama, llama.trace(PROMPT), lambda model: None, of_engine)
    agree(logits, expected)
    assert (logits - plain).abs().max() > 1e-2


def edit_output_in_place(model):
    model.model.layers[1].output[:, -1] = 0.5


def replace_output(model):
    model.model.layers[1].output = model.model.layers[1].output * 2


def edit_input(model):
    model.model.layers[2].input[:, 3:] *= 0.1


def replace_mlp(model):
    model.model.layers[2].mlp.output = torch.zeros_like(model.model.layers[2].mlp.output)


def edit_norm(model):
    model.model.layers[2].input_layernorm.output[:, -1] += 1


def skip_layer(model):
    model.model.layers[2].skip(model.model.layers[2].input)


def test_an_output_edited_in_place(llama, hf_llama):
    check(llama, hf_llama, edit_output_in_place)


def test_an_output_replaced(llama, hf_llama):
    check(llama, hf_llama, replace_output)


def test_an_input_edited(llama, hf_llama):
    check(llama, hf_llama, edit_input)


def test_an_mlp_replaced(llama, hf_llama):
    check(llama, hf_llama, replace_mlp)


def test_a_norm_edited(llama, hf_llama):
    check(llama, hf_llama, edit_norm)


def test_a_layer_skipped(llama, hf_llama):
    check(llama, hf_llama, skip_layer)


def test_steering_in_each_step(llama, hf_llama):
    torch.manual_seed(1)
    direction = torch.randn(64)
    with llama.trace(PROMPT, max_tokens=6, ignore_eos=True, **GREEDY) as tracer:
        logits = [].save()
        for _ in tracer.iter[:]:
            llama.model.layers[1].output[:, -1] += 2 * direction
            logits.append(llama.logits.output)
        result = tracer.result.save()
    with hf_llama.generate(PROMPT, max_new_tokens=6, min_new_tokens=6, do_sample=False) as tracer:
        expected = [].save()
        for _ in tracer.iter[:]:
            hf_llama.model.layers[1].output[:, -1] += 2 * direction
            expected.append(hf_llama.lm_head.output[:, -1])
    for one, other in zip(logits, expected, strict=True):
        agree(one, other)
    assert result.outputs[0].token_ids == [one.argmax().item() for one in logits]


def test_the_engines_own_values_are_among_the_inputs(llama):
    with llama.trace(PROMPT):
        (positions, hidden, residual), kwargs = llama.model.layers[2].inputs
        positions, hidden, residual = positions.save(), hidden.save(), residual.save()
        whole = llama.model.layers[2].input.save()
    assert positions.tolist() == [list(range(8))]
    agree(hidden + residual, whole)
