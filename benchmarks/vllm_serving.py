"""What does a program in every request cost an engine of vLLM?

    python -m benchmarks --only vllm

One workload, 64 prompts of 16 new tokens each, in one process:

* the bare engine; and with our worker, with no program in any request;
* hooks written by hand that keep the last token of one layer, of each request in each step; and
  programs that do;
* hooks written by hand that add a vector to it; and programs that do.

A pair is served in turn, many times, one first and then the other first. What counts is the median
of the ratios of the two times in a turn: what slows the machine for longer than a turn slows both.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .parts import once
from .results import Row, Target, median_figure

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# With one thread: others wait for each other wherever another process takes one of their cores,
# for so long that nothing else shows.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

MODEL = Path(__file__).resolve().parents[1] / "examples" / "models" / "city-facts"
PROMPTS = [f"The Eiffel Tower number {number} is in the city of" for number in range(64)]
OPTIONS = {"temperature": 0.0, "max_tokens": 16, "ignore_eos": True}
LAYER = 3


def rows(*, quick: bool = False) -> list[Row]:
    """Measure; return a row for each comparison, with the time of the one over the other's."""
    import torch
    from vllm import SamplingParams

    from nnsight_dsl.modeling.vllm import VLLM

    # the prefix cache would serve a later turn
    model = VLLM(str(MODEL), dtype="float32", enable_prefix_caching=False,
                 max_model_len=64, max_num_batched_tokens=4096, dispatch=True)  # fmt: skip
    runner = model.engine.llm_engine.model_executor.driver_worker.worker.model_runner
    methods = "execute_model", "_model_forward", "_sample"
    layer = runner.get_model().transformer.h[LAYER]
    direction = torch.linspace(-0.1, 0.1, model.transformer.h[0].ln_1.weight.shape[0])

    def plain() -> None:
        model.engine.generate(PROMPTS, SamplingParams(**OPTIONS), use_tqdm=False)

    def bare() -> None:
        ours = {name: runner.__dict__.pop(name) for name in methods if name in runner.__dict__}
        try:
            plain()
        finally:
            runner.__dict__.update(ours)

    def hooked(hook: Callable[..., Any]) -> None:
        handle = layer.register_forward_hook(hook)
        try:
            bare()
        finally:
            handle.remove()

    def ends() -> torch.Tensor:
        count = runner.input_batch.num_reqs
        return torch.as_tensor(runner.query_start_loc.np[1 : count + 1] - 1)

    def hook_capture() -> None:
        kept: list[torch.Tensor] = []
        hooked(lambda _module, _args, output: kept.append(output[ends()].clone()))

    def hook_steer() -> None:
        def steer(_module: Any, _args: Any, output: torch.Tensor) -> None:
            output[ends()] += direction

        hooked(steer)

    def capture() -> None:
        with model.trace(**OPTIONS) as tracer:
            for prompt in PROMPTS:
                with tracer.invoke(prompt):
                    kept = [].save()
                    for _ in tracer.iter[:]:
                        kept.append(model.transformer.h[LAYER].output[:, -1])

    def steer() -> None:
        with model.trace(**OPTIONS) as tracer:
            for prompt in PROMPTS:
                with tracer.invoke(prompt):
                    for _ in tracer.iter[:]:
                        model.transformer.h[LAYER].output[:, -1] += direction

    turns = 5 if quick else 30
    return [
        _compared("our worker, no program", plain, "bare engine", bare, 0.99, 2 * turns),
        _compared("programs that capture", capture, "hook", hook_capture, 0.95, turns),
        _compared("programs that steer", steer, "hook", hook_steer, 0.95, turns),
    ]


def _compared(
    name: str,
    ours: Callable[[], None],
    other_name: str,
    other: Callable[[], None],
    target: float,
    turns: int,
) -> Row:
    """Serve in turns.

    Args:
        name: what is compared.
        ours: serves the workload.
        other_name: what it is compared with.
        other: serves the same.
        target: part of the other's requests in a second that is to be reached.
        turns: how often each serves.
    """
    ratios: list[float] = []
    times: dict[Callable[[], None], list[float]] = {ours: [], other: []}
    ours()
    other()
    for turn in range(turns):
        for serve in (ours, other) if turn % 2 else (other, ours):
            times[serve].append(once(serve) / 1_000)
        ratios.append(times[ours][-1] / times[other][-1])
    ratio = f"ours / {other_name}"
    figures = {
        "ours": median_figure(times[ours]),
        other_name: median_figure(times[other]),
        ratio: median_figure(ratios),
    }
    workload = f"{len(PROMPTS)} requests of {OPTIONS['max_tokens']} tokens"
    return Row(f"vLLM: {workload}", name, figures, "ms", [Target(ratio, round(1 / target, 3))])
