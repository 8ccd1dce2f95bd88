"""Steps of a generation: what a block does in step n, a hook that counts steps does too."""

import warnings
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers

from nnsight_dsl import GenerationEndedError, LanguageModel, OutOfOrderError
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
)

STEPS = 4


@pytest.fixture(params=[GPT2, LLAMA], ids=lambda kind: kind.name)
def kind(request) -> Kind:
    return request.param


class Hand:
    """A generation with hand-written hooks that count the forwards of the root."""

    def __init__(self, kind: Kind) -> None:
        self.module = models.bare(kind)
        self.step = -1
        self.seen: dict[str, list] = {}

    def keep(self, path: str):
        return lambda output: self.seen.setdefault(path, []).append(output)

    def at_step(self, steps, change):
        return lambda output: change(output) if self.step in steps else None

    @contextmanager
    def hooked(self, after):
        def count(_args, _kwargs):
            self.step += 1

        with models.hooked(self.module, after, {"": count}):
            yield

    def generate(self, prompt: str, after=None, **options) -> torch.Tensor:
        options = {"max_new_tokens": STEPS, "do_sample": False, **options}
        with self.hooked(after or {}):
            return self.module.generate(**encoded(prompt), **options)


def _plain(kind: Kind, prompt: str = LONG, **options) -> torch.Tensor:
    return Hand(kind).generate(prompt, **options)


def _hidden(kind: Kind, path: str, prompt: str = LONG, **options) -> list[torch.Tensor]:
    hand = Hand(kind)
    hand.generate(prompt, {path: hand.keep(path)}, **options)
    return hand.seen[path]


# the result


def test_the_generator_output_is_what_generate_returns(kind: Kind, model: LanguageModel) -> None:
    with model.generate(LONG, max_new_tokens=STEPS, do_sample=False):
        output = model.generator.output.save()
    assert_same(output, _plain(kind))
    assert output.shape == (1, 8 + STEPS)


def test_the_result_is_what_generate_returns(kind: Kind, model: LanguageModel) -> None:
    with model.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        result = tracer.result.save()
    assert_same(result, _plain(kind))


def test_the_result_comes_after_values_of_the_model(kind: Kind, model: LanguageModel) -> None:
    with model.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        hidden = model.get(kind.layer(1)).output.save()
        result = tracer.result.save()
        output = model.generator.output.save()
    assert_same(hidden, _hidden(kind, kind.layer(1))[0])
    assert_same(result, _plain(kind))
    assert_same(output, result)


def test_a_dictionary_result_is_passed_on(gpt2: LanguageModel) -> None:
    options = {"return_dict_in_generate": True, "output_scores": True}
    expected = _plain(GPT2, **options)
    with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False, **options) as tracer:
        result = tracer.result.save()
    assert_same(result.sequences, expected.sequences)
    assert_same(result.scores, expected.scores)


def test_a_generation_without_a_block_returns_the_ids(kind: Kind, model: LanguageModel) -> None:
    ids = model.generate(LONG, max_new_tokens=STEPS, do_sample=False, trace=False)
    assert_same(ids, _plain(kind))


def test_an_encoder_decoder_generates() -> None:
    module = models.new_t5()
    model = LanguageModel(models.new_t5(), tokenizer=models.tokenizer())
    with models.recorded(module, ["decoder.block.1", "encoder.block.1"]) as expected:
        ids = module.generate(**encoded(LONG), max_new_tokens=3, do_sample=False)
    with model.generate(LONG, max_new_tokens=3, do_sample=False) as tracer:
        encoder = model.encoder.block[1].output.save()
        hidden = [].save()
        for _ in tracer.iter[:3]:
            hidden.append(model.decoder.block[1].output)
        result = tracer.result.save()
    assert_same(encoder, expected["encoder.block.1"][0])
    assert_same(hidden, expected["decoder.block.1"])
    assert_same(result, ids)


# reading steps


def test_an_access_outside_of_a_loop_is_the_first_step(kind: Kind, model: LanguageModel) -> None:
    with model.generate(LONG, max_new_tokens=STEPS, do_sample=False):
        hidden = model.get(kind.layer(1)).output.save()
    assert_same(hidden, _hidden(kind, kind.layer(1))[0])
    assert hidden.shape[1] == 8


