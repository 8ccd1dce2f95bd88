"""Several invokes in one batch: each sees, and gets, what its prompt would have alone."""

import dataclasses

import pytest
import torch

from nnsight_dsl import (
    BatchingError,
    InvokeError,
    LanguageModel,
    NNsight,
    SharedNameError,
    StaleEditError,
    WriteError,
)
from tests import models
from tests.models import (
    GPT2,
    LLAMA,
    LONG,
    MIDDLE,
    SHORT,
    Kind,
    assert_near,
    assert_same,
    bare,
    encoded,
    hooked,
)

FIRST = "the cat sat"
SECOND = "a red bird"


def _alone(kind, prompt, path):
    return models.output_of(kind, prompt, path)


def _edited(kind, prompt, after):
    with hooked(bare(kind), after):
        return bare(kind)(**encoded(prompt)).logits


# what an invoke sees


def test_prompts_of_unequal_length_get_what_they_get_alone(
    kind: Kind, model: LanguageModel
) -> None:
    with model.trace() as tracer:
        with tracer.invoke(SHORT):
            short_hidden = model.get(kind.layer(1)).output.save()
            short = model.output.logits.save()
        with tracer.invoke(LONG):
            long_hidden = model.get(kind.layer(1)).output.save()
            long = model.output.logits.save()
        with tracer.invoke(MIDDLE):
            middle_hidden = model.get(kind.layer(1)).output.save()
            middle = model.output.logits.save()
    for prompt, hidden, logits in (
        (SHORT, short_hidden, short),
        (LONG, long_hidden, long),
        (MIDDLE, middle_hidden, middle),
    ):
        assert hidden.shape[:2] == logits.shape[:2] == (1, 8)
        assert_near(kind.own(hidden, prompt), _alone(kind, prompt, kind.layer(1)))
        assert_near(kind.own(logits, prompt), models.logits_of(kind, prompt))


def test_prompts_of_one_length_get_what_they_get_alone(kind: Kind, model: LanguageModel) -> None:
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            first = model.output.logits.save()
        with tracer.invoke(SECOND):
            second = model.output.logits.save()
    assert_near(first, models.logits_of(kind, FIRST))
    assert_near(second, models.logits_of(kind, SECOND))


def test_an_invoke_sees_its_rows_of_inputs_and_tuples(llama: LanguageModel) -> None:
    batch = bare(LLAMA)
    seen_inputs = {}

    def keep(args, kwargs):
        seen_inputs.update(kwargs)

    with hooked(batch, before={"model.layers.1.self_attn": keep}):
        with models.recorded(batch, ["model.layers.1.self_attn"]) as outputs:
            batch(**encoded(FIRST, SECOND))
    with llama.trace() as tracer:
        with tracer.invoke(FIRST):
            pass
        with tracer.invoke(SECOND):
            args, kwargs = llama.model.layers[1].self_attn.inputs.save()
            hidden = kwargs["hidden_states"].save()
            attention = llama.model.layers[1].self_attn.output[0].save()
    assert_same(hidden, seen_inputs["hidden_states"][1:])
    assert_same(attention, outputs["model.layers.1.self_attn"][0][0][1:])


def test_one_invoke_is_the_same_as_an_input_of_the_trace(kind: Kind, model: LanguageModel) -> None:
    with model.trace() as tracer:
        with tracer.invoke(LONG):
            logits = model.output.logits.save()
    assert_same(logits, models.logits_of(kind, LONG))


def test_invokes_may_ask_in_an_order_of_their_own(gpt2: LanguageModel) -> None:
    with gpt2.trace() as tracer:
        with tracer.invoke(FIRST):
            late = gpt2.transformer.h[2].output.save()
        with tracer.invoke(SECOND):
            early = gpt2.transformer.h[0].output.save()
    assert_near(late, _alone(GPT2, FIRST, "transformer.h.2"))
    assert_near(early, _alone(GPT2, SECOND, "transformer.h.0"))


