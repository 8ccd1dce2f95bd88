"""A random program: what it runs on, its blocks as text, how it is entered, and what happens.

The text of a program stands alone: it is what Python compiles, on either side of the comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import indent

LAYERS = {
    "stack": "layers = model.layers",
    "gpt2": "layers = model.transformer.h",
    "llama": "layers = model.model.layers",
}
TENSOR = {
    "stack": "torch.ones(2, 3)",
    "gpt2": "torch.ones(1, 1, 16)",
    "llama": "torch.ones(1, 1, 16)",
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


KINDS = ("trace", "invokes", "session", "edit")
"""How the blocks of a program belong together."""


@dataclass(frozen=True)
class Program:
    """A program, and all that its meaning depends on.

    Attributes:
        seed: the number that it was drawn from.
        family: the kind of model.
        layers: kinds of the layers of a stack.
        kind: how its blocks belong together: one of `KINDS`.
        parts: its blocks.
        head: statements before the trace.
        before: statements before the blocks, in the trace.
        n_steps: how many tokens it generates; 0 for a trace.
        entry: how the block is compiled and entered.
        in_function: whether the block stands in a function.
        has_accessors: whether the wrapper is of a subclass with properties of its own.
        events: what happens to the model, one for each entry.
    """

    seed: int
    family: str
    layers: tuple[str, ...]
    kind: str
    parts: tuple[Part, ...]
    head: str
    before: str
    n_steps: int
    entry: str
    in_function: bool
    has_accessors: bool
    events: tuple[str, ...]

    @property
    def is_direct(self) -> bool:
        """Whether the trace has an input itself."""
        return all(part.prompt is None for part in self.parts)

    def opened(self, model: str = "model") -> str:
        """Write the expression that opens a trace."""
        given = "x" if self.is_direct else ""
        if not self.n_steps:
            return f"{model}.trace({given})"
        return f"{model}.generate({given + ', ' if given else ''}{self.options})"

    @property
    def options(self) -> str:
        """The arguments of a generation, by name."""
        return f"max_new_tokens={self.n_steps}, min_new_tokens={self.n_steps}, do_sample=False"

    def text(self) -> str:
        """Write the program out, for the way in which it is entered."""
        if self.entry in FUNCTIONS:
            return self._function_text()
        blocks = indent(self._blocks(), "    ")
        inside = f"{self.head}\ntry:\n{blocks}\nexcept BaseException as error:\n    failed(error)"
        if self.in_function:
            return (
                f"def user(model, x, p):\n{indent(inside, '    ')}\n    ended(locals())\n"
                "for model, x, p in entries():\n    user(model, x, p)\n"
            )
        return f"for model, x, p in entries():\n{indent(inside, '    ')}\n    ended(globals())\n"

    def _blocks(self) -> str:
        if self.kind == "edit":
            edit, part = self.parts
            return (
                f"with model.edit() as edited:\n{indent(edit.body, '    ')}\n"
                f"with {self.opened('edited')} as tracer:\n{indent(part.body, '    ')}"
            )
        if self.kind == "session":
            blocks = (
                f"with {self.opened()} as tracer:\n{indent(part.body, '    ')}"
                for part in self.parts
            )
            return "with model.session():\n" + indent("\n".join(blocks), "    ")
        if self.kind == "trace":
            return f"with {self.opened()} as tracer:\n{indent(self.parts[0].body, '    ')}"
        lines = [self.before] if self.before else []
        for part in self.parts:
            given = "" if part.prompt is None else f"p[{part.prompt}]"
            lines.append(f"with tracer.invoke({given}):\n{indent(part.body, '    ')}")
        blocks = indent("\n".join(lines), "    ")
        return f"with {self.opened()} as tracer:\n{blocks}"

    def _function_text(self) -> str:
        (part,) = self.parts
        head = f"{self.head}\n{part.body}\nreturn seen"
        arguments = "model, note, tell, log, tracer"
        if self.entry == "intervention":
            arguments = "model, tracer"
        decorated = "" if self.entry == "carried" else "@intervene\n"
        definition = f"{decorated}def steps({arguments}):\n{indent(head, '    ')}\n"
        if self.entry == "intervention":
            options = f", generate=True, {self.options}" if self.n_steps else ""
            run = f"        seen = steps.run(model, x{options})"
        else:
            run = (
                f"        with {self.opened()} as tracer:\n"
                "            seen = save(steps(model, note, tell, log, tracer))"
            )
        return (
            f"{definition}for model, x, p in entries():\n"
            f"    try:\n{run}\n    except BaseException as error:\n        failed(error)\n"
            "    ended(globals())\n"
        )
