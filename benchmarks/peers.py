"""The cases in the words of transformer_lens and pyvene, by their documented interfaces."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from .parts import GPT2_SHAPES, LAYERS, STEPS, Layer, new_input, new_model, new_tokenizer

Case = Callable[[], object] | str

_BLOCK_CASES = ("empty", "read_1", "reads_12", "reads_loop_12", "edits_12", "source_read", "cache")
_NO_INVOKES = "has no invokes: one set of interventions runs on the whole batch"


def _without_grad(function: Callable[[], object]) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return function()

    return call


def transformer_lens_cases(model: str) -> dict[str, Case]:
    """Hook points are part of the model, so a stack of ours is built with them."""
    from transformer_lens import HookedRootModule
    from transformer_lens.hook_points import HookPoint

    x = new_input(model)
    hooked: Any
    if model == "MLP stack":

        class HookedStack(HookedRootModule):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.ModuleList(Layer(32) for _ in range(LAYERS))
                self.points = nn.ModuleList(HookPoint() for _ in range(LAYERS))
                self.setup()

            def forward(self, hidden: torch.Tensor) -> torch.Tensor:
                for layer, point in zip(self.layers, self.points, strict=True):
                    hidden = point(layer(hidden))
                return hidden

        hooked = HookedStack().eval()
        names = [f"points.{i}" for i in range(LAYERS)]
    else:
        from transformer_lens.model_bridge import TransformerBridge

        # a bridge is made of what transformers finds in a folder
        with tempfile.TemporaryDirectory() as folder:
            new_model(model).save_pretrained(folder)
            new_tokenizer().save_pretrained(folder)
            hooked = TransformerBridge.boot_transformers(folder)
        names = [f"blocks.{i}.hook_out" for i in range(GPT2_SHAPES[model][0])]

    def double(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return value * 2

    def half(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return value * 0.5

    def reads(count: int) -> list[Any]:
        found: list[Any] = []

        def keep(value: torch.Tensor, hook: Any) -> None:
            found.append(value)

        hooked.run_with_hooks(x, fwd_hooks=[(name, keep) for name in names[:count]])
        return found

    def edits() -> object:
        return hooked.run_with_hooks(x, fwd_hooks=[(name, double) for name in names[:LAYERS]])

    def generate() -> None:
        with hooked.hooks(fwd_hooks=[(names[3], half)]):
            hooked.generate(
                x, max_new_tokens=STEPS, do_sample=False, stop_at_eos=False, verbose=False
            )

    def backward() -> list[Any]:
        found: list[Any] = []

        def keep(value: torch.Tensor, hook: Any) -> None:
            found.append(value)

        with hooked.hooks(bwd_hooks=[(names[i], keep) for i in (2, 5, 8, 11)]):
            hooked(x).sum().backward()
        return found

    found: dict[str, Case] = {
        "empty": lambda: hooked(x),
        "read_1": partial(reads, 1),
        "reads_12": partial(reads, LAYERS),
        "reads_loop_12": partial(reads, LAYERS),
        "edits_12": edits,
        "cache": lambda: hooked.run_with_cache(x),
    }
    if model != "MLP stack":
        found["generate_16"] = generate
    found = {name: _without_grad(one) for name, one in found.items() if not isinstance(one, str)}
    found["backward_4"] = backward
    found["source_read"] = "sees what has a hook point in the text of the model"
    found["invokes_8"] = found["invokes_64"] = _NO_INVOKES
    return found


def pyvene_cases(model: str) -> dict[str, Case]:
    """An intervenable model is made once for each case; only its calls are timed."""
    if model == "MLP stack":
        return dict.fromkeys(_BLOCK_CASES, "takes models that have a config of transformers")
    import pyvene

    module, x = new_model(model), new_input(model)
    base = {"input_ids": x}

    def intervened(intervention: Any, layers: range) -> Any:
        configs = [
            {"component": f"transformer.h[{i}].output", "intervention": intervention()}
            for i in layers
        ]
        return pyvene.IntervenableModel(configs, model=module)

    def doubling() -> Any:
        return lambda base, source: base * 2

    def collecting() -> Any:
        return pyvene.CollectIntervention(embed_dim=32, keep_last_dim=True)

    def run(one: Any) -> object:
        return one(base=base, unit_locations=None)

    def generate(one: Any) -> object:
        return one.generate(base, max_new_tokens=STEPS, do_sample=False, intervene_on_prompt=True)

    def halving() -> Any:
        return lambda base, source: base * 0.5

    made: dict[str, Callable[[], Callable[[], object]]] = {
        "read_1": lambda: partial(run, intervened(collecting, range(1))),
        "reads_12": lambda: partial(run, intervened(collecting, range(LAYERS))),
        "reads_loop_12": lambda: partial(run, intervened(collecting, range(LAYERS))),
        "edits_12": lambda: partial(run, intervened(doubling, range(LAYERS))),
    }
    made["generate_16"] = lambda: partial(generate, intervened(halving, range(3, 4)))
    found: dict[str, Case] = {}
    for name, make in made.items():
        try:
            found[name] = _without_grad(make())
        except Exception as error:
            found[name] = f"{type(error).__name__} when it is set up"
    found["empty"] = "is no model without an intervention"
    found["cache"] = "names each component that it collects"
    found["source_read"] = "sees components, not operations"
    found["backward_4"] = "collects no gradients"
    found["invokes_8"] = found["invokes_64"] = _NO_INVOKES
    return found