def test_an_invoke_with_several_prompts_has_a_row_for_each(
    kind: Kind, model: LanguageModel
) -> None:
    with model.trace() as tracer:
        with tracer.invoke(MIDDLE):
            one = model.output.logits.save()
        with tracer.invoke([SHORT, LONG]):
            hidden = model.get(kind.layer(1)).output.save()
            two = model.output.logits.save()
    assert one.shape[0] == 1
    assert two.shape[0] == hidden.shape[0] == 2
    assert_near(kind.own(one, MIDDLE), models.logits_of(kind, MIDDLE))
    for row, prompt in enumerate((SHORT, LONG)):
        mine = kind.own(two[row : row + 1], prompt)
        assert_near(mine, models.logits_of(kind, prompt))
        layer = kind.own(hidden[row : row + 1], prompt)
        assert_near(layer, _alone(kind, prompt, kind.layer(1)))


def test_prompts_of_unequal_length_may_be_given_to_the_trace(
    kind: Kind, model: LanguageModel
) -> None:
    with model.trace([SHORT, LONG]):
        logits = model.output.logits.save()
    assert_near(kind.own(logits[:1], SHORT), models.logits_of(kind, SHORT))
    assert_near(logits[1:], models.logits_of(kind, LONG))


def test_invokes_mix_forms_of_input(gpt2: LanguageModel) -> None:
    with gpt2.trace() as tracer:
        with tracer.invoke(SHORT):
            text = gpt2.output.logits.save()
        with tracer.invoke(models.token_ids(LONG)):
            tensor = gpt2.output.logits.save()
        with tracer.invoke(models.token_ids(MIDDLE)[0].tolist()):
            numbers = gpt2.output.logits.save()
        with tracer.invoke(**encoded(FIRST)):
            keywords = gpt2.output.logits.save()
    for prompt, logits in (
        (SHORT, text),
        (LONG, tensor),
        (MIDDLE, numbers),
        (FIRST, keywords),
    ):
        assert_near(GPT2.own(logits, prompt), models.logits_of(GPT2, prompt))


def test_an_attention_mask_of_the_user_is_kept(gpt2: LanguageModel) -> None:
    # the first two tokens of the second prompt are masked: the rest is a prompt by itself
    masked = {
        "input_ids": models.token_ids("the a cat sat"),
        "attention_mask": torch.tensor([[0, 0, 1, 1]]),
    }
    with gpt2.trace() as tracer:
        with tracer.invoke(LONG):
            pass
        with tracer.invoke(**masked):
            logits = gpt2.output.logits[:, -1].save()
    assert_near(logits, models.logits_of(GPT2, "cat sat")[:, -1])


def test_an_encoder_decoder_pads_on_the_right() -> None:
    module = models.new_t5()
    model = LanguageModel(models.new_t5(), tokenizer=models.tokenizer())
    decoder = models.token_ids("a red bird")
    expected = [
        module(**encoded(prompt), decoder_input_ids=decoder).logits for prompt in (SHORT, LONG)
    ]
    with model.trace([SHORT, LONG], decoder_input_ids=decoder.repeat(2, 1)):
        logits = model.output.logits.save()
    assert_near(logits, torch.cat(expected))


# promptless invokes


def test_a_promptless_invoke_sees_all_rows(kind: Kind, model: LanguageModel) -> None:
    with model.trace() as tracer:
        with tracer.invoke(SHORT):
            one = model.output.logits.save()
        with tracer.invoke([LONG, MIDDLE]):
            two = model.output.logits.save()
        with tracer.invoke():
            everything = model.output.logits.save()
    assert everything.shape[0] == 3
    assert_same(everything, torch.cat([one, two]))


def test_a_promptless_invoke_sees_the_rows_of_later_invokes_too(gpt2: LanguageModel) -> None:
    with gpt2.trace() as tracer:
        with tracer.invoke():
            everything = gpt2.output.logits.save()
        with tracer.invoke(FIRST):
            pass
        with tracer.invoke(SECOND):
            pass
    assert_same(everything, bare(GPT2)(**encoded(FIRST, SECOND)).logits)