def test_an_open_loop_runs_once_for_each_step(kind: Kind, model: LanguageModel) -> None:
    with model.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        hidden = [].save()
        numbers = [].save()
        for step in tracer.iter[:]:
            hidden.append(model.get(kind.layer(1)).output)
            numbers.append(step)
    assert_same(hidden, _hidden(kind, kind.layer(1)))
    assert numbers == [0, 1, 2, 3]


def test_an_open_with_block_runs_once_for_each_step(kind: Kind, model: LanguageModel) -> None:
    with model.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        hidden = [].save()
        numbers = [].save()
        with tracer.iter[:] as step:
            hidden.append(model.get(kind.layer(1)).output)
            numbers.append(step)
    assert_same(hidden, _hidden(kind, kind.layer(1)))
    assert numbers == [0, 1, 2, 3]


def test_all_runs_once_for_each_step(gpt2: LanguageModel) -> None:
    with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        by_tracer = [].save()
        with tracer.all():
            by_tracer.append(gpt2.transformer.h[1].output)
    with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        by_loop = [].save()
        for _ in tracer.all():
            by_loop.append(gpt2.transformer.h[1].output)
    expected = _hidden(GPT2, "transformer.h.1")
    assert_same(by_tracer, expected)
    assert_same(by_loop, expected)


KEYS = [
    (0, [0]),
    (2, [2]),
    (slice(1, 3), [1, 2]),
    (slice(2, None), [2, 3]),
    (slice(None, 2), [0, 1]),
    (slice(0, 4, 2), [0, 2]),
    (slice(1, None, 2), [1, 3]),
    ([0, 2, 3], [0, 2, 3]),
    ([1], [1]),
    (range(1, 3), [1, 2]),
]


@pytest.mark.parametrize(("key", "steps"), KEYS, ids=[str(key) for key, _ in KEYS])
def test_a_key_chooses_the_steps_of_a_for_loop(gpt2: LanguageModel, key, steps) -> None:
    expected = _hidden(GPT2, "transformer.h.1")
    with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        seen = [].save()
        for step in tracer.iter[key]:
            seen.append((step, gpt2.transformer.h[1].output))
    assert [step for step, _ in seen] == steps
    assert_same([hidden for _, hidden in seen], [expected[step] for step in steps])


@pytest.mark.parametrize(("key", "steps"), KEYS, ids=[str(key) for key, _ in KEYS])
def test_a_key_chooses_the_steps_of_a_with_block(gpt2: LanguageModel, key, steps) -> None:
    expected = _hidden(GPT2, "transformer.h.1")
    with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        seen = [].save()
        with tracer.iter[key] as step:
            seen.append((step, gpt2.transformer.h[1].output))
    assert [step for step, _ in seen] == steps
    assert_same([hidden for _, hidden in seen], [expected[step] for step in steps])


def test_several_layers_are_read_in_each_step(gpt2: LanguageModel) -> None:
    expected = [_hidden(GPT2, f"transformer.h.{i}") for i in range(3)]
    with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        seen = [].save()
        for _ in tracer.iter[:]:
            seen.append([layer.output for layer in gpt2.transformer.h])
    for step in range(STEPS):
        assert_same(seen[step], [expected[layer][step] for layer in range(3)])


def test_the_input_of_a_later_step_is_the_new_token(gpt2: LanguageModel) -> None:
    ids = _plain(GPT2)
    with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        seen = [].save()
        for _ in tracer.iter[1:]:
            seen.append(gpt2.transformer.wte.input)
    assert_same(torch.cat(seen, 1), ids[:, 8:-1])


def test_the_logits_of_each_step_choose_the_next_token(kind: Kind, model: LanguageModel) -> None:
    with model.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        chosen = [].save()
        for _ in tracer.iter[:]:
            chosen.append(model.lm_head.output[0][-1].argmax(dim=-1))
    assert_same(torch.stack(chosen), _plain(kind)[0, 8:])


def test_next_moves_to_the_next_step(gpt2: LanguageModel) -> None:
    expected = _hidden(GPT2, "transformer.h.2")
    with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        one = gpt2.transformer.h[-1].output.save()
        two = gpt2.transformer.h[-1].next().output.save()
        tracer.next()
        three = gpt2.transformer.h[-1].output.save()
    assert_same([one, two, three], expected[:3])


