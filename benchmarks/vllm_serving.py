"""What does a program in every request cost an engine of vLLM?

    python -m benchmarks --only vllm

In one process, for prompts of 16 new tokens each:

* the bare engine; and with our worker, with no program in any request;
* hooks written by hand that keep the last token of one layer, of each request in each step; and
  programs that do;
* hooks written by hand that add a vector to it; and programs that do.

A pair is served in turn, many times, one first and then the other first. What counts is the median
of the ratios of the two times in a turn: what slows the machine for longer than a turn slows both.

The workload with the targets is 32 prompts for a GPT-2 of 124M shape, with random weights: a small
one among those that are served. Beside it stand 64 prompts for the GPT-2 of a million parameters
that the examples come with, where a step takes as long as a kernel's launch, to show the price of a
program by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
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

SMALL = Path(__file__).resolve().parents[1] / "examples" / "models" / "city-facts"
OPTIONS = {"temperature": 0.0, "max_tokens": 16, "ignore_eos": True}
LAYER = 3
IDLE, AT_WORK = 0.99, 0.95
"""Parts of the other's requests in a second that are to be reached."""


def rows(*, quick: bool = False) -> list[Row]:
    """Measure; return a row for each comparison, with the time of the one over the other's."""
    found = _workload("1M, no targets", SMALL, 64, 5 if quick else 30, has_targets=False)
    if not quick:
        with TemporaryDirectory() as folder:
            found = [*_workload("124M", _gpt2_124m(Path(folder)), 32, 7), *found]
    return found


def _gpt2_124m(folder: Path) -> Path:
    """Make a GPT-2 of 124M shape with random weights and the small one's words."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    AutoTokenizer.from_pretrained(SMALL).save_pretrained(folder)
    return folder


def _workload(
    name: str, folder: Path, count: int, turns: int, *, has_targets: bool = True
) -> list[Row]:
    """Serve one model.

    Args:
        name: of the workload, in the table.
        folder: where the model is.
        count: how many prompts there are.
        turns: how often each side serves; idle twice as often.
        has_targets: whether it is here that the targets are to be reached.
    """
    import torch
    from vllm import SamplingParams

    from nnsight_dsl.modeling.vllm import VLLM

    prompts = [f"The Eiffel Tower number {number} is in the city of" for number in range(count)]
    # the prefix cache would serve a later turn
    model = VLLM(str(folder), dtype="float32", enable_prefix_caching=False,
                 max_model_len=64, max_num_batched_tokens=4096, dispatch=True)  # fmt: skip
    runner = model.engine.llm_engine.model_executor.driver_worker.worker.model_runner
    methods = "execute_model", "_model_forward", "_sample"
    layer = runner.get_model().transformer.h[LAYER]
    direction = torch.linspace(-0.1, 0.1, model.transformer.h[0].ln_1.weight.shape[0])

    def plain() -> None:
        model.engine.generate(prompts, SamplingParams(**OPTIONS), use_tqdm=False)

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
            for prompt in prompts:
                with tracer.invoke(prompt):
                    kept = [].save()
                    for _ in tracer.iter[:]:
                        kept.append(model.transformer.h[LAYER].output[:, -1])

    def steer() -> None:
        with model.trace(**OPTIONS) as tracer:
            for prompt in prompts:
                with tracer.invoke(prompt):
                    for _ in tracer.iter[:]:
                        model.transformer.h[LAYER].output[:, -1] += direction

    case = f"an engine of vLLM: {count} requests of {OPTIONS['max_tokens']} tokens, GPT-2 of {name}"
    idle, at_work = (IDLE, AT_WORK) if has_targets else (None, None)
    return [
        _compared(case, "our worker, no program", plain, "bare engine", bare, idle, 2 * turns),
        _compared(case, "programs that capture", capture, "hook", hook_capture, at_work, turns),
        _compared(case, "programs that steer", steer, "hook", hook_steer, at_work, turns),
    ]


def _compared(
    case: str,
    name: str,
    ours: Callable[[], None],
    other_name: str,
    other: Callable[[], None],
    target: float | None,
    turns: int,
) -> Row:
    """Serve in turns.

    Args:
        case: the workload.
        name: what is compared.
        ours: serves the workload.
        other_name: what it is compared with.
        other: serves the same.
        target: part of the other's requests in a second that is to be reached, None for none.
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
    targets = [] if target is None else [Target(ratio, round(1 / target, 3))]
    return Row(case, name, figures, "ms", targets)
