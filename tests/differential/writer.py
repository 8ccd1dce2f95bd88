"""Random programs from a seed."""

from __future__ import annotations

import ast
import random
from textwrap import indent
from typing import Any

from tests.differential.programs import BLOCKS, FUNCTIONS, LAYERS, SEEN, TENSOR, Part, Program
from tests.differential.worlds import EVENTS, KINDS, LANGUAGE, OPERATIONS
from tests.language.random_blocks import Writer

_USUAL_KINDS = ("linear", "nested", "pair")
_NOT_FOR_LANGUAGE = {"another dtype", "more rows", "training"}
_SEEN_IN_A_SKIP = {"a failing hook", "an interrupt", "training"}
_OTHER_OPERATIONS = {
    "forward of the instance",
    "forward of the class",
    "another class",
    "another layer",
}
_LANGUAGE_PLACES = {
    "gpt2": (
        ("model.transformer.wte", False),
        ("layers[0].attn", True),
        ("layers[0].mlp", False),
        ("layers[0]", False),
        ("layers[1].attn", True),
        ("layers[1]", False),
        ("layers[2]", False),
        ("model.transformer.ln_f", False),
        ("model.lm_head", False),
    ),
    "llama": (
        ("model.model.embed_tokens", False),
        ("layers[0].self_attn", True),
        ("layers[0].mlp", False),
        ("layers[0]", False),
        ("layers[1].self_attn", True),
        ("layers[1]", False),
        ("layers[2]", False),
        ("model.model.norm", False),
        ("model.lm_head", False),
    ),
}


