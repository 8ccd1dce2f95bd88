"""What only a GPU shows: waits for it, compiled generations, memory, asserts on the device."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nnsight_dsl import LanguageModel, NNsight, save
from tests import models
from tests.models import GPT2, LLAMA, LONG, SHORT, Kind, assert_same, encoded, hooked, recorded

CUDA = torch.device("cuda")
DECODERS = pytest.mark.parametrize("kind", [GPT2, LLAMA], ids=lambda kind: kind.name)


def _on_gpu(kind: Kind, dtype: torch.dtype = torch.float32) -> Any:
    return kind.new().to(CUDA, dtype)


def _wrapped(kind: Kind, dtype: torch.dtype = torch.float32) -> LanguageModel:
    return LanguageModel(_on_gpu(kind, dtype), tokenizer=models.tokenizer())


def _prompt(prompt: str) -> dict[str, torch.Tensor]:
    return {key: value.to(CUDA) for key, value in encoded(prompt).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@DECODERS
def test_a_read_and_a_write_are_what_hooks_do(kind: Kind, dtype: torch.dtype) -> None:
    model, bare = _wrapped(kind, dtype), _on_gpu(kind, dtype)
    first, second = model.get(kind.layer(0)), model.get(kind.layer(1))
    with model.trace(LONG):
        seen = first.output.clone().save()
        first.output[:, -1] *= 2
        after = second.output.save()
        logits = model.output.logits.save()

    def doubled(output: Any) -> Any:
        values = output[0] if isinstance(output, tuple) else output
        values[:, -1] *= 2
        return output

    with recorded(bare, [kind.layer(0)]) as plain:
        bare(**_prompt(LONG))
    with hooked(bare, {kind.layer(0): doubled}), recorded(bare, [kind.layer(1)]) as changed:
        expected = bare(**_prompt(LONG)).logits
    assert_same(seen, plain[kind.layer(0)][0])
    assert_same(after, changed[kind.layer(1)][0])
    assert_same(logits, expected)
    assert logits.device.type == "cuda"


@DECODERS
def test_a_gradient_is_autograds(kind: Kind) -> None:
    model, bare = _wrapped(kind), _on_gpu(kind)
    with model.trace(LONG):
        hidden = model.get(kind.layer(1)).output
        loss = model.output.logits[:, -1].sum()
        with loss.backward():
            gradient = hidden.grad.save()
    with recorded(bare, [kind.layer(1)]) as plain:
        total = bare(**_prompt(LONG)).logits[:, -1].sum()
    (expected,) = torch.autograd.grad(total, plain[kind.layer(1)][0])
    torch.testing.assert_close(gradient, expected)


@DECODERS
def test_each_row_of_a_padded_batch_is_as_alone(kind: Kind) -> None:
    model, bare = _wrapped(kind), _on_gpu(kind)
    with model.trace() as tracer:
        with tracer.invoke(SHORT):
            short = model.output.logits.save()
        with tracer.invoke(LONG):
            long = model.output.logits.save()
    for prompt, logits in ((SHORT, short), (LONG, long)):
        expected = bare(**_prompt(prompt)).logits
        torch.testing.assert_close(kind.own(logits, prompt), expected, rtol=1e-3, atol=1e-3)


# synchronisation


def _waits(run: Any) -> int:
    """Count the operations for which the CPU waits for the GPU."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(one.message) for one in caught)


def test_a_run_waits_for_the_gpu_no_more_often_than_the_model() -> None:
    model, bare = _wrapped(GPT2), _on_gpu(GPT2)
    ids = _prompt(LONG)["input_ids"]

    def traced() -> None:
        with model.trace(ids):
            model.transformer.h[0].output[:, -1] = 0
            model.transformer.h[1].output.save()
            model.output.logits.save()

    def plain() -> None:
        bare(input_ids=ids)

    for run in (traced, plain):
        run()
    assert _waits(traced) == _waits(plain)


def test_a_run_of_any_module_never_waits() -> None:
    model = NNsight(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).to(CUDA))
    x = torch.ones(2, 4, device=CUDA)

    def traced() -> None:
        with model.trace(x):
            model[0].output = model[0].output * 2
            model[1].output[0] = 0
            model[2].output.save()

    traced()
    assert _waits(traced) == 0


# compiled models


