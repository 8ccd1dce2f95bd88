"""What does a sweep cost, beside a loop of its programs?

A layer sweep: one ablation in each layer, with the logits read, on one prompt. Sweep and loop take
turns. The first sweep of its kind is rehearsed by one forward more; it is shown by itself.
"""

from __future__ import annotations

from typing import Any

import torch

from nnsight_dsl import NNsight, intervene, sweep

from .parts import compare, layers_of, new_input, new_model, once
from .results import Figure, Row, Target, median_figure, ratio_figure


@intervene
def ablate_in_stack(model, layer: int):  # type: ignore[no-untyped-def]
    model.layers[layer].down.output[:] = 0
    return model.output


@intervene
def ablate_in_gpt2(model, layer: int):  # type: ignore[no-untyped-def]
    model.transformer.h[layer].mlp.output[:] = 0
    return model.lm_head.output[:, -1]


def rows(*, quick: bool) -> list[Row]:
    """Measure sweeps over the layers."""
    found = []
    rounds = {"MLP stack": 20, "small GPT-2": 10, "deep GPT-2": 5, "GPT-2 124M": 5}
    for name in ("small GPT-2",) if quick else rounds:
        module = new_model(name)
        model, x = NNsight(module), new_input(name)
        program = ablate_in_stack if name == "MLP stack" else ablate_in_gpt2
        count = len(layers_of(module))

        def shared(program: Any = program, model: Any = model, x: Any = x, n: int = count) -> Any:
            return sweep(program, over={"layer": range(n)}, model=model, prompt=x)

        def loop(program: Any = program, model: Any = model, x: Any = x, n: int = count) -> Any:
            return [program.run(model, x, layer=layer) for layer in range(n)]

        with torch.no_grad():
            # the lowering of the program is not the sweep's
            program.run(model, x, layer=0)
            first = once(shared)
            together = shared()
            if together.form != "shared":
                raise RuntimeError(f"{together!r}")
            for one, other in zip(together, loop(), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
            times = compare([shared, loop], rounds[name], warm_up=1)
        figures = {
            "first sweep": Figure(first / 1_000),
            "sweep": median_figure([one / 1_000 for one in times[0]]),
            "loop": median_figure([one / 1_000 for one in times[1]]),
            "sweep / loop": ratio_figure(*times),
        }
        found.append(
            Row(
                "sweeps: in all",
                f"{count} layers of {name}",
                figures,
                "ms",
                [Target("sweep / loop", 0.6)],
            )
        )
    return found
