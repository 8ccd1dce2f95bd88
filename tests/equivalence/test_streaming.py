"""The tokens of a generation step by step, and its result replaced."""

import warnings

import pytest
import torch
from transformers.generation.streamers import BaseStreamer

from nnsight_dsl import (
    GenerationEndedError,
    LanguageModel,
    NotCalledError,
    NotRunningError,
    WriteError,
)
from tests import models
from tests.models import GPT2, LONG, SHORT, assert_same, bare, encoded

NEW = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}


class Recorded(BaseStreamer):
    """What transformers itself hands to a streamer."""

    def __init__(self) -> None:
        self.values: list = []
        self.has_ended = False

    def put(self, value) -> None:
        self.values.append(value.clone())

    def end(self) -> None:
        self.has_ended = True


@pytest.fixture
def model() -> LanguageModel:
    return LanguageModel(bare(GPT2), tokenizer=models.tokenizer())


@pytest.fixture
def by_hand() -> list:
    streamer = Recorded()
    bare(GPT2).generate(**encoded(SHORT), streamer=streamer, **NEW)
    return streamer.values


def assert_all_same(found, expected) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


def test_a_loop_has_the_prompt_and_each_token(model, by_hand) -> None:
    with model.generate(SHORT, **NEW) as tracer:
        found = [].save()
        for _ in tracer.iter[:]:
            found.append(model.generator.streamer.output)
        ids = tracer.result.save()
    assert [one.shape for one in found] == [(1, 2), (1,), (1,), (1,)]
    assert_all_same(found, by_hand)
    assert_same(torch.cat([found[0][0], *found[1:]]), ids[0])


def test_bounded_loops_have_their_steps(model, by_hand) -> None:
    for key in (slice(0, 3), 3, [1, 3]):
        expected = by_hand[key] if isinstance(key, slice) else [by_hand[k] for k in [1, 3]]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with model.generate(SHORT, **NEW) as tracer:
                found = [].save()
                for _ in tracer.iter[key]:
                    found.append(model.generator.streamer.output)
        assert_all_same(found, expected if key != 3 else by_hand[3:])


def test_a_loop_beyond_the_last_token_warns(model, by_hand) -> None:
    with pytest.warns(UserWarning, match="step 4"):
        with model.generate(SHORT, **NEW) as tracer:
            found = [].save()
            for _ in tracer.iter[:6]:
                found.append(model.generator.streamer.output)
    assert_all_same(found, by_hand)


def test_the_last_round_ends_where_it_asks_for_a_forward(model, by_hand) -> None:
    with model.generate(SHORT, **NEW) as tracer:
        tokens, chosen = [].save(), [].save()
        for _ in tracer.iter[:]:
            tokens.append(model.generator.streamer.output)
            chosen.append(model.lm_head.output[:, -1].argmax(-1))
        after = tracer.result.save()
    assert_all_same(tokens, by_hand)
    # the token of a step is the one that the step before has chosen
    assert_all_same(chosen, by_hand[1:])
    assert after.shape == (1, 5)
    with pytest.warns(UserWarning, match=r"lm_head.output in step 3 \(from 0\)"):
        with model.generate(SHORT, **NEW) as tracer:
            for _ in tracer.iter[:4]:
                model.generator.streamer.output
                model.lm_head.output


def test_a_block_that_names_no_streamer_has_no_further_round(model) -> None:
    with model.generate(SHORT, **NEW) as tracer:
        with tracer.invoke():
            tokens = [].save()
            for _ in tracer.iter[:]:
                tokens.append(model.generator.streamer.output)
        with tracer.invoke():
            rounds = [].save()
            for step in tracer.iter[:]:
                rounds.append(step)
    assert len(tokens) == 4
    assert rounds == [0, 1, 2]


def test_it_can_be_read_later_in_its_step_and_without_a_loop(model, by_hand) -> None:
    with model.generate(SHORT, **NEW) as tracer:
        model.lm_head.output
        prompt = model.generator.streamer.output.save()
        model.lm_head.next().output
        second = model.generator.streamer.output.save()
        tracer.next().next()
        last = model.generator.streamer.output.save()
    assert_all_same([prompt, second, last], [by_hand[0], by_hand[1], by_hand[3]])


def test_a_helper_reads_it(model, by_hand) -> None:
    def helper(streamer):
        return [streamer.output]

    with model.generate(SHORT, **NEW):
        found = helper(model.generator.streamer).save()
    assert_all_same(found, by_hand[:1])