def test_loops_follow_each_other(gpt2: LanguageModel) -> None:
    expected = _hidden(GPT2, "transformer.h.1")
    with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        seen = [].save()
        for _ in tracer.iter[:2]:
            seen.append(gpt2.transformer.h[1].output)
        for _ in tracer.iter[2:]:
            seen.append(gpt2.transformer.h[1].output * 2)
    assert_same(seen, [*expected[:2], expected[2] * 2, expected[3] * 2])


def test_a_value_of_the_first_step_is_read_before_a_loop(gpt2: LanguageModel) -> None:
    first = _hidden(GPT2, "transformer.h.0")
    second = _hidden(GPT2, "transformer.h.1")
    with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        before = gpt2.transformer.h[0].output.save()
        seen = [].save()
        for _ in tracer.iter[:]:
            seen.append(gpt2.transformer.h[1].output)
    assert_same(before, first[0])
    assert_same(seen, second)


def test_a_loop_is_left_by_break(gpt2: LanguageModel) -> None:
    expected = _hidden(GPT2, "transformer.h.1")
    with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        seen = [].save()
        for step in tracer.iter[:]:
            seen.append(gpt2.transformer.h[1].output)
            if step == 1:
                break
        result = tracer.result.save()
    assert_same(seen, expected[:2])
    assert_same(result, _plain(GPT2))


def test_the_else_of_a_loop_runs_when_stepping_ends(gpt2: LanguageModel) -> None:
    with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        order = [].save()
        for step in tracer.iter[:]:
            order.append(step)
        else:
            order.append("else")
        order.append("after")
    assert order == [0, 1, 2, 3, "else", "after"]


def test_a_round_may_read_nothing(gpt2: LanguageModel) -> None:
    with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        numbers = [].save()
        for step in tracer.iter[:]:
            numbers.append(step)
    assert numbers == [0, 1, 2, 3]


def test_a_location_that_is_over_in_a_step_is_out_of_order(gpt2: LanguageModel) -> None:
    with pytest.raises(OutOfOrderError):
        with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
            for _ in tracer.iter[:]:
                late = gpt2.transformer.h[2].output
                early = gpt2.transformer.h[0].output


# the end of a generation


def test_code_after_an_open_loop_runs(kind: Kind, model: LanguageModel) -> None:
    with model.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        count = 0
        for _ in tracer.iter[:]:
            hidden = model.get(kind.layer(1)).output
            count += 1
        total = [count].save()
        last = hidden.save()
        result = tracer.result.save()
        output = model.generator.output.save()
    assert total == [STEPS]
    assert_same(last, _hidden(kind, kind.layer(1))[-1])
    assert_same(result, _plain(kind))
    assert_same(output, result)


def test_code_after_an_open_with_block_runs(gpt2: LanguageModel) -> None:
    with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        seen = [].save()
        with tracer.iter[:]:
            seen.append(gpt2.transformer.h[1].output)
        result = tracer.result.save()
    assert len(seen) == STEPS
    assert_same(result, _plain(GPT2))


@pytest.mark.usefixtures("unlinted")
def test_a_model_value_after_an_open_loop_is_refused(gpt2: LanguageModel) -> None:
    with pytest.raises(GenerationEndedError, match=str(STEPS)):
        with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
            seen = [].save()
            for _ in tracer.iter[:]:
                seen.append(gpt2.transformer.h[1].output)
            late = gpt2.transformer.h[1].output.save()
    assert len(seen) == STEPS


def test_a_bounded_loop_that_outruns_the_generation_warns_once(gpt2: LanguageModel) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
            seen = [].save()
            for _ in tracer.iter[:9]:
                seen.append(gpt2.transformer.h[1].output)
            result = tracer.result.save()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert_same(seen, _hidden(GPT2, "transformer.h.1"))
    assert_same(result, _plain(GPT2))


def test_a_step_that_does_not_come_warns_once(gpt2: LanguageModel) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
            seen = [].save()
            with tracer.iter[7]:
                seen.append(gpt2.transformer.h[1].output)
            done = [1].save()
    assert len(caught) == 1
    assert seen == []
    assert done == [1]


def test_a_bounded_loop_that_is_reached_does_not_warn(gpt2: LanguageModel) -> None:
    # warnings are errors here
    with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        seen = [].save()
        for _ in tracer.iter[:STEPS]:
            seen.append(gpt2.transformer.h[1].output)
    assert len(seen) == STEPS


