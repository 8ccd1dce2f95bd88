"""What does a program in every request cost an engine of vLLM?

    python benchmarks/vllm_serving.py [path of a model]

One workload, 64 prompts of 16 new tokens each, in one run: by the bare engine; with our worker and
no program; with the last token of one layer read in every step of every request; with one layer
steered; and with hooks written by hand that do the same for the whole batch. Each is served in
turn, five times, and the best time counts; what is told is requests in a second, and the ratio.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

MODEL = Path(__file__).resolve().parents[1] / "examples" / "models" / "city-facts"
PROMPTS = [f"The Eiffel Tower number {number} is in the city of" for number in range(64)]
OPTIONS = {"temperature": 0.0, "max_tokens": 16, "ignore_eos": True}
LAYER = 3
ROUNDS = 5


def main(path: str) -> None:
    import torch
    from vllm import SamplingParams

    from nnsight_dsl.modeling.vllm import VLLM

    # salts keep the prefix cache from serving a later round
    model = VLLM(path, dtype="float32", enable_prefix_caching=False, max_model_len=64,
                 max_num_batched_tokens=4096, dispatch=True)  # fmt: skip
    runner = model.engine.llm_engine.model_executor.driver_worker.worker.model_runner
    methods = "execute_model", "_model_forward", "_sample"
    wrapped = {name: runner.__dict__[name] for name in methods}
    layer = runner.get_model().transformer.h[LAYER]
    direction = torch.linspace(-0.1, 0.1, model.transformer.h[0].ln_1.weight.shape[0])

    def plain() -> None:
        model.engine.generate(PROMPTS, SamplingParams(**OPTIONS), use_tqdm=False)

    def bare() -> None:
        for name in methods:
            del runner.__dict__[name]
        try:
            plain()
        finally:
            runner.__dict__.update(wrapped)

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

    cases = {
        "bare engine": (bare, None),
        "our worker, no program": (plain, "bare engine"),
        "hook that captures": (hook_capture, None),
        "programs that capture": (capture, "hook that captures"),
        "hook that steers": (hook_steer, None),
        "programs that steer": (steer, "hook that steers"),
    }
    best = dict.fromkeys(cases, float("inf"))
    for _ in range(ROUNDS):
        for name, (serve, _other) in cases.items():
            begin = time.perf_counter()
            serve()
            best[name] = min(best[name], time.perf_counter() - begin)
    print(f"torch {torch.__version__}, {len(PROMPTS)} requests of {OPTIONS['max_tokens']} tokens")
    for name, (_serve, other) in cases.items():
        ratio = "" if other is None else f"{best[other] / best[name]:6.3f} of {other!r}"
        print(f"{name:24} {len(PROMPTS) / best[name]:8.1f} requests/s  {ratio}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(MODEL))