def test_invokes_have_their_rows(model) -> None:
    streamer = Recorded()
    both = models.tokenizer()([SHORT, LONG], padding=True, padding_side="left", return_tensors="pt")
    bare(GPT2).generate(**both, streamer=streamer, **NEW)
    with model.generate(**NEW) as tracer:
        with tracer.invoke(SHORT):
            first = [].save()
            for _ in tracer.iter[:]:
                first.append(model.generator.streamer.output)
        with tracer.invoke(LONG):
            second = [].save()
            for _ in tracer.iter[:]:
                second.append(model.generator.streamer.output)
        with tracer.invoke():
            whole = [].save()
            for _ in tracer.iter[:]:
                whole.append(model.generator.streamer.output)
    assert_all_same(whole, streamer.values)
    assert_all_same(first, [one[:1] for one in streamer.values])
    assert_all_same(second, [one[1:] for one in streamer.values])


def test_several_sequences_have_a_row_each(model) -> None:
    torch.manual_seed(1)
    with model.generate(num_return_sequences=2, **{**NEW, "do_sample": True}) as tracer:
        with tracer.invoke(SHORT):
            first = [].save()
            for _ in tracer.iter[:]:
                first.append(model.generator.streamer.output)
            result = tracer.result.save()
        with tracer.invoke(SHORT):
            model.lm_head.output
    assert [one.shape for one in first] == [(2, 2), (2,), (2,), (2,)]
    assert_same(torch.cat([first[0], *(one[:, None] for one in first[1:])], 1), result)


def test_the_users_own_streamer_is_handed_all_of_it(model, by_hand) -> None:
    for reads in (True, False):
        streamer = Recorded()
        with model.generate(SHORT, streamer=streamer, **NEW) as tracer:
            if reads:
                model.generator.streamer.output
            tracer.result.save()
        assert_all_same(streamer.values, by_hand)
        assert streamer.has_ended


def test_an_edit_of_the_copy_leaves_the_generation_alone(model) -> None:
    with model.generate(SHORT, **NEW) as tracer:
        ids = tracer.result.save()
    with model.generate(SHORT, **NEW) as tracer:
        prompt = model.generator.streamer.output
        prompt.zero_()
        again = tracer.result.save()
    assert_same(again, ids)


def test_it_cannot_be_written(model) -> None:
    with pytest.raises(WriteError, match=r"write the logits"):
        with model.generate(SHORT, **NEW):
            model.generator.streamer.output = torch.zeros(1, 2)
    with pytest.raises(WriteError, match=r"write the logits"):
        with model.generate(SHORT, **NEW):
            model.generator.streamer.output[:] = 0


def test_where_there_are_no_tokens_it_says_so(model) -> None:
    with pytest.raises(NotRunningError, match=r"generator\.streamer\.output"):
        model.generator.streamer.output
    with pytest.raises(NotCalledError, match=r"in 'with model.generate"):
        with model.trace(SHORT):
            model.generator.streamer.output
    with pytest.raises(GenerationEndedError, match="step 4"):
        with model.generate(SHORT, **NEW) as tracer:
            tracer.next().next().next().next()
            model.generator.streamer.output
    with pytest.raises(ValueError, match="beam"):
        with model.generate(SHORT, num_beams=2, **NEW):
            model.generator.streamer.output


# the result, replaced


def test_a_written_result_is_returned(model) -> None:
    with model.generate(SHORT, **NEW) as tracer:
        old = model.generator.output.save()
        model.generator.output = old * 0 + 7
        new = model.generator.output.save()
        result = tracer.result.save()
    assert old.shape == (1, 5)
    assert not (old == 7).any()
    assert_same(new, torch.full((1, 5), 7))
    assert_same(result, new)


def test_an_edit_replaces_the_result_of_a_run_without_a_block(model) -> None:
    with model.edit() as edited:
        edited.generator.output = torch.full((1, 5), 7)
    assert_same(edited.generate(SHORT, trace=False, **NEW), torch.full((1, 5), 7))


def test_an_invoke_replaces_its_rows(model) -> None:
    with model.generate(**NEW) as tracer:
        with tracer.invoke(SHORT):
            model.generator.output = torch.zeros_like(model.generator.output)
        with tracer.invoke(LONG):
            second = tracer.result.save()
        with tracer.invoke():
            whole = tracer.result.save()
    assert not whole[:1].any()
    assert second.any()
    assert_same(whole[1:], second)


def test_a_write_that_does_not_fit_is_refused(model) -> None:
    with pytest.raises(WriteError, match="make it fit"):
        with model.generate(**NEW) as tracer:
            with tracer.invoke(SHORT):
                model.generator.output = torch.zeros(1, 2)
            with tracer.invoke(LONG):
                tracer.result.save()
    with pytest.raises(WriteError, match="write one like it"):
        with model.generate(**NEW) as tracer:
            with tracer.invoke(SHORT):
                tracer.result.save()
            with tracer.invoke(LONG):
                tracer.result.save()
            with tracer.invoke():
                model.generator.output = torch.zeros(1, 2)
    with pytest.raises(WriteError, match="can be read, not written"):
        with model.generate(SHORT, **NEW) as tracer:
            tracer.result = 1