def test_several_promptless_invokes_share_the_forward(gpt2: LanguageModel) -> None:
    with models.recorded(gpt2._module, ["transformer"]) as calls:
        with gpt2.trace() as tracer:
            with tracer.invoke(FIRST):
                pass
            with tracer.invoke():
                late = gpt2.transformer.h[2].output.save()
            with tracer.invoke():
                early = gpt2.transformer.h[0].output.save()
    assert len(calls["transformer"]) == 1
    assert_same(late, _alone(GPT2, FIRST, "transformer.h.2"))
    assert_same(early, _alone(GPT2, FIRST, "transformer.h.0"))


def test_a_promptless_invoke_edits_all_rows(gpt2: LanguageModel) -> None:
    def change(output):
        return output**2

    expected = _edited(GPT2, FIRST, {"transformer.h.1": change})
    other = _edited(GPT2, SECOND, {"transformer.h.1": change})
    with gpt2.trace() as tracer:
        with tracer.invoke(FIRST):
            first = gpt2.output.logits.save()
        with tracer.invoke(SECOND):
            second = gpt2.output.logits.save()
        with tracer.invoke():
            gpt2.transformer.h[1].output = gpt2.transformer.h[1].output ** 2
    assert_near(first, expected)
    assert_near(second, other)


def test_promptless_invokes_run_beside_an_input_of_the_trace(gpt2: LanguageModel) -> None:
    with gpt2.trace(FIRST) as tracer:
        with tracer.invoke():
            late = gpt2.transformer.h[2].output.save()
        with tracer.invoke():
            early = gpt2.transformer.h[0].output.save()
    assert_same(late, _alone(GPT2, FIRST, "transformer.h.2"))
    assert_same(early, _alone(GPT2, FIRST, "transformer.h.0"))


def test_values_beside_invokes_with_an_input_are_refused(gpt2: LanguageModel) -> None:
    with pytest.raises(InvokeError):
        with gpt2.trace(FIRST) as tracer:
            hidden = gpt2.transformer.h[0].output.save()
            with tracer.invoke():
                logits = gpt2.output.logits.save()


# what an invoke changes


def test_an_edit_in_place_stays_in_its_rows(kind: Kind, model: LanguageModel) -> None:
    def change(output):
        output[:] = 0

    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            first = model.output.logits.save()
        with tracer.invoke(SECOND):
            model.get(kind.layer(1)).output[:] = 0
            second = model.output.logits.save()
        with tracer.invoke(FIRST):
            third = model.output.logits.save()
    assert_near(first, models.logits_of(kind, FIRST))
    assert_near(third, models.logits_of(kind, FIRST))
    assert_near(second, _edited(kind, SECOND, {kind.layer(1): change}))


def test_a_replacement_stays_in_its_rows(kind: Kind, model: LanguageModel) -> None:
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            first = model.output.logits.save()
        with tracer.invoke(SECOND):
            model.get(kind.layer(1)).output = model.get(kind.layer(1)).output ** 2
            second = model.output.logits.save()
        with tracer.invoke(FIRST):
            third = model.output.logits.save()
    assert_near(first, models.logits_of(kind, FIRST))
    assert_near(third, models.logits_of(kind, FIRST))
    assert_near(second, _edited(kind, SECOND, {kind.layer(1): lambda output: output**2}))


def test_edits_of_prompts_of_unequal_length_are_those_alone(
    kind: Kind, model: LanguageModel
) -> None:
    short_expected = _edited(kind, SHORT, {kind.layer(1): lambda output: output**2})
    long_expected = _edited(kind, LONG, {kind.layer(1): lambda output: output * -1})
    with model.trace() as tracer:
        with tracer.invoke(SHORT):
            model.get(kind.layer(1)).output = model.get(kind.layer(1)).output ** 2
            short = model.output.logits.save()
        with tracer.invoke(LONG):
            model.get(kind.layer(1)).output *= -1
            long = model.output.logits.save()
    assert_near(kind.own(short, SHORT), short_expected)
    assert_near(kind.own(long, LONG), long_expected)


