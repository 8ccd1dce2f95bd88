"""Operations inside a forward, each request its own tokens' rows."""

from __future__ import annotations

import traceback

import pytest
import torch

from nnsight_dsl.errors import EngineError, OutOfOrderError, PathError, WriteError

from .test_batches import PROMPTS

PROMPT = "The Eiffel Tower is in the city of"
GREEDY = {"temperature": 0.0, "ignore_eos": True}


def agree(one, other, within=1e-4):
    assert one.shape == other.shape
    assert (one - other).abs().max() <= within * max(1.0, other.abs().max().item())


def test_an_operation_is_read_between_modules(gpt2):
    with gpt2.trace(PROMPT):
        before = gpt2.transformer.h[2].input.save()
        attended = gpt2.transformer.h[2].attn.output.save()
        between = gpt2.transformer.h[2].source.add_0.output.save()
        summed = gpt2.transformer.h[2].ln_2.input.save()
        fed = gpt2.transformer.h[2].mlp.output.save()
        left, right = gpt2.transformer.h[2].source.add_1.inputs[0]
        left, right = left.save(), right.save()
        after = gpt2.transformer.h[2].output.save()
    agree(between, before + attended)
    assert torch.equal(between, summed)
    assert torch.equal(left, between) and torch.equal(right, fed)
    agree(after, left + right)


def test_a_call_has_the_engines_own_value(gpt2):
    with gpt2.trace(PROMPT):
        fused, bias = gpt2.transformer.h[1].attn.source.self_c_attn_0.output
        fused, is_bare = fused.save(), (bias is None).save()
        parts = gpt2.transformer.h[1].attn.source.qkv_chunk_0.output
        key = parts[1].save()
        query = gpt2.transformer.h[1].attn.source.q.output.save()
    assert is_bare
    assert torch.equal(query, fused[..., :128]) and torch.equal(key, fused[..., 128:256])


def edited(model, trace, kind, head):
    with trace:
        if kind == "output":
            model.transformer.h[2].source.add_0.output = (
                model.transformer.h[2].source.add_0.output * 2
            )
        if kind == "in place":
            model.transformer.h[2].source.add_0.output[:, -1] = 0.5
        if kind == "input" and head is of_engine:
            model.transformer.h[2].source.add_1.input *= 0.5
        if kind == "input" and head is of_transformers:
            # between the two it has that of a cross attention
            model.transformer.h[2].source.add_2.input *= 0.5
        if kind == "skip" and head is of_engine:
            model.transformer.h[2].source.add_1.skip(model.transformer.h[2].source.add_1.input)
        if kind == "skip" and head is of_transformers:
            model.transformer.h[2].source.add_2.skip(model.transformer.h[2].source.add_2.input)
        logits = head(model).save()
    return logits


def of_engine(model):
    return model.logits.output


def of_transformers(model):
    return model.lm_head.output[:, -1]


@pytest.mark.parametrize("kind", ["output", "in place", "input", "skip"])
def test_an_operation_is_changed_as_in_transformers(gpt2, hf_gpt2, kind):
    logits = edited(gpt2, gpt2.trace(PROMPT), kind, of_engine)
    agree(logits, edited(hf_gpt2, hf_gpt2.trace(PROMPT), kind, of_transformers))
    plain = edited(gpt2, gpt2.trace(PROMPT), "nothing", of_engine)
    assert (logits - plain).abs().max() > 1e-2


def served(model, cases):
    left = {}
    with model.trace(max_tokens=3, **GREEDY) as tracer:
        for number in cases:
            with tracer.invoke(PROMPTS[number]):
                own = []
                for _ in tracer.iter[:]:
                    if number % 3 == 0:
                        model.transformer.h[number % 6].source.add_0.output[:, -1] *= 2
                    if number % 3 == 1:
                        model.transformer.h[number % 6].source.add_1.skip(
                            model.transformer.h[number % 6].source.add_1.input
                        )
                    own.append(model.transformer.h[5].source.add_1.output)
                    own.append(model.logits.output)
                left[number] = own
    return left


def test_requests_beside_each_other_are_each_what_they_are_alone(gpt2):
    together = served(gpt2, range(12))
    for number in range(12):
        alone = served(gpt2, [number])[number]
        assert len(alone) == 6
        for one, other in zip(together[number], alone, strict=True):
            agree(one, other)
    assert gpt2.engine.collective_rpc("nnsight_dsl_taps") == [0]
    worker = gpt2.engine.llm_engine.model_executor.driver_worker.worker
    assert not worker._nnsight_dsl_engine._insides
    assert not any("forward" in one.__dict__ for one in worker.model_runner.get_model().modules())


def test_an_operation_named_before_the_block_travels(gpt2):
    operation = gpt2.transformer.h[2].source.add_0
    source = gpt2.transformer.h[2].source
    with gpt2.trace(PROMPT):
        first = operation.output.save()
        second = source.add_1.output.save()
        whole = gpt2.transformer.h[2].output.save()
    assert first.shape == whole.shape and torch.equal(second, whole)


def raised(gpt2, block):
    with pytest.raises(Exception) as caught:
        block()
    lines = [entry.line for entry in traceback.extract_tb(caught.value.__traceback__)]
    assert any("# the line" in (line or "") for line in lines), lines
    with gpt2.trace(PROMPT):
        logits = gpt2.logits.output.save()
    assert gpt2.tokenizer.decode(logits.argmax(-1)) == " Paris"
    return caught.value


def test_what_cannot_be_had_is_refused_at_its_line(gpt2, unlinted):
    def wrong_shape():
        with gpt2.trace(PROMPT):
            gpt2.transformer.h[2].source.add_0.output = torch.zeros(1, 2, 128)  # the line

    def no_tokens():
        with gpt2.trace(PROMPT):
            model = gpt2.transformer.source.get_pp_group_0.output.save()  # the line

    def nested():
        with gpt2.trace(PROMPT):
            inner = gpt2.transformer.source.self_embed_input_ids_0.source.self_wte_0
            hidden = inner.output.save()  # the line

    def too_late():
        with gpt2.trace(PROMPT):
            gpt2.transformer.h[1].mlp.output.save()
            hidden = gpt2.transformer.h[1].source.add_0.output.save()  # the line

    assert type(raised(gpt2, wrong_shape)) is WriteError
    assert isinstance(error := raised(gpt2, no_tokens), EngineError) and "first axis" in str(error)
    assert isinstance(error := raised(gpt2, nested), EngineError) and "calls" in str(error)
    assert type(raised(gpt2, too_late)) is OutOfOrderError
    with pytest.raises(PathError, match="no operation 'add_7'"):
        with gpt2.trace(PROMPT):
            gpt2.transformer.h[2].source.add_7.output.save()


def test_a_block_can_catch_what_an_operation_cannot_give(gpt2, unlinted):
    with gpt2.trace(PROMPT):
        names = [].save()
        try:
            model = gpt2.transformer.source.get_pp_group_0.output
        except EngineError as error:
            names.append(type(error).__name__)
    assert names == ["EngineError"]


def test_a_write_to_what_all_requests_share_is_refused(gpt2):
    with pytest.raises(WriteError, match="all requests share"):
        with gpt2.trace(PROMPT):
            weight = gpt2.transformer.wpe.source.F_embedding_0.inputs[0][1]
            weight[:] = 0
    with gpt2.trace(PROMPT):
        logits = gpt2.logits.output.save()
    assert gpt2.tokenizer.decode(logits.argmax(-1)) == " Paris"