def test_a_generation_that_ends_early_ends_an_open_loop(kind: Kind, model: LanguageModel) -> None:
    ids = _plain(kind)
    end = int(ids[0, 9])
    steps = ids[0, 8:].tolist().index(end) + 1
    assert steps < STEPS
    expected = _plain(kind, eos_token_id=end)
    with model.generate(LONG, max_new_tokens=STEPS, do_sample=False, eos_token_id=end) as tracer:
        seen = [].save()
        for _ in tracer.iter[:]:
            seen.append(model.get(kind.layer(1)).output)
        after = ["ran"].save()
        result = tracer.result.save()
    assert len(seen) == steps
    assert after == ["ran"]
    assert_same(result, expected)
    assert result.shape[1] == 8 + steps


# edits


@pytest.mark.parametrize("steps", [[0], [2], [1, 3], [0, 1, 2, 3]], ids=str)
def test_an_edit_of_some_steps_is_that_of_a_counting_hook(
    kind: Kind, model: LanguageModel, steps: list[int]
) -> None:
    def change(output):
        output[:] = output.flip(-1)

    hand = Hand(kind)
    expected = hand.generate(LONG, {kind.layer(1): hand.at_step(steps, change)})
    with model.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        for _ in tracer.iter[steps]:
            layer = model.get(kind.layer(1))
            layer.output[:] = layer.output.flip(-1)
        result = tracer.result.save()
    assert_same(result, expected)


def test_the_edits_make_a_difference(kind: Kind, model: LanguageModel) -> None:
    # otherwise the test above shows nothing
    with model.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        for _ in tracer.iter[:]:
            model.get(kind.layer(1)).output = model.get(kind.layer(1)).output.flip(-1)
        result = tracer.result.save()
    assert not torch.equal(result, _plain(kind))


def test_a_step_number_chooses_the_edit(gpt2: LanguageModel) -> None:
    hand = Hand(GPT2)
    after = {
        "transformer.h.0": hand.at_step([2], lambda output: output.flip(-1)),
        "lm_head": hand.keep("lm_head"),
    }
    expected = hand.generate(LONG, after)
    with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        seen = [].save()
        with tracer.iter[:] as step:
            if step == 2:
                gpt2.transformer.h[0].output = gpt2.transformer.h[0].output.flip(-1)
            seen.append(gpt2.lm_head.output)
        result = tracer.result.save()
    assert_same(seen, hand.seen["lm_head"])
    assert_same(result, expected)


def test_an_edit_outside_of_a_loop_is_one_of_the_first_step(gpt2: LanguageModel) -> None:
    hand = Hand(GPT2)
    after = {
        "transformer.h.1": hand.at_step([0], lambda output: output.flip(-1)),
        "lm_head": hand.keep("lm_head"),
    }
    expected = hand.generate(LONG, after)
    with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        gpt2.transformer.h[1].output = gpt2.transformer.h[1].output.flip(-1)
        seen = [].save()
        for _ in tracer.iter[1:]:
            seen.append(gpt2.lm_head.output)
        result = tracer.result.save()
    assert_same(seen, hand.seen["lm_head"][1:])
    assert_same(result, expected)


def test_edited_logits_choose_the_token(gpt2: LanguageModel) -> None:
    with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        for step in tracer.iter[:]:
            gpt2.output.logits[:, -1, 5 + step] = 1e6
        result = tracer.result.save()
    assert result[0, 8:].tolist() == [5, 6, 7, 8]


def test_a_value_is_carried_from_step_to_step(gpt2: LanguageModel) -> None:
    hand = Hand(GPT2)
    last = {}

    def change(output):
        previous = last.get("value")
        last["value"] = output[:, -1:].clone()
        return output if previous is None else output + previous

    expected = hand.generate(LONG, {"transformer.h.1": change})
    with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        previous = None
        for _ in tracer.iter[:]:
            current = gpt2.transformer.h[1].output[:, -1:].clone()
            if previous is not None:
                gpt2.transformer.h[1].output = gpt2.transformer.h[1].output + previous
            previous = current
        result = tracer.result.save()
    assert_same(result, expected)


# stop


def test_stop_ends_the_generation(gpt2: LanguageModel) -> None:
    calls = []
    with models.hooked(gpt2._module, {"lm_head": lambda output: calls.append(1)}):
        with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
            seen = [].save()
            for step in tracer.iter[:]:
                seen.append(gpt2.transformer.h[1].output)
                if step == 1:
                    tracer.stop()
    assert len(seen) == 2
    assert len(calls) == 1
    assert_same(seen, _hidden(GPT2, "transformer.h.1")[:2])