def test_an_element_of_a_tuple_is_replaced_in_its_rows(kind: Kind, model: LanguageModel) -> None:
    path = f"{kind.layer(1)}.{kind.attention}"
    expected = _edited(kind, SECOND, {path: lambda output: (output[0] * -2, *output[1:])})
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            first = model.output.logits.save()
        with tracer.invoke(SECOND):
            model.get(path).output[0] = model.get(path).output[0] * -2
            second = model.output.logits.save()
    assert_near(first, models.logits_of(kind, FIRST))
    assert_near(second, expected)


def test_an_input_is_replaced_in_its_rows(kind: Kind, model: LanguageModel) -> None:
    path = kind.layer(1)
    change = {path: lambda args, kwargs: ((args[0] ** 2, *args[1:]), kwargs)}
    with hooked(bare(kind), before=change):
        expected = bare(kind)(**encoded(FIRST)).logits
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            model.get(path).input = model.get(path).input ** 2
            first = model.output.logits.save()
        with tracer.invoke(SECOND):
            second = model.output.logits.save()
    assert_near(first, expected)
    assert_near(second, models.logits_of(kind, SECOND))


def test_a_keyword_input_is_replaced_in_its_rows(llama: LanguageModel) -> None:
    def change(args, kwargs):
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] ** 2}

    path = "model.layers.1.self_attn"
    with hooked(bare(LLAMA), before={path: change}):
        expected = bare(LLAMA)(**encoded(SECOND)).logits
    with llama.trace() as tracer:
        with tracer.invoke(FIRST):
            first = llama.output.logits.save()
        with tracer.invoke(SECOND):
            attention = llama.model.layers[1].self_attn
            attention.inputs[1]["hidden_states"] = attention.inputs[1]["hidden_states"] ** 2
            second = llama.output.logits.save()
    assert_near(first, models.logits_of(LLAMA, FIRST))
    assert_near(second, expected)


def test_a_model_output_is_edited_in_its_rows(gpt2: LanguageModel) -> None:
    with gpt2.trace() as tracer:
        with tracer.invoke(FIRST):
            gpt2.output.logits = gpt2.output.logits * 0
        with tracer.invoke(SECOND):
            second = gpt2.output.logits.save()
        with tracer.invoke():
            everything = tracer.result.logits.save()
    assert not everything[0].any()
    assert_near(everything[1:], models.logits_of(GPT2, SECOND))
    assert_near(second, models.logits_of(GPT2, SECOND))


def test_a_key_of_a_model_output_is_replaced_in_its_rows(gpt2: LanguageModel) -> None:
    def change(output):
        output["last_hidden_state"] = output["last_hidden_state"] ** 2

    expected = _edited(GPT2, SECOND, {"transformer": change})
    with gpt2.trace() as tracer:
        with tracer.invoke(FIRST):
            first = gpt2.output.logits.save()
        with tracer.invoke(SECOND):
            body = gpt2.transformer
            body.output["last_hidden_state"] = body.output["last_hidden_state"] ** 2
            second = gpt2.output.logits.save()
    assert_near(first, models.logits_of(GPT2, FIRST))
    assert_near(second, expected)


def test_a_later_invoke_sees_the_edit_of_its_rows_only(gpt2: LanguageModel) -> None:
    with gpt2.trace() as tracer:
        with tracer.invoke(FIRST):
            gpt2.transformer.h[1].output = gpt2.transformer.h[1].output * 0
        with tracer.invoke(SECOND):
            second = gpt2.transformer.h[1].output.save()
        with tracer.invoke():
            everything = gpt2.transformer.h[1].output.save()
    assert_near(second, _alone(GPT2, SECOND, "transformer.h.1"))
    assert not everything[0].any()
    assert_same(everything[1:], second)