@pytest.mark.filterwarnings("ignore")
def test_a_generation_that_transformers_compiles_is_seen_at_each_step() -> None:
    model, bare = _wrapped(LLAMA), _on_gpu(LLAMA)
    greedy: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    bare_ids = bare.generate(**_prompt(LONG), **greedy)
    # the plain call compiles, and leaves behind what it compiled
    model._module.generate(**_prompt(LONG), cache_implementation="static", **greedy)
    with model.generate(LONG, cache_implementation="static", **greedy) as tracer:
        seen = [].save()
        for _ in tracer.iter[:]:
            seen.append(model.model.layers[1].output)
        plain_ids = tracer.result.save()
    with recorded(bare, ["model.layers.1"]) as expected:
        bare.generate(**_prompt(LONG), **greedy)
    assert_same(plain_ids, bare_ids)
    assert len(seen) == len(expected["model.layers.1"]) == 5
    for one, other in zip(seen, expected["model.layers.1"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)

    with model.generate(LONG, cache_implementation="static", **greedy) as tracer:
        for _ in tracer.iter[:]:
            model.model.layers[1].output[:] = -model.model.layers[1].output
        edited_ids = tracer.result.save()
    with hooked(bare, {"model.layers.1": lambda output: -output}):
        expected_ids = bare.generate(**_prompt(LONG), **greedy)
    assert_same(edited_ids, expected_ids)
    assert not torch.equal(edited_ids, plain_ids)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_module_gives_the_values_of_the_plain_one() -> None:
    bare = _on_gpu(GPT2)
    model = NNsight(torch.compile(_on_gpu(GPT2)))
    ids = _prompt(LONG)["input_ids"]
    model._module(input_ids=ids)
    for _ in range(2):
        with model.trace(input_ids=ids):
            model.transformer.h[1].output[:, -1] = 0
            logits = model.output.logits.save()

    def zeroed(output: Any) -> Any:
        values = output[0] if isinstance(output, tuple) else output
        values[:, -1] = 0
        return output

    with hooked(bare, {"transformer.h.1": zeroed}):
        expected = bare(input_ids=ids).logits
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


# memory


def test_values_of_a_run_are_freed_when_it_is_left() -> None:
    model = _wrapped(LLAMA)

    def traced() -> None:
        with model.trace([LONG] * 8):
            hidden = model.model.layers[0].output * 2
            model.model.layers[1].output[:] = hidden
            model.model.layers[2].self_attn.source.self_q_proj_0.output.sum().item().save()

    traced()
    gc.collect()
    gc.disable()
    try:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        for _ in range(3):
            traced()
        assert torch.cuda.memory_allocated() == before
    finally:
        gc.enable()


def test_a_scan_allocates_nothing_on_the_gpu() -> None:
    model = _wrapped(GPT2)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with model.scan([LONG] * 64):
        shape = model.output.logits.shape
    assert shape == (64, len(LONG.split()), len(models.WORDS))
    assert torch.cuda.max_memory_allocated() - before < 1 << 20


def test_a_cache_may_be_kept_on_the_cpu() -> None:
    model = _wrapped(GPT2)
    with model.trace(LONG) as tracer:
        cache = tracer.cache(modules=[model.transformer.h[0]], device=torch.device("cpu")).save()
        seen = model.transformer.h[0].output.save()
    kept = cache["transformer.h.0"].output
    assert kept.device.type == "cpu"
    assert_same(kept, seen.cpu())


# placement and modes


def test_a_model_is_loaded_onto_the_gpu(tmp_path: Path) -> None:
    GPT2.new().save_pretrained(tmp_path)
    models.tokenizer().save_pretrained(tmp_path)
    model = LanguageModel(str(tmp_path), device_map="cuda")
    with model.trace(LONG):
        logits = model.output.logits.save()
    torch.testing.assert_close(logits, _on_gpu(GPT2)(**_prompt(LONG)).logits)


def test_weights_that_are_kept_on_the_cpu_run_on_the_gpu() -> None:
    module = accelerate.cpu_offload(GPT2.new(), execution_device=CUDA)
    model = LanguageModel(module, tokenizer=models.tokenizer())
    with model.trace(LONG):
        hidden = model.transformer.h[1].output.save()
    with recorded(_bare := _on_gpu(GPT2), ["transformer.h.1"]) as seen:
        _bare(**_prompt(LONG))
    torch.testing.assert_close(hidden, seen["transformer.h.1"][0])


def test_autocast_and_a_chosen_kernel_hold_in_the_model() -> None:
    model, bare = _wrapped(LLAMA, torch.bfloat16), _on_gpu(LLAMA, torch.bfloat16)
    with sdpa_kernel(SDPBackend.MATH), model.trace(LONG):
        chosen = model.output.logits.save()
    with sdpa_kernel(SDPBackend.MATH):
        assert_same(chosen, bare(**_prompt(LONG)).logits)
    model, bare = _wrapped(GPT2), _on_gpu(GPT2)
    with torch.autocast("cuda", torch.bfloat16), model.trace(LONG):
        cast = model.transformer.h[0].mlp.c_fc.output.save()
    with torch.autocast("cuda", torch.bfloat16):
        with recorded(bare, ["transformer.h.0.mlp.c_fc"]) as seen:
            bare(**_prompt(LONG))
    assert cast.dtype == torch.bfloat16
    assert_same(cast, seen["transformer.h.0.mlp.c_fc"][0])


def test_streams_are_the_callers() -> None:
    model = NNsight(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(CUDA))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), model.trace(torch.ones(1, 4, device=CUDA)):
        model[0].output.save()
        inside = save(torch.cuda.current_stream())
    assert inside == stream
    assert torch.cuda.current_stream() != stream


# ids out of range


def test_an_assert_on_the_device_is_explained() -> None:
    program = """
        import torch
        from nnsight_dsl import LanguageModel
        from tests.models import GPT2, tokenizer

        model = LanguageModel(GPT2.new().cuda(), tokenizer=tokenizer())
        try:
            with model.trace(torch.full((1, 4), 60000, device="cuda")):
                logits = model.output.logits.cpu().save()
        except RuntimeError as error:
            print(type(error).__name__, *error.__notes__)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "an index was out of range on the GPU" in done.stdout, done.stdout + done.stderr
    checked = _wrapped(GPT2)
    with pytest.raises(ValueError, match="60000"), checked.trace(torch.full((1, 4), 60000)):
        checked.output.logits.save()
