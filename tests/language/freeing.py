"""Blocks after which no activation may be left, and a model that says which ones are.

The blocks are text, so that every entry point runs the same ones. Each is run a few times with the
garbage collector off; an activation that is alive after a run is one that the run keeps.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from nnsight_dsl import LanguageModel, NNsight
from tests import models

TIMES = 4
"""How often each is run: the first entry lowers the block, the third one takes the fast path."""


class Seen:
    """Weak references to the activations of a model."""

    def __init__(self) -> None:
        self.references: list[weakref.ref[torch.Tensor]] = []

    def add(self, value: Any) -> None:
        if type(value) is torch.Tensor:
            self.references.append(weakref.ref(value))

    def alive(self) -> int:
        return sum(reference() is not None for reference in self.references)


class NotedBlock(GPT2Block):
    """A layer that notes what it is given and what it returns."""

    seen: Seen

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # a copy, so that all that is noted belongs to this run
        hidden_states = hidden_states + 0
        output = super().forward(hidden_states, *args, **kwargs)
        if not isinstance(hidden_states, FakeTensor):
            self.seen.add(hidden_states)
            self.seen.add(output if isinstance(output, torch.Tensor) else output[0])
        return output


def new_model() -> tuple[LanguageModel, Seen]:
    """Make a small model, and the list of what its layers compute."""
    seen = Seen()
    module = models.new_gpt2()
    for layer in module.transformer.h:
        layer.__class__ = NotedBlock
        layer.seen = seen
    return LanguageModel(module, tokenizer=models.tokenizer()), seen


FUNCTIONS: Mapping[str, str] = {
    "read": """
with model.trace("the cat sat"):
    h = model.transformer.h[0].output
    out = model.transformer.h[1].output.save()
""",
    "unsaved": """
with model.trace("the cat sat"):
    h = model.transformer.h[0].output
""",
    "input": """
with model.trace("the cat sat"):
    h = model.transformer.h[1].input.save()
""",
    "write": """
with model.trace("the cat sat"):
    h = model.transformer.h[0].output * 2
    model.transformer.h[0].output = h
    model.transformer.h[1].output[:, 0] = 0
    out = model.transformer.h[2].output.save()
""",
    "loop": """
with model.trace("the cat sat"):
    found = [layer.output for layer in model.transformer.h].save()
""",
    "result": """
with model.trace("the cat sat") as tracer:
    h = model.transformer.h[1].output
    out = tracer.result.save()
""",
    "carried": """
def read(layer):
    return layer.output

with model.trace("the cat sat"):
    found = list(map(read, model.transformer.h)).save()
""",
    "nested function": """
with model.trace("the cat sat"):
    def twice(layer):
        value = layer.output
        return value * 2
    h = twice(model.transformer.h[0])
    out = twice(model.transformer.h[1]).save()
""",
    "skip": """
with model.trace("the cat sat"):
    h = model.transformer.h[0].output
    model.transformer.h[1].skip(h)
    out = model.transformer.h[2].output.save()
""",
    "stop": """
with model.trace("the cat sat") as tracer:
    h = model.transformer.h[0].output.save()
    tracer.stop()
""",
    "finally": """
with model.trace("the cat sat"):
    try:
        h = model.transformer.h[1].output.save()
    finally:
        k = h
""",
    "invokes": """
with model.trace() as tracer:
    with tracer.invoke("the cat sat"):
        h = model.transformer.h[0].output
        out = model.transformer.h[1].output.save()
    with tracer.invoke("a red bird"):
        model.transformer.h[1].output = model.transformer.h[1].output * 2
    with tracer.invoke():
        both = model.transformer.h[2].output.save()
""",
    "shared name": """
with model.trace() as tracer:
    with tracer.invoke("the cat sat"):
        shared = model.transformer.h[0].output
    with tracer.invoke("a red bird"):
        model.transformer.h[1].output = shared
        out = model.transformer.h[2].output.save()
""",
    "generate": """
with model.generate("the cat sat", max_new_tokens=3, do_sample=False) as tracer:
    found = [].save()
    for step in tracer.iter[:]:
        h = model.transformer.h[1].output
        found.append(h)
""",
    "generate, one step": """
with model.generate("the cat sat", max_new_tokens=3, do_sample=False) as tracer:
    h = model.transformer.h[1].output.save()
    out = tracer.result.save()
""",
    "session": """
with model.session() as session:
    with model.trace("the cat sat"):
        h = model.transformer.h[0].output
    with model.trace("a red bird"):
        model.transformer.h[0].output = h
        out = model.transformer.h[1].output.save()
""",
    "backward": """
with torch.enable_grad():
    with model.trace("the cat sat"):
        h = model.transformer.h[0].output
        h.requires_grad_(True)
        loss = model.lm_head.output.sum()
        with loss.backward():
            grad = h.grad.save()
""",
    "edit": """
with model.edit() as edited:
    h = model.transformer.h[0].output
    model.transformer.h[0].output = h * 2
with edited.trace("the cat sat"):
    out = model.transformer.h[1].output.save()
""",
    "cache": """
with model.trace("the cat sat") as tracer:
    cache = tracer.cache()
""",
    "scan": """
with model.scan("the cat sat"):
    shape = model.transformer.h[1].output.shape
""",
    "source": """