def test_a_write_to_a_value_without_rows_is_refused(llama: LanguageModel) -> None:
    # position embeddings of prompts of equal length are shared by all rows
    with pytest.raises(WriteError):
        with llama.trace() as tracer:
            with tracer.invoke(FIRST):
                llama.model.rotary_emb.output[1] = llama.model.rotary_emb.output[1] * 0
            with tracer.invoke(SECOND):
                logits = llama.output.logits.save()


def test_a_write_of_another_shape_is_refused(gpt2: LanguageModel) -> None:
    with pytest.raises(WriteError):
        with gpt2.trace() as tracer:
            with tracer.invoke(FIRST):
                gpt2.transformer.h[1].output = torch.zeros(2, 3, 16)
            with tracer.invoke(SECOND):
                logits = gpt2.output.logits.save()


def test_an_edit_through_a_view_that_was_replaced_is_refused(gpt2: LanguageModel) -> None:
    with pytest.raises(StaleEditError):
        with gpt2.trace() as tracer:
            with tracer.invoke(FIRST):
                old = gpt2.transformer.h[0].output
                given = gpt2.transformer.h[1].ln_1.input
                old[:] = 0
                logits = gpt2.output.logits.save()
            with tracer.invoke(SECOND):
                gpt2.transformer.h[0].output = gpt2.transformer.h[0].output * 2


def test_an_edit_of_a_clone_after_a_replacement_is_nobodys_business(gpt2: LanguageModel) -> None:
    with gpt2.trace() as tracer:
        with tracer.invoke(FIRST):
            old = gpt2.transformer.h[0].output.clone()
            given = gpt2.transformer.h[1].ln_1.input
            old[:] = 0  # noqa: NNS305
            first = gpt2.output.logits.save()
        with tracer.invoke(SECOND):
            gpt2.transformer.h[0].output = gpt2.transformer.h[0].output ** 2
            second = gpt2.output.logits.save()
    assert_near(first, models.logits_of(GPT2, FIRST))
    assert_near(second, _edited(GPT2, SECOND, {"transformer.h.0": lambda output: output**2}))


def test_edits_of_two_invokes_at_one_location_both_hold(gpt2: LanguageModel) -> None:
    def zeroed(output):
        output[:] = 0

    with gpt2.trace() as tracer:
        with tracer.invoke(FIRST):
            gpt2.transformer.h[1].output[:] = 0
            first = gpt2.output.logits.save()
        with tracer.invoke(SECOND):
            gpt2.transformer.h[1].output = gpt2.transformer.h[1].output ** 2
            second = gpt2.output.logits.save()
    assert_near(first, _edited(GPT2, FIRST, {"transformer.h.1": zeroed}))
    assert_near(second, _edited(GPT2, SECOND, {"transformer.h.1": lambda output: output**2}))


# values shared across invokes


def test_a_value_of_an_earlier_invoke_is_patched_into_a_later_one(
    kind: Kind, model: LanguageModel
) -> None:
    clean = _alone(kind, FIRST, kind.layer(1))
    expected = _edited(kind, SECOND, {kind.layer(1): lambda _output: clean})
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            hidden = model.get(kind.layer(1)).output
            first = model.output.logits.save()
        with tracer.invoke(SECOND):
            model.get(kind.layer(1)).output = hidden
            second = model.output.logits.save()
    assert_near(first, models.logits_of(kind, FIRST))
    assert_near(second, expected)


def test_a_value_of_one_position_is_patched_across_unequal_lengths(gpt2: LanguageModel) -> None:
    clean = _alone(GPT2, SHORT, "transformer.h.1")[:, -1]

    def change(output):
        output[:, -1] = clean

    expected = _edited(GPT2, LONG, {"transformer.h.1": change})
    with gpt2.trace() as tracer:
        with tracer.invoke(SHORT):
            last = gpt2.transformer.h[1].output[:, -1]
        with tracer.invoke(LONG):
            gpt2.transformer.h[1].output[:, -1] = last
            logits = gpt2.output.logits.save()
    assert_near(logits, expected)


