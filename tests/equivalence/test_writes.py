"""What a block writes changes the model's run as a hand-written hook does."""

import pytest
import torch
from torch import nn

from nnsight_dsl import LanguageModel, NNsight
from tests import models
from tests.models import BERT, GPT2, LLAMA, LONG, Kind, assert_same, bare, encoded, hooked


def _logits(kind, after=None, before=None, prompt=LONG):
    with hooked(bare(kind), after, before):
        return bare(kind)(**encoded(prompt)).logits


def _differs(kind: Kind, logits: torch.Tensor) -> bool:
    return not torch.allclose(logits, models.logits_of(kind, LONG), atol=1e-3)


def _zeroed(output):
    output[:] = 0


def _on_first(change):
    """Turn a change of a tensor into one of the first element of a tuple."""
    return lambda output: (change(output[0]), *output[1:])


def test_edit_in_place_reaches_the_logits(kind: Kind, model: LanguageModel) -> None:
    path = kind.layer(1)
    expected = _logits(kind, {path: _zeroed})
    with model.trace(LONG):
        model.get(path).output[:] = 0
        logits = model.output.logits.save()
    assert_same(logits, expected)
    assert _differs(kind, logits)


def test_edit_reaches_the_next_layer(kind: Kind, model: LanguageModel) -> None:
    changed = models.output_of(kind, LONG, kind.layer(0)) * 3 + 1
    with model.trace(LONG):
        model.get(kind.layer(0)).output = changed
        given = model.get(kind.layer(1)).input.save()
    assert_same(given, changed)


def test_edit_of_one_position_leaves_the_others(kind: Kind, model: LanguageModel) -> None:
    before = models.output_of(kind, LONG, kind.layer(1))

    def change(output):
        output[:, -1, 3:] = 2.5

    expected = _logits(kind, {kind.layer(1): change})
    with model.trace(LONG):
        model.get(kind.layer(1)).output[:, -1, 3:] = 2.5
        after = model.get(kind.layer(1)).output.save()
        logits = model.output.logits.save()
    assert_same(logits, expected)
    assert_same(after[:, :-1], before[:, :-1])
    assert _differs(kind, logits)


def test_replacement_is_what_the_caller_receives(kind: Kind, model: LanguageModel) -> None:
    path = kind.layer(1)
    expected = _logits(kind, {path: lambda output: output * 0.5 - 1})
    with model.trace(LONG):
        model.get(path).output = model.get(path).output * 0.5 - 1
        logits = model.output.logits.save()
    assert_same(logits, expected)
    assert _differs(kind, logits)


def test_replacement_leaves_the_tensor_that_was_read(gpt2: LanguageModel) -> None:
    before = models.output_of(GPT2, LONG, "transformer.h.1")
    with gpt2.trace(LONG):
        old = gpt2.transformer.h[1].output.save()
        gpt2.transformer.h[1].output = old * 2
        new = gpt2.transformer.h[1].output.save()
    assert_same(old, before)
    assert_same(new, before * 2)


def test_the_last_of_several_replacements_counts(gpt2: LanguageModel) -> None:
    expected = _logits(GPT2, {"transformer.h.0": lambda output: output * 2 + 1})
    with gpt2.trace(LONG):
        gpt2.transformer.h[0].output = gpt2.transformer.h[0].output * 2
        gpt2.transformer.h[0].output = gpt2.transformer.h[0].output + 1
        logits = gpt2.output.logits.save()
    assert_same(logits, expected)


def test_an_edit_of_the_embedding_reaches_the_logits(kind: Kind, model: LanguageModel) -> None:
    expected = _logits(kind, {kind.embedding: lambda output: output * 0.5})
    with model.trace(LONG):
        model.get(kind.embedding).output = model.get(kind.embedding).output * 0.5
        logits = model.output.logits.save()
    assert_same(logits, expected)
    assert _differs(kind, logits)