def test_stop_ends_a_forward(gpt2: LanguageModel) -> None:
    calls = []
    with models.hooked(gpt2._module, {"transformer.h.1": lambda output: calls.append(1)}):
        with gpt2.trace(LONG) as tracer:
            hidden = gpt2.transformer.h[0].output.save()
            after = [].save()
            tracer.stop()
            after.append("reached")
    assert calls == []
    assert after == []
    assert_same(hidden, models.output_of(GPT2, LONG, "transformer.h.0"))


def test_stop_ends_its_own_invoke_only(gpt2: LanguageModel) -> None:
    with gpt2.trace() as tracer:
        with tracer.invoke("the cat sat"):
            early = gpt2.transformer.h[0].output.save()
            tracer.stop()
            early = None
        with tracer.invoke("a red bird"):
            logits = gpt2.output.logits.save()
    assert_near(early, models.output_of(GPT2, "the cat sat", "transformer.h.0"))
    assert_near(logits, models.logits_of(GPT2, "a red bird"))


# invokes


def test_prompts_of_unequal_length_generate_what_they_do_alone(
    kind: Kind, model: LanguageModel
) -> None:
    with model.generate(max_new_tokens=STEPS, do_sample=False) as tracer:
        with tracer.invoke(SHORT):
            short = model.generator.output.save()
        with tracer.invoke(LONG):
            long = tracer.result.save()
        with tracer.invoke():
            both = tracer.result.save()
    assert_same(short[:, -STEPS:], _plain(kind, SHORT)[:, -STEPS:])
    assert_same(long, _plain(kind, LONG))
    assert_same(both, torch.cat([short, long]))


def test_each_invoke_steps_by_itself(kind: Kind, model: LanguageModel) -> None:
    path = kind.layer(1)
    with model.generate(max_new_tokens=STEPS, do_sample=False) as tracer:
        with tracer.invoke(SHORT):
            short = [].save()
            for _ in tracer.iter[1:3]:
                short.append(model.get(path).output)
        with tracer.invoke(MIDDLE):
            middle = [].save()
            with tracer.iter[:]:
                middle.append(model.get(path).output[:, -1])
        with tracer.invoke():
            everything = [].save()
            for _ in tracer.iter[:]:
                everything.append(model.get(path).output[:, -1])
    assert_near(short, _hidden(kind, path, SHORT)[1:3])
    expected = [value[:, -1] for value in _hidden(kind, path, MIDDLE)]
    assert_near(middle, expected)
    assert [value.shape[0] for value in everything] == [2] * STEPS
    assert_near([value[1:] for value in everything], expected)


def test_a_step_is_edited_in_the_rows_of_its_invoke(kind: Kind, model: LanguageModel) -> None:
    hand = Hand(kind)
    change = hand.at_step([1], lambda output: output.flip(-1))
    expected = hand.generate(SHORT, {kind.layer(1): change})
    with model.generate(max_new_tokens=STEPS, do_sample=False) as tracer:
        with tracer.invoke(LONG):
            long = tracer.result.save()
        with tracer.invoke(SHORT):
            for _ in tracer.iter[1]:
                model.get(kind.layer(1)).output = model.get(kind.layer(1)).output.flip(-1)
            short = tracer.result.save()
    assert_same(long, _plain(kind, LONG))
    assert_same(short[:, -STEPS:], expected[:, -STEPS:])


def test_a_promptless_invoke_runs_code_after_an_open_loop(gpt2: LanguageModel) -> None:
    with gpt2.generate(LONG, max_new_tokens=STEPS, do_sample=False) as tracer:
        with tracer.invoke():
            seen = [].save()
            with tracer.iter[:]:
                seen.append(gpt2.transformer.h[-1].output)
        with tracer.invoke():
            result = tracer.result.save()
    assert_same(seen, _hidden(GPT2, "transformer.h.2"))
    assert_same(result, _plain(GPT2))


