"""A random program: what it runs on, its blocks as text, how it is entered, and what happens.

The text of a program stands alone: it is what Python compiles, on either side of the comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import indent

HEAD = {
    "stack": "a, b, t = 1.5, 2, torch.ones(2, 3)\nlayers = model.layers",
    "gpt2": "a, b, t = 1.5, 2, torch.ones(1, 1, 16)\nlayers = model.transformer.h",
    "llama": "a, b, t = 1.5, 2, torch.ones(1, 1, 16)\nlayers = model.model.layers",
}
TELL = "[tell(lambda: a), tell(lambda: b), tell(lambda: c), tell(lambda: t)]"
SEEN = f"seen = {TELL}"
"""The last statement of a block: what its names stand for."""

BLOCKS = ("text", "function", "file", "lowered", "module", "script", "cell")
"""Ways in which a block is compiled that is entered by `with`."""

FUNCTIONS = ("carried", "intervention", "intervention in a block")
"""Ways in which the statements of a block are a function's."""


@dataclass(frozen=True)
class Part:
    """One block of a run.

    Attributes:
        body: its statements.
        prompt: number of its prompt; None for a block that sees all rows.
        told: names that it binds and later blocks wait for.
        fetched: names of earlier blocks that it waits for.
    """

    body: str
    prompt: int | None = None
    told: tuple[str, ...] = ()
    fetched: tuple[str, ...] = ()


@dataclass(frozen=True)
class Program:
    """A program, and all that its meaning depends on.

    Attributes:
        seed: the number that it was drawn from.
        family: the kind of model.
        kinds: kinds of the layers of a stack.
        parts: its blocks; one alone is the block of the trace, several are invokes.
        is_direct: whether the trace has an input itself.
        before: statements before the blocks, in the trace.
        n_steps: how many tokens it generates; 0 for a trace.
        entry: how the block is compiled and entered.
        in_function: whether the block stands in a function.
        events: what happens to the model, one for each entry.
    """

    seed: int
    family: str
    kinds: tuple[str, ...]
    parts: tuple[Part, ...]
    is_direct: bool
    before: str
    n_steps: int
    entry: str
    in_function: bool
    events: tuple[str, ...]

    @property
    def head(self) -> str:
        return HEAD[self.family]

    @property
    def call(self) -> str:
        """The expression that opens the trace."""
        given = "x" if self.is_direct else ""
        if not self.n_steps:
            return f"model.trace({given})"
        options = f"max_new_tokens={self.n_steps}, min_new_tokens={self.n_steps}, do_sample=False"
        return f"model.generate({given + ', ' if given else ''}{options})"

    def text(self) -> str:
        """Write the program out, for the way in which it is entered."""
        if self.entry in FUNCTIONS:
            return self._function_text()
        lines = [self.head, f"try:\n    with {self.call} as tracer:"]
        lines.append(indent(self._blocks(), " " * 8))
        lines.append("except BaseException as error:\n    failed(error)")
        inside = "\n".join(lines)
        if self.in_function:
            return (
                f"def user(model, x, p):\n{indent(inside, '    ')}\n    ended(locals())\n"
                "for model, x, p in entries():\n    user(model, x, p)\n"
            )
        return f"for model, x, p in entries():\n{indent(inside, '    ')}\n    ended(globals())\n"

    def _blocks(self) -> str:
        if len(self.parts) == 1 and self.is_direct and self.parts[0].prompt is None:
            return self.parts[0].body
        lines = [self.before] if self.before else []
        for part in self.parts:
            given = "" if part.prompt is None else f"p[{part.prompt}]"
            lines.append(f"with tracer.invoke({given}):\n{indent(part.body, '    ')}")
        return "\n".join(lines)

    def _function_text(self) -> str:
        (part,) = self.parts
        head = f"{self.head}\n{part.body}\nreturn seen"
        arguments = "model, note, tell, log, tracer"
        if self.entry == "intervention":
            arguments = "model, tracer"
        decorated = "" if self.entry == "carried" else "@intervene\n"
        definition = f"{decorated}def steps({arguments}):\n{indent(head, '    ')}\n"
        if self.entry == "intervention":
            run = "        seen = steps.run(model, x)"
        else:
            run = (
                f"        with {self.call} as tracer:\n"
                "            seen = save(steps(model, note, tell, log, tracer))"
            )
        return (
            f"{definition}for model, x, p in entries():\n"
            f"    try:\n{run}\n    except BaseException as error:\n        failed(error)\n"
            "    ended(globals())\n"
        )