@pytest.mark.parametrize("form", ["port", "slice", "name", "item"])
def test_augmented_assignment_adds(gpt2: LanguageModel, form: str) -> None:
    vector = torch.linspace(-2, 2, 16)

    def change(output):
        output[:, 2:] += vector

    expected = _logits(GPT2, {"transformer.h.1": change})
    with gpt2.trace(LONG):
        if form == "port":
            mask = (torch.arange(8) >= 2).float()[None, :, None]
            gpt2.transformer.h[1].output += vector * mask
        elif form == "slice":
            gpt2.transformer.h[1].output[:, 2:] += vector
        elif form == "name":
            hidden = gpt2.transformer.h[1].output
            hidden[:, 2:] += vector
        else:
            for position in range(2, 8):
                gpt2.transformer.h[1].output[0, position] += vector
        logits = gpt2.output.logits.save()
    assert_same(logits, expected)
    assert _differs(GPT2, logits)


@pytest.mark.parametrize("operator", ["-=", "*=", "/=", "**=", "@="])
def test_every_augmented_operator_writes(gpt2: LanguageModel, operator: str) -> None:
    vector = torch.linspace(-2, 2, 16)
    square = torch.linspace(-1, 1, 256).reshape(16, 16)
    changes = {
        "-=": lambda output: output - vector,
        "*=": lambda output: output * 2,
        "/=": lambda output: output / 2,
        "**=": lambda output: output**2,
        "@=": lambda output: output @ square,
    }
    expected = _logits(GPT2, {"transformer.h.1": changes[operator]})
    with gpt2.trace(LONG):
        if operator == "-=":
            gpt2.transformer.h[1].output -= vector
        elif operator == "*=":
            gpt2.transformer.h[1].output *= 2
        elif operator == "/=":
            gpt2.transformer.h[1].output /= 2
        elif operator == "**=":
            gpt2.transformer.h[1].output **= 2
        else:
            gpt2.transformer.h[1].output @= square
        logits = gpt2.output.logits.save()
    assert_same(logits, expected)
    assert _differs(GPT2, logits)


def test_the_first_element_of_a_tuple_is_replaced(kind: Kind, model: LanguageModel) -> None:
    path = f"{kind.layer(1)}.{kind.attention}"
    expected = _logits(kind, {path: _on_first(lambda first: first * -2)})
    with model.trace(LONG):
        attention = model.get(path)
        attention.output[0] = attention.output[0] * -2
        whole = attention.output.save()
        logits = model.output.logits.save()
    assert isinstance(whole, tuple)
    assert_same(logits, expected)
    assert _differs(kind, logits)


def test_the_first_element_of_a_tuple_is_added_to(gpt2: LanguageModel) -> None:
    vector = torch.linspace(-2, 2, 16)
    expected = _logits(GPT2, {"transformer.h.1.attn": _on_first(lambda first: first + vector)})
    with gpt2.trace(LONG):
        gpt2.transformer.h[1].attn.output[0] += vector
        logits = gpt2.output.logits.save()
    assert_same(logits, expected)
    assert _differs(GPT2, logits)


def test_the_first_element_of_a_tuple_is_edited_in_place(kind: Kind, model: LanguageModel) -> None:
    path = f"{kind.layer(1)}.{kind.attention}"
    expected = _logits(kind, {path: _on_first(torch.zeros_like)})
    with model.trace(LONG):
        model.get(path).output[0][:] = 0
        logits = model.output.logits.save()
    assert_same(logits, expected)
    assert _differs(kind, logits)


def test_a_whole_tuple_is_replaced(kind: Kind, model: LanguageModel) -> None:
    path = f"{kind.layer(1)}.{kind.attention}"
    expected = _logits(kind, {path: _on_first(torch.zeros_like)})
    with model.trace(LONG):
        model.get(path).output = (
            torch.zeros_like(model.get(path).output[0]),
            *model.get(path).output[1:],
        )
        logits = model.output.logits.save()
    assert_same(logits, expected)


def test_an_element_of_an_element_is_replaced(llama: LanguageModel) -> None:
    def change(output):
        cosines, sines = output
        return cosines, sines * 0

    expected = _logits(LLAMA, {"model.rotary_emb": change})
    with llama.trace(LONG):
        llama.model.rotary_emb.output[1] = llama.model.rotary_emb.output[1] * 0
        logits = llama.output.logits.save()
    assert_same(logits, expected)
    assert _differs(LLAMA, logits)