with model.trace("the cat sat"):
    h = model.transformer.h[0].mlp.source.self_c_fc_0.output
    out = model.transformer.h[1].output.save()
""",
    "an error of the block": """
try:
    with model.trace("the cat sat"):
        h = model.transformer.h[0].output.save()
        k = model.transformer.h[1].output
        raise KeyError("of the block")
except KeyError:
    pass
""",
    "an error of a helper": """
def failing(value):
    raise KeyError("of a helper")

try:
    with model.trace("the cat sat"):
        h = model.transformer.h[0].output
        failing(h)
except KeyError:
    pass
""",
    "an error of the model": """
try:
    with model.trace("the cat sat"):
        h = model.transformer.h[0].output
        model.transformer.h[0].output = h[..., :3]
except Exception as error:
    assert "NotedBlock" not in str(error)
""",
    "a value that has passed": """
try:
    with model.trace("the cat sat"):
        h = model.transformer.h[1].output
        k = model.transformer.h[0].output
except OutOfOrderError:
    pass
""",
    "an error of an invoke": """
try:
    with model.trace() as tracer:
        with tracer.invoke("the cat sat"):
            h = model.transformer.h[0].output
        with tracer.invoke("a red bird"):
            k = model.transformer.h[1].output
            raise KeyError("of an invoke")
except KeyError:
    pass
""",
    "an error in a generation": """
try:
    with model.generate("the cat sat", max_new_tokens=3, do_sample=False) as tracer:
        for step in tracer.iter[:]:
            h = model.transformer.h[1].output
            if step == 1:
                raise KeyError("of a step")
except KeyError:
    pass
""",
    "an error in a backward block": """
try:
    with torch.enable_grad():
        with model.trace("the cat sat"):
            h = model.transformer.h[0].output
            h.requires_grad_(True)
            loss = model.lm_head.output.sum()
            with loss.backward():
                grad = h.grad
                raise KeyError("of a backward block")
except KeyError:
    pass
""",
}

HEADER = "import torch\nfrom nnsight_dsl.errors import OutOfOrderError\n"


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" if line else "\n" for line in text.strip().splitlines())


def function_text(name: str) -> str:
    """Return a module with one function, `user(model)`."""
    return f"{HEADER}\ndef user(model):\n{_indented(FUNCTIONS[name])}"


def module_text(name: str) -> str:
    """Return the same statements at the level of a module; `model` is one of its globals."""
    return f"{HEADER}\n{FUNCTIONS[name].strip()}\n"


INTERVENTIONS: Mapping[str, str] = {
    "read": """
h = model.transformer.h[0].output
return model.transformer.h[1].output
""",
    "write": """
h = model.transformer.h[0].output
model.transformer.h[0].output = h * 2
return model.transformer.h[1].output
""",
    "carried": """
return list(map(lambda layer: layer.output, model.transformer.h))
""",
    "error": """
h = model.transformer.h[0].output
raise KeyError("of an intervention")
""",
}


def intervention_text(name: str, *, alone: bool) -> str:
    """Return a module whose `user(model)` runs an intervention."""
    body = _indented(INTERVENTIONS[name])
    call = (
        '    try:\n        found = program.run(model, "the cat sat")\n'
        if alone
        else '    try:\n        with model.trace("the cat sat"):\n'
        "            found = program(model).save()\n"
    )
    return (
        f"{HEADER}from nnsight_dsl import intervene\n\n@intervene\ndef program(model):\n{body}\n"
        f"def user(model):\n{call}    except KeyError:\n        pass\n"
    )


def script_text() -> str:
    """Return a script with each block in a function and at its top level.

    It writes to the file that it is called with how many activations were left after each run.
    """
    lines = [
        "import json, sys",
        "from pathlib import Path",
        "from tests.language.freeing import TIMES, Counting, left_by",
        *HEADER.splitlines(),
        "left = {}",
    ]
    for name in FUNCTIONS:
        lines += [
            "def user(model):",
            *_indented(FUNCTIONS[name]).splitlines(),
            f"left['function: ' + {name!r}] = left_by(user)",
            "with Counting() as counting:",
            "    model, kept = counting.model, {*globals(), 'kept', 'model', 'number', 'one'}",
            "    for number in range(TIMES):",
            *[f"        {line}" for line in FUNCTIONS[name].strip().splitlines()],
            "        for one in {*globals()} - kept:",
            "            del globals()[one]",
            "        counting.count()",
            f"left['top level: ' + {name!r}] = counting.left",
        ]
    lines.append("Path(sys.argv[1]).write_text(json.dumps(left))")
    return "\n".join(lines) + "\n"


class Counting:
    """A model, and how many of its activations were alive whenever they were counted.

    In its `with` the garbage collector is off.
    """

    def __init__(self) -> None:
        self.model, self._seen = new_model()
        self.left: list[int] = []

    def __enter__(self) -> Counting:
        gc.collect()
        gc.disable()
        return self

    def __exit__(self, *_: object) -> None:
        gc.enable()

    def count(self) -> None:
        self.left.append(self._seen.alive())


def left_by(run: Callable[[NNsight], object]) -> list[int]:
    """Return how many activations are left after each of some calls, without the collector."""
    with Counting() as counting:
        for _ in range(TIMES):
            run(counting.model)
            counting.count()
    return counting.left
