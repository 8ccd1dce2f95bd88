"""What does a program in every request cost an engine of vLLM?

    python benchmarks/vllm_serving.py [--quick] [path of a model]

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
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison.

    Attributes:
        name: what is compared.
        value: requests in a second of ours, as a part of those of the other.
        target: what it is to reach.
        details: both in requests per second.
    """

    name: str
    value: float
    target: float
    details: str

    @property
    def is_met(self) -> bool:
        """Whether the target is reached."""
        return self.value >= self.target


def rows(quick: bool = False, path: str | None = None) -> list[Row]:
    """Measure; return a row for each comparison."""
    import torch
    from vllm import SamplingParams

    from nnsight_dsl.modeling.vllm import VLLM

    # the prefix cache would serve a later turn
    model = VLLM(path or str(MODEL), dtype="float32", enable_prefix_caching=False,
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
        _compared("our worker, no program, beside the bare engine", plain, bare, 0.99, 2 * turns),
        _compared("programs that capture, beside a hook", capture, hook_capture, 0.95, turns),
        _compared("programs that steer, beside a hook", steer, hook_steer, 0.95, turns),
    ]


def _compared(
    name: str, ours: Callable[[], None], other: Callable[[], None], target: float, turns: int
) -> Row:
    ratios = []
    times: dict[Callable[[], None], list[float]] = {ours: [], other: []}
    ours()
    other()
    for turn in range(turns):
        for serve in (ours, other) if turn % 2 else (other, ours):
            begin = time.perf_counter()
            serve()
            times[serve].append(time.perf_counter() - begin)
        ratios.append(times[other][-1] / times[ours][-1])
    ours_rate, other_rate = (len(PROMPTS) / statistics.median(times[one]) for one in (ours, other))
    details = f"{ours_rate:.1f} of {other_rate:.1f} requests/s, {turns} turns"
    return Row(name, statistics.median(ratios), target, details)


def main() -> None:
    """Print the comparisons, and whether each reaches its target."""
    import torch
    import vllm

    arguments = [argument for argument in sys.argv[1:] if argument != "--quick"]
    found = rows("--quick" in sys.argv[1:], *arguments[:1])
    print(f"vllm {vllm.__version__}, torch {torch.__version__}, {os.cpu_count()} cores; "
          f"{len(PROMPTS)} requests of {OPTIONS['max_tokens']} tokens")  # fmt: skip
    for row in found:
        word = "met" if row.is_met else "missed"
        print(f"{row.name:48} {row.value:6.3f}  target {row.target:.2f}: {word} ({row.details})")


if __name__ == "__main__":
    main()