def test_the_last_element_of_a_tuple_is_replaced_by_a_negative_index(
    llama: LanguageModel,
) -> None:
    expected = _logits(LLAMA, {"model.rotary_emb": lambda output: (output[0], output[1] * 0)})
    with llama.trace(LONG):
        llama.model.rotary_emb.output[-1] = llama.model.rotary_emb.output[-1] * 0
        logits = llama.output.logits.save()
    assert_same(logits, expected)


def test_element_replacement_on_a_tensor_is_indexing(gpt2: LanguageModel) -> None:
    row = torch.linspace(-1, 1, 8 * 16).reshape(8, 16)

    def change(output):
        output[0] = row

    expected = _logits(GPT2, {"transformer.h.1": change})
    # on a tensor [0] is the first row, which is worth a warning where it used to be a tuple
    with pytest.warns(UserWarning, match="first row"), gpt2.trace(LONG):
        gpt2.transformer.h[1].output[0] = row
        hidden = gpt2.transformer.h[1].output.save()
        logits = gpt2.output.logits.save()
    assert_same(hidden, row[None])
    assert_same(logits, expected)


def test_an_element_of_a_tuple_that_has_a_name_cannot_be_assigned(gpt2: LanguageModel) -> None:
    with pytest.raises(TypeError, match="does not support item assignment"):
        with gpt2.trace(LONG):
            pair = gpt2.transformer.h[1].attn.output
            pair[0] = pair[0] * 2


def test_two_targets_are_unpacked_into_two_locations(gpt2: LanguageModel) -> None:
    def both(_output):
        return torch.full((1, 8, 16), 0.25)

    expected = _logits(GPT2, {"transformer.h.0": both, "transformer.h.1": both})
    value = both(None)
    with gpt2.trace(LONG):
        gpt2.transformer.h[0].output, gpt2.transformer.h[1].output = value, value.clone()
        logits = gpt2.output.logits.save()
    assert_same(logits, expected)


def test_a_field_of_a_model_output_is_replaced(gpt2: LanguageModel) -> None:
    logits = models.logits_of(GPT2, LONG)
    with gpt2.trace(LONG) as tracer:
        gpt2.output.logits = gpt2.output.logits * 2
        result = tracer.result.save()
    assert_same(result.logits, logits * 2)


def test_a_key_of_a_model_output_is_replaced(gpt2: LanguageModel) -> None:
    def change(output):
        output["last_hidden_state"] = output["last_hidden_state"] + 1

    expected = _logits(GPT2, {"transformer": change})
    with gpt2.trace(LONG):
        body = gpt2.transformer
        body.output["last_hidden_state"] = body.output["last_hidden_state"] + 1
        logits = gpt2.output.logits.save()
    assert_same(logits, expected)
    assert _differs(GPT2, logits)


def test_a_number_of_a_model_output_is_replaced(bert: LanguageModel) -> None:
    logits = models.logits_of(BERT, LONG)
    with bert.trace(LONG) as tracer:
        bert.output[0] = bert.output[0] - 1
        result = tracer.result.save()
    assert torch.equal(result[0], logits - 1)
    assert torch.equal(result.logits, logits - 1)


def test_an_edit_of_a_model_output_in_place_is_returned(kind: Kind, model: LanguageModel) -> None:
    expected = models.logits_of(kind, LONG)
    with model.trace(LONG) as tracer:
        model.output.logits[:, -1] = 0
        result = tracer.result.logits.save()
    assert_same(result[:, :-1], expected[:, :-1])
    assert not result[:, -1].any()


def test_an_input_is_replaced(kind: Kind, model: LanguageModel) -> None:
    path = kind.layer(1)
    expected = _logits(kind, before={path: lambda args, kwargs: ((args[0] * 2, *args[1:]), kwargs)})
    with model.trace(LONG):
        model.get(path).input = model.get(path).input * 2
        logits = model.output.logits.save()
    assert_same(logits, expected)
    assert _differs(kind, logits)