def test_a_reader_waits_for_a_value_that_is_bound_later(gpt2: LanguageModel) -> None:
    # the reader is ready for layer 2 from the start, the value comes with layer 1
    clean = _alone(GPT2, FIRST, "transformer.h.1")
    expected = _edited(GPT2, SECOND, {"transformer.h.2": lambda _output: clean})
    with gpt2.trace() as tracer:
        with tracer.invoke(FIRST):
            hidden = gpt2.transformer.h[1].output
        with tracer.invoke(SECOND):
            early = gpt2.transformer.h[0].output.save()
            gpt2.transformer.h[2].output = hidden
            logits = gpt2.output.logits.save()
    assert_near(early, _alone(GPT2, SECOND, "transformer.h.0"))
    assert_near(logits, expected)


def test_a_reader_waits_over_a_name_that_is_bound_outside(gpt2: LanguageModel) -> None:
    hidden = torch.zeros(1, 3, 16)
    clean = _alone(GPT2, FIRST, "transformer.h.1")
    with gpt2.trace() as tracer:
        with tracer.invoke(FIRST):
            hidden = gpt2.transformer.h[1].output
        with tracer.invoke(SECOND):
            doubled = (hidden * 2).save()
    assert_near(doubled, clean * 2)
    assert not hidden.any()


def test_a_value_crosses_several_invokes(gpt2: LanguageModel) -> None:
    one = _alone(GPT2, FIRST, "transformer.h.0")
    two = _alone(GPT2, SECOND, "transformer.h.0")
    with gpt2.trace() as tracer:
        with tracer.invoke(FIRST):
            one_hidden = gpt2.transformer.h[0].output
        with tracer.invoke(SECOND):
            difference = one_hidden - gpt2.transformer.h[0].output
        with tracer.invoke(FIRST):
            total = (one_hidden + difference).save()
    assert_near(total, 2 * one - two)


def test_a_value_that_never_comes_is_a_name_error(gpt2: LanguageModel) -> None:
    with pytest.raises(NameError):
        with gpt2.trace() as tracer:
            with tracer.invoke(FIRST):
                if gpt2.transformer.h[0].output.sum() is None:
                    absent = gpt2.transformer.h[1].output
            with tracer.invoke(SECOND):
                doubled = (absent * 2).save()


def test_a_value_bound_in_a_loop_needs_a_barrier(gpt2: LanguageModel) -> None:
    with pytest.raises(SharedNameError, match="barrier"):
        with gpt2.trace() as tracer:
            with tracer.invoke(FIRST):
                for layer in gpt2.transformer.h:
                    hidden = layer.output
            with tracer.invoke(SECOND):
                doubled = (hidden * 2).save()


def test_a_barrier_lets_a_value_of_a_loop_cross(gpt2: LanguageModel) -> None:
    clean = _alone(GPT2, FIRST, "transformer.h.1")
    expected = _edited(GPT2, SECOND, {"transformer.h.2": lambda _output: clean})
    with gpt2.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(FIRST):
            for layer in gpt2.transformer.h[:2]:
                hidden = layer.output
            barrier()
        with tracer.invoke(SECOND):
            barrier()
            gpt2.transformer.h[2].output = hidden
            logits = gpt2.output.logits.save()
    assert_near(logits, expected)


def test_a_barrier_synchronises_two_invokes_at_one_location(gpt2: LanguageModel) -> None:
    clean = _alone(GPT2, FIRST, "transformer.wte")
    expected = _edited(GPT2, SECOND, {"transformer.wte": lambda _output: clean})
    with gpt2.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(FIRST):
            embedded = gpt2.transformer.wte.output
            barrier()
        with tracer.invoke(SECOND):
            barrier()
            gpt2.transformer.wte.output = embedded
            logits = gpt2.output.logits.save()
    assert_near(logits, expected)


