"""A model that lies over two workers (tensor parallelism) is to programs what it is on one."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from nnsight_dsl.errors import EngineError, WriteError
from nnsight_dsl.modeling.vllm.engine.shards import Layout, layout_of

from .conftest import FACTS, ended, started
from .test_batches import PROMPTS

GREEDY = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 4}


class Mistake(Exception):
    """Raised by a block."""


def started_over_two(folder: Any) -> Any:
    """Start an engine in a process of its own, with a worker on each of two cores."""
    from vllm import envs

    changed = {"VLLM_CPU_OMP_THREADS_BIND": "0|1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    # once it has started an engine, vLLM goes by what the variables were then
    envs.disable_envs_cache()
    try:
        return started(folder, tensor_parallel_size=2)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@pytest.fixture(scope="module")
def gpt2_over_two() -> Iterator[Any]:
    model = started_over_two(FACTS)
    yield model
    ended(model)


@pytest.fixture(scope="module")
def llama_over_two(llama_folder: Any) -> Iterator[Any]:
    model = started_over_two(llama_folder)
    yield model
    ended(model)


def gpt2_reads(model):
    block = model.transformer.h[2]
    left = []
    # one activation stands in all layers of vLLM's GPT-2
    left.append(model.transformer.h[0].mlp.act.input)
    left.append(model.transformer.h[0].mlp.act.output)
    left.append(block.input)
    left.append(block.attn.c_attn.output)
    left.extend(block.attn.attn.inputs[0])
    left.append(block.attn.attn.output)
    left.append(block.attn.c_proj.input)
    left.append(block.attn.c_proj.output)
    left.append(block.mlp.c_fc.output)
    left.append(block.mlp.c_proj.input)
    left.append(block.mlp.output)
    left.append(block.output)
    return left


def llama_reads(model):
    layer = model.model.layers[1]
    left = []
    left.append(model.model.embed_tokens.output)
    left.append(layer.self_attn.qkv_proj.output)
    left.extend(layer.self_attn.attn.inputs[0])
    left.append(layer.self_attn.attn.output)
    left.append(layer.self_attn.o_proj.input)
    left.append(layer.self_attn.output)
    left.append(layer.mlp.gate_up_proj.output)
    left.append(layer.mlp.act_fn.input)
    left.append(layer.mlp.act_fn.output)
    left.append(layer.mlp.down_proj.input)
    left.append(layer.output)
    left.append(model.model.norm.output)
    return left


def gpt2_edits(model, kind):
    block = model.transformer.h[2]
    width = torch.arange(128.0) / 64
    if kind == "layer":
        block.output[:, -1] *= 3
    if kind == "projection":
        block.mlp.c_fc.output[:, :, 100:300] = 0.25
    if kind == "heads":
        block.attn.c_attn.output = block.attn.c_attn.output * torch.cat([width] * 3)
    if kind == "attention":
        block.attn.attn.output = block.attn.attn.output * width
    if kind == "query":
        query, key, value = block.attn.attn.inputs[0]
        block.attn.attn.inputs = ((query * width, key, value + width), {})
    if kind == "activation":
        model.transformer.h[0].mlp.act.output[:, :, 100:] = 0
    if kind == "row input":
        block.mlp.c_proj.input[:, 1:, ::3] *= 2
    if kind == "mlp":
        block.mlp.output = torch.zeros_like(block.mlp.output)
    if kind == "skip":
        block.skip(block.input)
    if kind == "skip of a projection":
        block.mlp.c_fc.skip(torch.linspace(-1, 1, 256).expand(1, block.input.shape[1], 256))
    if kind == "random":
        block.output[:] += torch.randn(128)


def llama_edits(model, kind):
    layer = model.model.layers[1]
    if kind == "layer":
        layer.output[:, -1] = 0.5
    if kind == "projection":
        layer.mlp.gate_up_proj.output[:, :, 20:120] *= -1
    if kind == "heads":
        layer.self_attn.qkv_proj.output[:, :, 16:112] *= 2
    if kind == "activation":
        layer.mlp.act_fn.output = layer.mlp.act_fn.output * torch.arange(96.0) / 48
    if kind == "row input":
        layer.self_attn.o_proj.input[:, :, ::2] *= 3
    if kind == "norm":
        layer.input_layernorm.output[:, -1] += 1


def read(model, reads):
    with model.trace(PROMPTS[0], temperature=0.0):
        left = reads(model).save()
        logits = model.logits.output.save()
    return [*left, logits]


def edited(model, edits, kind):
    with model.trace(PROMPTS[0], **GREEDY) as tracer:
        logits = [].save()
        for _ in tracer.iter[:]:
            edits(model, kind)
            logits.append(model.logits.output)
        tokens = tracer.result.outputs[0].token_ids.save()
    return logits, list(tokens)


def agree(one, other):
    assert one.shape == other.shape
    assert (one - other).abs().max() <= 1e-4 * max(1, other.abs().max())


def check_reads(two, one, reads):
    for value, expected in zip(read(two, reads), read(one, reads), strict=True):
        agree(value, expected)


def check_edits(two, one, edits, kind):
    logits, tokens = edited(two, edits, kind)
    expected, same = edited(one, edits, kind)
    plain, _ = edited(one, edits, "nothing")
    assert tokens == same
    for value, other in zip(logits, expected, strict=True):
        agree(value, other)
    assert (logits[0] - plain[0]).abs().max() > 1e-3


def test_gpt2_is_read_as_a_whole(gpt2_over_two, gpt2):
    check_reads(gpt2_over_two, gpt2, gpt2_reads)


@pytest.mark.parametrize(
    "kind",
    [
        "layer", "projection", "heads", "attention", "query", "activation", "row input", "mlp",
        "skip", "skip of a projection",
    ],
)  # fmt: skip
def test_gpt2_is_edited_as_a_whole(gpt2_over_two, gpt2, kind):
    check_edits(gpt2_over_two, gpt2, gpt2_edits, kind)


def test_llama_is_read_as_a_whole(llama_over_two, llama):
    check_reads(llama_over_two, llama, llama_reads)


@pytest.mark.parametrize(
    "kind", ["layer", "projection", "heads", "activation", "row input", "norm"]
)
def test_llama_is_edited_as_a_whole(llama_over_two, llama, kind):
    check_edits(llama_over_two, llama, llama_edits, kind)


def test_ranks_go_on_alike_after_a_block_has_drawn_random_numbers(gpt2_over_two):
    logits, tokens = edited(gpt2_over_two, gpt2_edits, "random")
    assert tokens == [one.argmax().item() for one in logits]
    # what is sampled is drawn by each rank: were they not alike, the next step would differ
    for _ in range(2):
        with gpt2_over_two.trace(PROMPTS[1], max_tokens=8, temperature=1.5) as tracer:
            samples = [].save()
            embedded = [].save()
            for _ in tracer.iter[:]:
                embedded.append(gpt2_over_two.transformer.wte.output[0, -1])
                samples.append(gpt2_over_two.samples.output.item())
        for token, vector in zip(samples[:-1], embedded[1:], strict=True):
            with gpt2_over_two.trace([token], temperature=0.0):
                expected = gpt2_over_two.transformer.wte.output[0, -1].save()
            agree(vector, expected)


def test_logits_and_samples_are_written_on_all_ranks(gpt2_over_two, gpt2):
    left = []
    for model in (gpt2_over_two, gpt2):
        with model.trace(PROMPTS[0], **GREEDY) as tracer:
            model.logits.output[:, 300] = 1000.0
            tracer.next()
            model.samples.output = torch.full_like(model.samples.output, 302)
            tokens = tracer.result.outputs[0].token_ids.save()
        left.append(list(tokens))
    assert left[0][:2] == [300, 302]
    assert left[0] == left[1]


def many(model, fails=None):
    left = []
    failure = None
    try:
        with model.trace(**GREEDY) as tracer:
            for number in range(12):
                with tracer.invoke(PROMPTS[number]):
                    if number == 5 and fails is not None:
                        hidden = model.transformer.h[2].mlp.c_fc.output
                        if fails == "exception":
                            raise Mistake("in the block")  # the line
                        if fails == "shape":
                            model.transformer.h[2].mlp.c_fc.output = hidden[:, :, 1:]  # the line
                        if fails == "weights":
                            hidden @ model.transformer.h[2].mlp.c_fc.weight  # the line
                        if fails == "call":
                            model.transformer.h[2].mlp(hidden)  # the line
                        while fails == "loop":  # the line
                            hidden = hidden  # the line
                    elif number != 5:
                        model.transformer.h[number % 6].mlp.c_fc.output[:, -1] *= 1.5
                        logits = model.logits.output
                        left.append((number, logits, tracer.result.outputs[0].token_ids))
    except Exception as error:
        failure = error
    return left, failure


@pytest.mark.parametrize(
    ("fails", "kind"),
    [
        ("exception", Mistake),
        ("shape", WriteError),
        ("weights", EngineError),
        ("call", EngineError),
        ("loop", EngineError),
    ],
)
def test_a_fault_leaves_no_rank_waiting(gpt2_over_two, gpt2, fails, kind, unlinted):
    gpt2_over_two.engine.collective_rpc("nnsight_dsl_set_limit", args=(2.0,))
    expected, failure = many(gpt2)
    assert failure is None
    left, failure = many(gpt2_over_two, fails)
    assert type(failure) is kind, failure
    lines = [entry.line for entry in traceback.extract_tb(failure.__traceback__)]
    assert any("# the line" in (line or "") for line in lines), lines
    assert [one[0] for one in left] == [one[0] for one in expected]
    for (_, logits, tokens), (_, other, same) in zip(left, expected, strict=True):
        assert list(tokens) == list(same)
        agree(logits, other)
    assert gpt2_over_two.engine.collective_rpc("nnsight_dsl_taps") == [0, 0]


def test_a_cache_keeps_whole_values(gpt2_over_two, gpt2):
    left = []
    for model in (gpt2_over_two, gpt2):
        with model.trace(PROMPTS[0], temperature=0.0) as tracer:
            modules = [model.transformer.h[1], model.transformer.h[2].mlp.c_fc]
            cache = tracer.cache(modules=modules, include_inputs=True)
        left.append(cache)
    for path in ("model.transformer.h.1", "model.transformer.h.2.mlp.c_fc"):
        agree(left[0][path].output, left[1][path].output)


class ColumnParallelLinear(torch.nn.Linear):
    """As far as a layout goes by it, one of vLLM's on one of two ranks."""

    tp_size = 2
    gather_output = False
    output_partition_sizes = (8,)


def test_a_module_between_projections_whose_layout_is_not_known_is_refused():
    parent = torch.nn.ModuleDict({"up": ColumnParallelLinear(4, 8), "odd": torch.nn.LayerNorm(8)})
    with pytest.raises(EngineError, match=r"a LayerNorm lies over the workers .* is not known"):
        layout_of(parent["odd"], parent, "output", None, torch.zeros(3, 8))
    alone = torch.nn.ModuleDict({"odd": torch.nn.LayerNorm(8)})
    assert layout_of(alone["odd"], alone, "output", None, torch.zeros(3, 8)) is None


def test_parts_make_up_the_whole_again():
    # queries on four ranks, keys and values of two heads that two ranks hold each
    layout = Layout(((3, 1), (2, 2), (2, 2)))
    whole = torch.arange(20).expand(5, 20)
    parts = [layout.own(whole, rank, 4) for rank in range(4)]
    assert parts[1][0].tolist() == [3, 4, 5, 12, 13, 16, 17]
    assert torch.equal(layout.joined(parts), whole)
    assert layout.width(4) == 20