def test_an_input_is_edited_in_place(kind: Kind, model: LanguageModel) -> None:
    def change(args, kwargs):
        args[0][:, 2] = 1

    expected = _logits(kind, before={kind.layer(1): change})
    with model.trace(LONG):
        model.get(kind.layer(1)).input[:, 2] = 1
        logits = model.output.logits.save()
    assert_same(logits, expected)
    assert _differs(kind, logits)


def test_an_input_is_added_to(gpt2: LanguageModel) -> None:
    expected = _logits(
        GPT2, before={"transformer.h.1.mlp": lambda args, kwargs: ((args[0] + 3,), kwargs)}
    )
    with gpt2.trace(LONG):
        gpt2.transformer.h[1].mlp.input += 3
        logits = gpt2.output.logits.save()
    assert_same(logits, expected)
    assert _differs(GPT2, logits)


def test_a_replaced_input_leaves_the_residual_stream(gpt2: LanguageModel) -> None:
    # the caller's own tensor goes on around the module
    path = "transformer.h.1.ln_2"
    expected = _logits(GPT2, before={path: lambda args, kwargs: ((args[0] * 0,), kwargs)})
    with gpt2.trace(LONG):
        before = gpt2.transformer.h[1].ln_2.input.save()
        gpt2.transformer.h[1].ln_2.input = before * 0
        logits = gpt2.output.logits.save()
    assert before.any()
    assert_same(logits, expected)


def test_all_inputs_are_replaced(gpt2: LanguageModel) -> None:
    expected = _logits(
        GPT2,
        before={"transformer.h.1": lambda args, kwargs: ((args[0] * 0.1, *args[1:]), kwargs)},
    )
    with gpt2.trace(LONG):
        args, kwargs = gpt2.transformer.h[1].inputs
        gpt2.transformer.h[1].inputs = ((args[0] * 0.1, *args[1:]), kwargs)
        logits = gpt2.output.logits.save()
    assert_same(logits, expected)
    assert _differs(GPT2, logits)


def test_one_positional_input_is_replaced(kind: Kind, model: LanguageModel) -> None:
    expected = _logits(
        kind, before={kind.layer(1): lambda args, kwargs: ((args[0] * 0.1, *args[1:]), kwargs)}
    )
    with model.trace(LONG):
        model.get(kind.layer(1)).inputs[0][0] = model.get(kind.layer(1)).inputs[0][0] * 0.1
        logits = model.output.logits.save()
    assert_same(logits, expected)
    assert _differs(kind, logits)


def test_one_keyword_input_is_replaced(llama: LanguageModel) -> None:
    def change(args, kwargs):
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] + 1}

    expected = _logits(LLAMA, before={"model.layers.1.self_attn": change})
    with llama.trace(LONG):
        attention = llama.model.layers[1].self_attn
        attention.inputs[1]["hidden_states"] = attention.inputs[1]["hidden_states"] + 1
        logits = llama.output.logits.save()
    assert_same(logits, expected)
    assert _differs(LLAMA, logits)


def test_an_element_of_a_keyword_input_is_replaced(llama: LanguageModel) -> None:
    def change(args, kwargs):
        cosines, sines = kwargs["position_embeddings"]
        return args, {**kwargs, "position_embeddings": (cosines, sines * 0)}

    expected = _logits(LLAMA, before={"model.layers.1": change})
    with llama.trace(LONG):
        layer = llama.model.layers[1]
        layer.inputs[1]["position_embeddings"][1] = layer.inputs[1]["position_embeddings"][1] * 0
        logits = llama.output.logits.save()
    assert_same(logits, expected)
    assert _differs(LLAMA, logits)


def test_the_input_of_a_call_with_keywords_only_is_replaced(llama: LanguageModel) -> None:
    def change(args, kwargs):
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] * 3}

    expected = _logits(LLAMA, before={"model.layers.1.self_attn": change})
    with llama.trace(LONG):
        llama.model.layers[1].self_attn.input = llama.model.layers[1].self_attn.input * 3
        logits = llama.output.logits.save()
    assert_same(logits, expected)
    assert _differs(LLAMA, logits)