def test_a_container_of_the_trace_is_filled_by_its_invokes(gpt2: LanguageModel) -> None:
    with gpt2.trace() as tracer:
        seen = [].save()
        with tracer.invoke(FIRST):
            seen.append(gpt2.transformer.h[0].output)
        with tracer.invoke(SECOND):
            seen.append(gpt2.transformer.h[1].output)
    assert_near(seen[0], _alone(GPT2, FIRST, "transformer.h.0"))
    assert_near(seen[1], _alone(GPT2, SECOND, "transformer.h.1"))


# invokes in a loop


def test_invokes_of_a_loop_have_the_loop_variables_of_their_round(
    kind: Kind, model: LanguageModel
) -> None:
    prompts = [SHORT, LONG, MIDDLE]
    with model.trace() as tracer:
        seen = {}.save()
        for number, prompt in enumerate(prompts):
            with tracer.invoke(prompt):
                model.get(kind.layer(number)).output[:] = number
                seen[number, prompt] = model.output.logits
    assert list(seen) == list(enumerate(prompts))

    def change(number):
        def fill(output):
            output[:] = number

        return fill

    for (number, prompt), logits in seen.items():
        expected = _edited(kind, prompt, {kind.layer(number): change(number)})
        assert_near(kind.own(logits, prompt), expected)


def test_a_comprehension_in_an_invoke_reads_layer_by_layer(gpt2: LanguageModel) -> None:
    with gpt2.trace() as tracer:
        with tracer.invoke(FIRST):
            first = [layer.output for layer in gpt2.transformer.h].save()
        with tracer.invoke(SECOND):
            second = [layer.output for layer in gpt2.transformer.h].save()
    for number in range(3):
        assert_near(first[number], _alone(GPT2, FIRST, f"transformer.h.{number}"))
        assert_near(second[number], _alone(GPT2, SECOND, f"transformer.h.{number}"))


def test_a_comprehension_in_an_invoke_of_a_loop_reads_layer_by_layer(gpt2: LanguageModel) -> None:
    with gpt2.trace() as tracer:
        hidden = [].save()
        for prompt in (FIRST, SECOND):
            with tracer.invoke(prompt):
                hidden.append([layer.output for layer in gpt2.transformer.h])
    for prompt, layers in zip((FIRST, SECOND), hidden, strict=True):
        for number, value in enumerate(layers):
            assert_near(value, _alone(GPT2, prompt, f"transformer.h.{number}"))


def test_an_invoke_under_a_condition_joins_the_batch_if_it_holds(gpt2: LanguageModel) -> None:
    for wanted in (True, False):
        with gpt2.trace() as tracer:
            with tracer.invoke(FIRST):
                pass
            if wanted:
                with tracer.invoke(SECOND):
                    pass
            with tracer.invoke():
                logits = gpt2.output.logits.save()
        prompts = [FIRST, SECOND] if wanted else [FIRST]
        assert_same(logits, bare(GPT2)(**encoded(*prompts)).logits)


# calls of a block's own


def test_a_call_with_hook_is_offered_to_a_later_invoke() -> None:
    module = models.new_gpt2()
    module.extra = torch.nn.Linear(16, 16)
    model = LanguageModel(module, tokenizer=models.tokenizer())
    clean = _alone(GPT2, FIRST, "transformer.h.1")
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            hidden = model.transformer.h[1].output
            rebuilt = model.extra(hidden, hook=True)
            model.transformer.h[1].output = rebuilt
        with tracer.invoke(SECOND):
            given = model.extra.input.save()
            seen = model.extra.output.save()
    assert_near(given, clean)
    assert_near(seen, module.extra(clean))


# models that cannot batch


def test_two_inputs_of_a_plain_module_are_refused() -> None:
    model = NNsight(torch.nn.Sequential(torch.nn.Linear(3, 3)))
    with pytest.raises(BatchingError):
        with model.trace() as tracer:
            with tracer.invoke(torch.ones(1, 3)):
                pass
            with tracer.invoke(torch.ones(1, 3)):
                pass


