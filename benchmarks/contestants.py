"""Who runs the cases: the bare forward, hooks by hand, this package, and other libraries.

A contestant is a function that takes the name of a model and returns, for each case that it can
run on it, a function without arguments. What it cannot run is a reason, a text. Each uses a
library as its documentation shows, with what can be set up once set up once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .parts import (
    LAYERS,
    STEPS,
    Stack,
    layers_of,
    new_input,
    new_model,
    new_tokenizer,
    prompts,
)  # fmt: skip

Case = Callable[[], object] | str

CASES: Mapping[str, str] = {
    "empty": "empty block",
    "read_1": "1 read, saved",
    "reads_12": "12 reads, saved",
    "reads_loop_12": "12 reads in a loop",
    "edits_12": "12 edits",
    "source_read": "a read inside a forward",
    "cache": "all modules cached",
    "invokes_8": "8 invokes, each reads all layers",
    "invokes_64": "64 invokes, each reads all layers",
    "generate_16": "16 tokens, an edit in each step",
    "backward_4": "backward, 4 gradients",
}

_NO_BATCH = "inputs of a plain module make no batch by themselves"
_NO_TEXT = "the stack generates nothing"


def _without_grad(function: Callable[[], object]) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return function()

    return call


def _texts(model: str, count: int) -> dict[str, torch.Tensor]:
    return dict(new_tokenizer()(prompts(count), return_tensors="pt"))


def _generation(module: Any, x: torch.Tensor) -> Callable[[], object]:
    mask = torch.ones_like(x)
    return lambda: module.generate(
        input_ids=x, attention_mask=mask, max_new_tokens=STEPS, do_sample=False
    )


def bare(model: str) -> dict[str, Case]:
    """The model alone; in the cases of invokes it runs all their prompts as one batch."""
    module, x = new_model(model), new_input(model)
    found: dict[str, Case] = dict.fromkeys(CASES, _without_grad(lambda: module(x)))

    def backward() -> None:
        output = module(x)
        (output if isinstance(output, torch.Tensor) else output.logits).sum().backward()

    found["backward_4"] = backward
    if model == "MLP stack":
        return {**found, "invokes_8": _NO_BATCH, "invokes_64": _NO_BATCH, "generate_16": _NO_TEXT}
    for count in (8, 64):
        batch = _texts(model, count)
        found[f"invokes_{count}"] = _without_grad(lambda batch=batch: module(**batch))
    found["generate_16"] = _without_grad(_generation(module, x))
    return found


def hooks(model: str) -> dict[str, Case]:
    """The same by hand: hooks registered for one forward, and removed after it."""
    module, x = new_model(model), new_input(model)
    layers = layers_of(module)

    def hooked(count: int, make: Callable[..., Any], run: Callable[[], object]) -> list[Any]:
        found: list[Any] = []
        hook = make(found)
        handles = [layer.register_forward_hook(hook) for layer in list(layers)[:count]]
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
        return found

    def keeping(found: list[Any]) -> Callable[..., Any]:
        return lambda _module, _args, output: found.append(output)

    def doubling(found: list[Any]) -> Callable[..., Any]:
        return lambda _module, _args, output: output * 2

    def caching() -> dict[str, Any]:
        found: dict[str, Any] = {}
        handles = []
        for path, one in module.named_modules():

            def keep(_module: Any, _args: Any, output: Any, path: str = path) -> None:
                if isinstance(output, torch.Tensor):
                    found[path] = output.detach().to("cpu")
                else:
                    found[path] = torch.utils._pytree.tree_map_only(
                        torch.Tensor, lambda leaf: leaf.detach().to("cpu"), output
                    )

            handles.append(one.register_forward_hook(keep))
        try:
            module(x)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def rows(batch: dict[str, torch.Tensor], count: int) -> list[Any]:
        found: list[Any] = []
        handles = []

        def keep(_module: Any, _args: Any, output: Any) -> None:
            found.extend(output[row : row + 1] for row in range(count))

        for layer in layers:
            handles.append(layer.register_forward_hook(keep))
        try:
            module(**batch)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def steered(run: Callable[[], object]) -> None:
        handle = layers[3].register_forward_hook(lambda _module, _args, output: output * 0.5)
        try:
            run()
        finally:
            handle.remove()

    def backward() -> list[Any]:
        found: list[Any] = []

        def keep(_module: Any, _args: Any, output: torch.Tensor) -> None:
            output.register_hook(found.append)

        handles = [layers[i].register_forward_hook(keep) for i in (2, 5, 8, 11)]
        sums: list[torch.Tensor] = []
        handles.append(layers[11].register_forward_hook(lambda _m, _a, out: sums.append(out.sum())))
        try:
            module(x)
        finally:
            for handle in handles:
                handle.remove()
        sums[0].backward()
        return found

    def forward() -> object:
        return module(x)

    found: dict[str, Case] = {
        "empty": forward,
        "read_1": partial(hooked, 1, keeping, forward),
        "reads_12": partial(hooked, LAYERS, keeping, forward),
        "reads_loop_12": partial(hooked, LAYERS, keeping, forward),
        "edits_12": partial(hooked, LAYERS, doubling, forward),
        "cache": caching,
    }
    if model != "MLP stack":
        for count in (8, 64):
            found[f"invokes_{count}"] = partial(rows, _texts(model, count), count)
        found["generate_16"] = partial(steered, _generation(module, x))
    found = {name: _without_grad(one) for name, one in found.items() if not isinstance(one, str)}
    found["backward_4"] = backward
    found["source_read"] = "no hook is called inside a forward"
    return found


def _by_blocks(
    blocks: Any, model: str, wrap: Callable[[Any], Any], language: Any
) -> dict[str, Case]:
    module, x = new_model(model), new_input(model)
    is_stack = isinstance(module, Stack)
    wrapped = wrap(module)
    found: dict[str, Case] = {
        name: partial(getattr(blocks, name), wrapped, x)
        for name in ("empty", "read_1", "reads_12", "reads_loop_12", "edits_12", "cache")
    }
    source = blocks.source_read_stack if is_stack else blocks.source_read_gpt2
    found["source_read"] = partial(source, wrapped, x)
    if not is_stack:
        speaking = language(module)
        for count in (8, 64):
            found[f"invokes_{count}"] = partial(blocks.invokes, speaking, prompts(count))
        found["generate_16"] = partial(blocks.generate_16, speaking, x)
    found = {name: _without_grad(one) for name, one in found.items() if not isinstance(one, str)}
    found["backward_4"] = partial(blocks.backward_4, wrapped, x)
    return found


_ALIASES = {"transformer.h": "layers"}


def _ours(blocks: Any, model: str) -> dict[str, Case]:
    from nnsight_dsl import LanguageModel, NNsight

    def wrap(module: Any) -> Any:
        return NNsight(module, rename=None if isinstance(module, Stack) else _ALIASES)

    def language(module: Any) -> Any:
        return LanguageModel(module, tokenizer=new_tokenizer(), rename=_ALIASES)

    return _by_blocks(blocks, model, wrap, language)


def imported(model: str) -> dict[str, Case]:
    """This package, in a module that the import hook has lowered."""
    from nnsight_dsl import install_import_hook

    name = f"{__package__}.blocks"
    if name not in sys.modules:
        with install_import_hook(name):
            importlib.import_module(name)
    return _ours(sys.modules[name], model)


def script(model: str) -> dict[str, Case]:
    """This package, in a plain script; timed are the second entry and later ones."""
    path = Path(__file__).with_name("blocks.py")
    module = ModuleType("blocks_as_script")
    # compiled under the file's name, so that its source is found as a script's is
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
    return _ours(module, model)


def nnsight(model: str) -> dict[str, Case]:
    """nnsight, on the same text of the blocks."""
    import nnsight as library

    blocks = importlib.import_module(f"{__package__}.blocks")

    def wrap(module: Any) -> Any:
        return library.NNsight(module, rename={} if isinstance(module, Stack) else _ALIASES)

    def language(module: Any) -> Any:
        return library.LanguageModel(module, tokenizer=new_tokenizer(), rename=_ALIASES)

    return _by_blocks(blocks, model, wrap, language)


def transformer_lens(model: str) -> dict[str, Case]:
    """transformer_lens, on a stack with its hook points, and on its own GPT-2 of the same shape."""
    from .peers import transformer_lens_cases

    return transformer_lens_cases(model)


def pyvene(model: str) -> dict[str, Case]:
    """pyvene, with its interventions set up once."""
    from .peers import pyvene_cases

    return pyvene_cases(model)


CONTESTANTS: Mapping[str, Callable[[str], dict[str, Case]]] = {
    "bare": bare,
    "hooks": hooks,
    "imported": imported,
    "script": script,
    "nnsight": nnsight,
    "transformer_lens": transformer_lens,
    "pyvene": pyvene,
}