def test_the_token_ids_are_replaced(bert: LanguageModel) -> None:
    other = models.token_ids("one two three four five six seven eight")
    expected = bare(BERT)(input_ids=other, attention_mask=torch.ones_like(other)).logits
    with bert.trace(LONG):
        bert.bert.embeddings.word_embeddings.input = other
        logits = bert.output.logits.save()
    assert_same(logits, expected)


def test_an_edit_of_a_part_reaches_its_parent(kind: Kind, model: LanguageModel) -> None:
    part = f"{kind.layer(1)}.{kind.mlp}"
    with hooked(bare(kind), {part: _zeroed}):
        expected = models.output_of(kind, LONG, kind.layer(1))
    with model.trace(LONG):
        model.get(part).output[:] = 0
        layer = model.get(kind.layer(1)).output.save()
    assert_same(layer, expected)


def test_an_edit_on_a_condition_depends_on_the_value(gpt2: LanguageModel) -> None:
    limit = float(models.output_of(GPT2, LONG, "transformer.h.0").sum().detach())
    expected = _logits(GPT2, {"transformer.h.1": _zeroed})
    with gpt2.trace(LONG):
        if gpt2.transformer.h[0].output.sum() >= limit:
            gpt2.transformer.h[1].output[:] = 0
        edited = gpt2.output.logits.save()
    with gpt2.trace(LONG):
        if gpt2.transformer.h[0].output.sum() < limit:
            gpt2.transformer.h[1].output[:] = 0
        left = gpt2.output.logits.save()
    assert_same(edited, expected)
    assert_same(left, models.logits_of(GPT2, LONG))


def test_a_clone_shows_the_value_before_the_edit(gpt2: LanguageModel) -> None:
    before = models.output_of(GPT2, LONG, "transformer.h.0")
    with gpt2.trace(LONG):
        clone = gpt2.transformer.h[0].output.clone().save()
        same = gpt2.transformer.h[0].output.save()  # noqa: NNS302
        gpt2.transformer.h[0].output[:] = 0
    assert_same(clone, before)
    assert not same.any()


def test_layers_are_exchanged(gpt2: LanguageModel) -> None:
    first = models.output_of(GPT2, LONG, "transformer.h.0")
    expected = _logits(GPT2, {"transformer.h.1": lambda _output: first})
    with gpt2.trace(LONG):
        hidden = gpt2.transformer.h[0].output
        gpt2.transformer.h[1].output = hidden
        logits = gpt2.output.logits.save()
    assert_same(logits, expected)
    assert _differs(GPT2, logits)


def test_every_layer_is_edited_in_a_loop(kind: Kind, model: LanguageModel) -> None:
    def change(output):
        return output**2

    expected = _logits(kind, {kind.layer(i): change for i in range(3)})
    with model.trace(LONG):
        for layer in model.get(kind.layers):
            layer.output = layer.output**2
        logits = model.output.logits.save()
    assert_same(logits, expected)
    assert _differs(kind, logits)


def test_a_submodule_named_output_is_written_in_brackets(bert: LanguageModel) -> None:
    path = "bert.encoder.layer.1.output"
    expected = _logits(BERT, {path: lambda output: output * 2, f"{path}.dense": _zeroed})
    with bert.trace(LONG):
        bert.bert.encoder.layer[1]["output"].dense.output[:] = 0
        bert.bert.encoder.layer[1]["output"].output *= 2
        logits = bert.output.logits.save()
    assert_same(logits, expected)
    assert _differs(BERT, logits)


def test_a_value_of_another_length_is_passed_on() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model = NNsight(module)
    with model.trace(torch.ones(1, 4)):
        model[0].output = torch.tensor([[1.0, -1.0, 2.0], [3.0, 4.0, -5.0]])
        result = model.output.save()
    assert_same(result, torch.tensor([[1.0, 0.0, 2.0], [3.0, 4.0, 0.0]]))


def test_the_next_run_is_not_edited(kind: Kind, model: LanguageModel) -> None:
    with model.trace(LONG):
        model.get(kind.layer(1)).output[:] = 0
    with model.trace(LONG):
        logits = model.output.logits.save()
    assert_same(logits, models.logits_of(kind, LONG))