class BlockWriter(Writer):
    """Writes blocks for the models of `worlds`, with what only models have besides."""

    def __init__(
        self, draw: random.Random, family: str, kinds: tuple[str, ...], entry: str
    ) -> None:
        self._places = _LANGUAGE_PLACES.get(family)
        if self._places is not None:
            kinds = tuple("pair" if is_tuple else "linear" for _, is_tuple in self._places)
        super().__init__(draw.randrange, kinds)
        self._family = family
        self._saved = 0
        self.has_accessors = False
        self._in_block = entry not in FUNCTIONS
        # in a function of the user's, which is not rewritten, only tensors have a method `save`
        self._has_save = entry != "carried"
        if self._places is not None:
            self.first_row = "[0][0]"

    def place(self, layer: int) -> str:
        return self._places[layer][0] if self._places else super().place(layer)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of the layers."""
        return self._kinds

    def tensor(self) -> str:
        if self.has_accessors and self._below(6) == 0 and self.place(self._at) == "layers[0]":
            return "model.scaled(0.5)" if self._below(2) else f"model.first{self._element_of(0)}"
        return super().tensor()

    def _element_of(self, layer: int) -> str:
        return "[0]" if self.is_tuple(layer) and self._places is None else ""

    def _layer(self) -> int:
        # out of order less often than where that is what is looked into
        if self._written is None and self._below(100) == 0:
            return self._below(len(self._kinds))
        below, self._below = self._below, lambda n: below(n) or (n == 24)
        try:
            return super()._layer()
        finally:
            self._below = below

    def backward(self) -> str:
        """Write statements that go back from the last layer."""
        last = len(self._kinds) - 1
        first = self._below(last) if last else 0
        second = first + self._below(last - first + 1)
        names = {first: "h1", second: "h2"}
        lines = []
        for layer in sorted({first, second}):
            element = "[0]" if self.is_tuple(layer) else ""
            lines.append(f"{names[layer]} = {self.place(layer)}.output{element}")
        end = "model.head" if self._family == "stack" else "model.lm_head"
        lines.append(f"loss = {end}.output.{self._choose('sum()', 'mean()', 'pow(2).sum()')}")
        lines.append("with loss.backward():")
        for layer in sorted({first, second}, reverse=self._below(12) > 0):
            name = names[layer]
            pattern = self._choose(
                "v{n} = {h}.grad.save()",
                "v{n} = {h}.grad.save()",
                "{h}.grad = {h}.grad * 2",
                "{h}.grad = torch.zeros_like({h})\nv{n} = {h}.grad.save()",
                "a = {h}.grad.sum().item()",
                "if {h}.grad.sum() > 0:\n    note({h}.grad.sum().item())",
            )
            lines.append(indent(pattern.format(h=name, n=layer + 20), "    "))
        return "\n".join(lines)

    def _simple(self) -> str:
        if self._below(4):
            return super()._simple()
        is_first = self.has_accessors and self.place(self._at) == "layers[0]"
        if is_first and not (self._written or self.is_tuple(self._at) or self._below(3)):
            return str(self._choose("model.first = model.first * 2", "model.first[:] = 0"))
        if self._operations and self._below(3) == 0 and not (self._loops or self._scope):
            return self._source()
        special = self._choose(
            self._save, self._save, self._save, self._input, self._element, self._special
        )
        return str(special())

    def _save(self) -> str:
        self._saved += 1
        name = f"v{self._saved}"
        pattern = self._choose(
            "{v} = {t}.save()",
            "{v} = save({t})",
            "{v} = ({n}).save()",
            "{v} = [{t}, {n}].save()",
            "{v} = {{'k': {t}}}.save()",
            "{v} = {t}\nsave({v})",
            "{v} = {t}\n{v}.save()",
            "t = {v} = {t}.save()",
            "{v} = [].save()\n{v}.append({n})",
            "({v} := {t}.save())",
            "{v} = [x.save() for x in [{t}]][0]",
            "def keep(y):\n    return y.save()\n{v} = keep({t})",
            "{v} = {t}.save()\n{v}[:, 0] = {n}",
            "{v} = f'{{{n}:.3f}}'.save()",
        )
        if not self._has_save and ".save()" in pattern:
            pattern = "{v} = save([{t}, {n}])"
        is_quoted, self._is_quoted = self._is_quoted, self._is_quoted or "f'" in pattern
        text = pattern.format_map(_Fields(v=name, t=self.tensor, n=lambda: self.number(1)))
        self._is_quoted = is_quoted
        return str(text)

    def _input(self) -> str:
        # the layer after the one that was looked at: its input is yet to come
        last = len(self._kinds) - 1
        if self._at < last and not self._loops:
            self._at += 1
        place = self.place(self._at)
        name = self._choose("a", "b", "c")
        pattern = self._choose(
            "t = {p}.input",
            "{p}.input = {p}.input * 2",
            "{p}.input[:, 0] = {n}",
            "{p}.input += 1",
            "{v} = len({p}.inputs[0])",
            "{p}.inputs = (({p}.inputs[0][0] * 2, *{p}.inputs[0][1:]), {p}.inputs[1])",
            "{p}.inputs[0][0] = {p}.inputs[0][0] - 1",
            "{p}.input = {p}.input\nt = {p}.output",
        )
        return pattern.format_map(_Fields(p=place, v=name, n=lambda: self.number(0)))

    @property
    def _operations(self) -> bool:
        """Whether the next layer has operations to look into, and a block can name them."""
        following = self._kinds[self._at + 1 : self._at + 2]
        return self._has_save and following == ("residual",) and self._written is None

    def _source(self) -> str:
        self._at += 1
        lines = []
        for name in OPERATIONS:
            if self._below(3):
                continue
            output = f"{self.place(self._at)}.source.{name}.output"
            lines.append(
                self._choose(
                    f"t = {output}",
                    f"note({output}.sum().item())",
                    f"{output} = {output} * 2",
                    f"{output}[:, 0] = {self._choose(1, 'a')}",
                    f"{output} += 1",
                )
            )
        return "\n".join(lines) or "pass"

    def _element(self) -> str:
        outer, self._written = self._written, self._layer()
        layer = self._written
        place = self.place(layer)
        if self.is_tuple(layer) and self._in_block and not self._scope:
            text = self._choose(
                f"{place}.output[0] = {place}.output[0] + {self.number(0)}",
                f"{place}.output[0] *= 2",
                f"{place}.output[0][:, -1] = {self.number(0)}",
                f"t = {place}.output[0]\n{place}.output[0] = t * 2\nt = {place}.output[0]",
            )
        elif self.is_tuple(layer):
            text = f"{place}.output[0][:] = 0"
        else:
            text = self._choose(
                f"t = {place}.output\nt[:] = t * 2",
                f"t = {place}.output\nt *= 2\n{place}.output = t",
                f"{place}.output[:] = 0",
                f"{place}.output[..., 1] += {self.number(0)}",
                f"{place}.output = {place}.output.clone()\n{place}.output[:, 0] = 1",
                f"t = {place}.output.clone()\n{place}.output[:, 0] = 2\nt = t + {place}.output",
                f"with torch.no_grad():\n    {place}.output[:, 0] = {self.number(0)}",
                f"{place}.output = {place}.output[:1]",
                f"{place}.output = {place}.output.double()",
                f"{place}.output = {place}.output[..., :2]",
            )
        self._written = outer
        return str(text)

    def _special(self) -> str:
        if self._loops or self._scope:
            return "t = model.output"
        text = self._choose(
            "skip", "skip", "stop", "result", "output", "call", "probe", "accessor", "interrupt"
        )
        last = len(self._kinds) - 1
        if text == "skip":
            self._at = min(self._at + 1, last)
            if self._kinds[self._at] == "inplace":
                # plain hooks call it all the same, and it edits the value before it
                return "pass"
            place = self.place(self._at)
            value = f"{place}.input * 2"
            if self.is_tuple(self._at):
                value = f"({value}, {None if self._places else repr('skipped')})"
            return f"{place}.skip({value})\nt = {place}.output"
        if text == "stop":
            return f"if {self.number(0)} > 0.5:\n    tracer.stop()"
        if text == "interrupt":
            return f"if {self.number(0)} > 3:\n    raise KeyboardInterrupt('in the block')"
        if text == "result":
            return "c = tracer.result" if self._is_last() else "pass"
        if text == "output":
            return "c = model.output" if self._is_last() else "pass"
        place = self.place(self._layer())
        if text == "call":
            return f"t = {self.place(last)}(t)" if self._family == "stack" else "pass"
        if text == "probe":
            return (
                self._choose(
                    f"a = float(elsewhere.Probe({place}).hidden(2)[0].sum())",
                    f"b = float(elsewhere.Probe({place}).norm)",
                    f"elsewhere.Probe({place}).norm = 2.0",
                )
                if not self.is_tuple(self._layer())
                else "pass"
            )
        return self._choose(
            f"t = elsewhere.Accessor([{place}])[0]",
            f"t = elsewhere.Accessor([{place}]).layer_0",
            f"t = [*elsewhere.Accessor([{place}])][0]",
        )

    def _is_last(self) -> bool:
        return self._at >= len(self._kinds) - 1


class _Fields(dict[str, Any]):
    def __getitem__(self, name: str) -> Any:
        found = super().__getitem__(name)
        return found() if callable(found) else found


def drawn(seed: int) -> Program:
    """Draw the program of a seed."""
    draw = random.Random(seed)
    family = draw.choice(["stack"] * 6 + list(LANGUAGE) * 2)
    is_language = family in LANGUAGE
    layers: tuple[str, ...] = ()
    if not is_language:
        some = _USUAL_KINDS if draw.random() < 0.5 else KINDS
        layers = tuple(draw.choice(some) for _ in range(draw.randint(2, 4)))
    entry = draw.choice((*BLOCKS, *FUNCTIONS))
    shape = _Shape(draw, family, layers, entry, has_accessors=draw.random() < 0.15)
    kind = "trace" if entry in FUNCTIONS else draw.choice(_KINDS)
    n_steps = 0
    if is_language and kind in ("trace", "invokes") and draw.random() < 0.4:
        n_steps = draw.randint(1, 3)
    head, before = shape.head(), ""
    if kind == "invokes":
        parts, head, before = shape.invokes(n_steps)
    elif n_steps:
        parts = (Part(shape.generation()),)
    elif kind == "trace":
        parts = (Part(shape.body(ending=True)),)
    elif kind == "session":
        parts = tuple(Part(shape.body(1)) for _ in range(2))
    else:
        parts = (Part(shape.body(1, is_seen=False)), Part(shape.body(1)))
    events = [event for event in EVENTS if not (is_language and event in _NOT_FOR_LANGUAGE)]
    if any(".skip(" in part.body for part in parts):
        # plain hooks cannot keep a module from being called, only throw away what it returns
        events = [event for event in events if event not in _SEEN_IN_A_SKIP]
    if any(".source." in part.body for part in parts):
        events = [event for event in events if event not in _OTHER_OPERATIONS]
    drawn_events = tuple(
        "nothing" if draw.random() < 0.4 else draw.choice(events) for _ in range(draw.randint(2, 4))
    )
    return Program(
        seed, family, layers, kind, parts, head, before, n_steps, entry, draw.random() < 0.5,
        shape.has_accessors, drawn_events,
    )  # fmt: skip


_KINDS = ("trace", "trace", "trace", "invokes", "invokes", "session", "edit")
_STEPS = ("[:]", "[:]", "[0:2]", "[1:]", "[1]", "[0]", "[[0, 2]]", "[:5]", "[::2]")


class _Shape:
    """Draws the blocks of one program."""

    def __init__(
        self,
        draw: random.Random,
        family: str,
        layers: tuple[str, ...],
        entry: str,
        *,
        has_accessors: bool,
    ) -> None:
        self._draw = draw
        self._family = family
        self._layers = layers
        self._entry = entry
        self.has_accessors = has_accessors

    def head(self, suffix: str = "") -> str:
        names = f"a{suffix}, b{suffix}, t{suffix}"
        return f"{names} = 1.5, 2, {TENSOR[self._family]}\n{LAYERS[self._family]}"

    def _writer(self) -> BlockWriter:
        writer = BlockWriter(self._draw, self._family, self._layers, self._entry)
        writer.has_accessors = self.has_accessors
        return writer

    def body(self, depth: int = 2, *, is_seen: bool = True, ending: bool = False) -> str:
        """Draw the statements of a block."""
        writer = self._writer()
        text = writer.block(depth)
        if ending and self._entry in BLOCKS and self._draw.random() < 0.3:
            way = self._draw.choice(("cache", "backward", "backward"))
            text = f"cache = tracer.cache()\n{text}" if way == "cache" else writer.backward()
        if not is_seen:
            # an edit has no tracer
            while "tracer" in text:
                text = self._writer().block(depth)
            return text
        return f"{text}\n{SEEN}" if self._entry in FUNCTIONS else f"{text}\n{SEEN}.save()"

    def generation(self) -> str:
        """Draw a block with a loop over steps."""
        lines = []
        if self._draw.random() < 0.3:
            lines.append(self._writer().statement(1))
        if self._draw.random() < 0.2:
            lines.append("tracer.next()")
            lines.append(self._writer().statement(1))
        if self._draw.random() < 0.8:
            lines.append("r = [].save()")
            key = self._draw.choice(_STEPS)
            loops = (f"for step in tracer.iter{key}:", f"with tracer.iter{key} as step:")
            lines.append(self._draw.choice(loops if self._entry in BLOCKS else loops[:1]))
            if self._entry == "carried":
                lines[-2] = "r = save([])"
            lines.append(indent(f"{self._writer().block(1)}\nr.append(t)", "    "))
        if self._draw.random() < 0.4:
            ends = ("c = tracer.result", "c = model.generator.output")
            lines.append(self._draw.choice(ends))
        lines.append(SEEN if self._entry in FUNCTIONS else f"{SEEN}.save()")
        return "\n".join(lines)

    def invokes(self, n_steps: int) -> tuple[tuple[Part, ...], str, str]:
        """Draw several blocks of one run, the head before it, and what comes before them."""
        draw = self._draw
        number = draw.randint(2, 3)
        bodies, heads = [], []
        for order in range(number):
            suffix = f"_{order}"
            text = self.generation() if n_steps else self.body(1)
            bodies.append(_renamed(text, suffix).splitlines())
            heads.append(self.head(suffix))
        told, fetched, before = "", "", ""
        if draw.random() < 0.5:
            reader = draw.randrange(1, number)
            told, fetched = "s1", f"_{reader}"
            _insert(draw, bodies[0], f"s1 = {self._tensor()}")
            use = draw.choice(
                (
                    f"t{fetched} = s1 * 2",
                    f"a{fetched} = s1.sum().item()",
                    f"{self._place()}.output[:] = s1.sum()",
                )
            )
            _insert(draw, bodies[reader], use)
        if draw.random() < 0.3:
            before = "m = tracer.barrier(2)"
            for body in bodies[:2]:
                _insert(draw, body, "m()")
        prompts: list[int | None] = [None] * number
        if self._family != "stack":
            prompts = [*range(number)]
            if draw.random() < 0.3:
                prompts[draw.randrange(number)] = None
        parts = tuple(
            Part(
                "\n".join(body),
                prompt,
                (told,) if told and order == 0 else (),
                (told,) if told and f"_{order}" == fetched else (),
            )
            for order, (body, prompt) in enumerate(zip(bodies, prompts, strict=True))
        )
        return parts, "\n".join(heads), before

    def _place(self) -> str:
        writer = self._writer()
        usual = [n for n in range(len(writer.kinds)) if not writer.is_tuple(n)]
        return writer.place(self._draw.choice(usual or [0]))

    def _tensor(self) -> str:
        writer = self._writer()
        layer = self._draw.randrange(len(writer.kinds))
        return f"{writer.place(layer)}.output{'[0]' if writer.is_tuple(layer) else ''}"


def _insert(draw: random.Random, lines: list[str], line: str) -> None:
    """Put a statement somewhere between the outermost ones of a block."""
    starts = [statement.lineno - 1 for statement in ast.parse("\n".join(lines)).body]
    lines.insert(draw.choice(starts), line)


class _Renamed(ast.NodeTransformer):
    """Gives the names that a block binds a suffix, so that no other block binds them, too."""

    def __init__(self, names: set[str], suffix: str) -> None:
        self._names, self._suffix = names, suffix

    def visit(self, node: ast.AST) -> ast.AST:
        for field in ("id", "name", "arg"):
            name = getattr(node, field, None)
            if isinstance(name, str) and name in self._names and not isinstance(node, ast.alias):
                setattr(node, field, name + self._suffix)
        return self.generic_visit(node)


def _renamed(text: str, suffix: str) -> str:
    tree = ast.parse(text)
    names = set("abct")
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
            names.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.ExceptHandler, ast.MatchAs)):
            names.add(node.name or "")
        elif isinstance(node, ast.arg):
            names.add(node.arg)
    return ast.unparse(_Renamed(names - {""}, suffix).visit(tree))