def test_promptless_invokes_of_a_plain_module_run() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU())
    model = NNsight(module)
    x = torch.linspace(-1, 1, 6).reshape(2, 3)
    with model.trace() as tracer:
        with tracer.invoke(x):
            first = model[0].output.save()
        with tracer.invoke():
            again = model[0].output.save()
            last = model.output.save()
    assert_same(first, module[0](x))
    assert_same(again, module[0](x))
    assert_same(last, module(x))


# objects


@dataclasses.dataclass(frozen=True)
class Inner:
    last: torch.Tensor
    count: int = 3


@dataclasses.dataclass
class Outer:
    hidden: torch.Tensor
    inner: Inner


class Passing(torch.nn.Module):
    def forward(self, value):
        return value


class WithDataclass(torch.nn.Module):
    """A model two of whose values are dataclasses, one in the other."""

    def __init__(self) -> None:
        super().__init__()
        self.base = models.new_gpt2()
        self.middle = Passing()
        self.config = self.base.config

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        hidden = self.base.transformer(
            input_ids, attention_mask=attention_mask, position_ids=position_ids
        ).last_hidden_state
        value = self.middle(Outer(hidden, Inner(hidden[:, -1] * 1)))
        return self.base.lm_head(value.hidden) + value.inner.last.sum(-1)[:, None, None]


def test_an_invoke_has_its_rows_of_a_dataclass() -> None:
    model = LanguageModel(WithDataclass(), tokenizer=models.tokenizer())
    hidden = {prompt: _alone(GPT2, prompt, "transformer.ln_f") for prompt in (FIRST, SECOND)}
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            first = model.middle.output.save()
        with tracer.invoke(SECOND):
            second = model.middle.input.save()
        with tracer.invoke():
            both = model.middle.output.save()
    assert_near(first.hidden, hidden[FIRST])
    assert_near(first.inner.last, hidden[FIRST][:, -1])
    assert_near(second.hidden, hidden[SECOND])
    assert first.inner.count == 3
    assert both.hidden.shape[0] == 2


def test_a_dataclass_is_edited_in_its_rows() -> None:
    model = LanguageModel(WithDataclass(), tokenizer=models.tokenizer())
    hidden = {prompt: _alone(GPT2, prompt, "transformer.ln_f") for prompt in (FIRST, SECOND)}
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            model.middle.output.hidden[:, 0] = 0
        with tracer.invoke(SECOND):
            value = model.middle.output
            value.hidden = value.hidden * 2
            inner = dataclasses.replace(value.inner, last=value.inner.last * 0)
            model.middle.output = dataclasses.replace(model.middle.output, inner=inner)
        with tracer.invoke():
            both = model.middle.output.save()
    cleared = hidden[FIRST].clone()
    cleared[:, 0] = 0
    assert_near(both.hidden, torch.cat([cleared, hidden[SECOND] * 2]))
    assert_near(both.inner.last[:1], hidden[FIRST][:, -1])
    assert not both.inner.last[1:].any()


def test_what_is_set_in_a_container_comes_before_a_later_write(gpt2: LanguageModel) -> None:
    with gpt2.trace() as tracer:
        with tracer.invoke(FIRST):
            logits = gpt2.output.logits.save()
        with tracer.invoke(SECOND):
            output = gpt2.output
            output.logits = output.logits * 0
            again = gpt2.output.logits.save()
            gpt2.output.logits = again + 1
        with tracer.invoke():
            both = gpt2.output.logits.save()
    assert not again.any()
    assert_same(both[1:], torch.ones_like(again))
    assert_same(both[:1], logits)


def test_an_object_of_another_kind_goes_whole_to_every_invoke(gpt2: LanguageModel) -> None:
    """A key-value cache is one object that the model goes on with; docs/rows.md says so."""
    with gpt2.trace() as tracer:
        with tracer.invoke(FIRST):
            first = [gpt2.output.past_key_values].save()
        with tracer.invoke(SECOND):
            second = [gpt2.output.past_key_values].save()
    assert first[0] is second[0]
    assert first[0].layers[0].keys.shape[0] == 2