def test_a_barrier_in_a_generation_shares_an_embedding(gpt2: LanguageModel) -> None:
    clean = models.output_of(GPT2, "the cat sat", "transformer.wte")
    hand = Hand(GPT2)
    expected = hand.generate(
        "a red bird", {"transformer.wte": hand.at_step([0], lambda _output: clean)}
    )
    with gpt2.generate(max_new_tokens=STEPS, do_sample=False) as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke("the cat sat"):
            embedded = gpt2.transformer.wte.output
            barrier()
            first = gpt2.generator.output.save()
        with tracer.invoke("a red bird"):
            barrier()
            gpt2.transformer.wte.output = embedded
            second = gpt2.generator.output.save()
    assert_same(first, _plain(GPT2, "the cat sat"))
    assert_same(second, expected)


def test_a_prompt_that_ends_early_still_has_rows(gpt2: LanguageModel) -> None:
    ids = _plain(GPT2, LONG)
    end = int(ids[0, 8])
    short_new = _plain(GPT2, SHORT, eos_token_id=end)[0, 2:]
    steps = len(short_new)
    assert steps > 1
    with gpt2.generate(max_new_tokens=STEPS, do_sample=False, eos_token_id=end) as tracer:
        with tracer.invoke(LONG):
            seen = [].save()
            for _ in tracer.iter[:]:
                seen.append(gpt2.transformer.h[1].output[:, -1])
            long = tracer.result.save()
        with tracer.invoke(SHORT):
            short = tracer.result.save()
    assert len(seen) == steps
    assert long[0, 8:].tolist() == [end] + [models.PAD] * (steps - 1)
    assert_same(short[0, -steps:], short_new)


# beams


def test_beams_are_rows_of_their_invoke(gpt2: LanguageModel) -> None:
    options = {"num_beams": 3}
    with gpt2.generate(max_new_tokens=STEPS, do_sample=False, **options) as tracer:
        with tracer.invoke(SHORT):
            hidden = gpt2.transformer.h[1].output.save()
            short = tracer.result.save()
        with tracer.invoke(LONG):
            logits = [].save()
            for _ in tracer.iter[:]:
                logits.append(gpt2.lm_head.output)
            long = tracer.result.save()
    expected = _hidden(GPT2, "lm_head", **options)
    assert hidden.shape[0] == 3
    assert_near(GPT2.own(hidden, SHORT), _hidden(GPT2, "transformer.h.1", SHORT, **options)[0])
    assert_near(logits, expected)
    assert_same(short[:, -STEPS:], _plain(GPT2, SHORT, **options)[:, -STEPS:])
    assert_same(long, _plain(GPT2, LONG, **options))


@pytest.mark.parametrize("how", ["keywords", "config", "of the model"])
def test_fewer_sequences_than_beams_are_rows_of_their_invoke(how: str) -> None:
    options = {"num_beams": 4, "num_return_sequences": 2, "do_sample": False}
    form = {"return_dict_in_generate": True, "output_logits": True}
    module = GPT2.new()
    model = LanguageModel(module, tokenizer=models.tokenizer())
    given: dict[str, Any] = options
    if how == "config":
        given = {"generation_config": transformers.GenerationConfig(**options)}
    elif how == "of the model":
        module.generation_config.update(**options)
        given = {}
    with model.generate(max_new_tokens=STEPS, **form, **given) as tracer:
        with tracer.invoke(SHORT):
            hidden = model.transformer.h[1].output.save()
            short = tracer.result.save()
        with tracer.invoke(LONG):
            long = model.generator.output.save()
    assert hidden.shape[0] == 4
    for output, prompt in ((short, SHORT), (long, LONG)):
        expected = bare(GPT2).generate(**encoded(prompt), max_new_tokens=STEPS, **form, **options)
        assert output.sequences.shape[0] == 2
        assert_same(output.sequences[:, -STEPS:], expected.sequences[:, -STEPS:])
        assert_near(output.sequences_scores, expected.sequences_scores)
        assert [step.shape for step in output.logits] == [step.shape for step in expected.logits]
        assert_near(output.logits[0], expected.logits[0])


def test_beams_of_a_model_are_none_of_its_traces() -> None:
    module = LLAMA.new()
    module.generation_config.num_beams = 2

    class Flat(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden.flatten(0, 1)

    # two prompts of two tokens are as many as the rows of two beams each would be
    module.flat = Flat()
    module.model.norm.register_forward_hook(
        lambda one, args, output: (module.flat(output), output)[1]
    )
    model = LanguageModel(module, tokenizer=models.tokenizer())
    with model.trace() as tracer:
        with tracer.invoke("the cat"):
            flat = model.flat.output.save()
        with tracer.invoke("a dog"):
            pass
    assert flat.shape[0] == 4
