"""Random programs from a seed."""

from __future__ import annotations

import random
from typing import Any

from tests.differential.programs import BLOCKS, FUNCTIONS, SEEN, Part, Program
from tests.differential.worlds import EVENTS, KINDS, LANGUAGE
from tests.language.random_blocks import Writer

_USUAL_KINDS = ("linear", "nested", "pair")
_NOT_FOR_LANGUAGE = {"another dtype", "more rows", "training"}
_SEEN_IN_A_SKIP = {"a failing hook", "an interrupt", "training"}
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
        self._in_block = entry not in FUNCTIONS
        # in a function of the user's, which is not rewritten, only tensors have a method `save`
        self._has_save = entry != "carried"
        if self._places is not None:
            self.first_row = "[0][0]"

    def place(self, layer: int) -> str:
        return self._places[layer][0] if self._places else super().place(layer)

    def _simple(self) -> str:
        if self._below(4):
            return super()._simple()
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
        text = self._choose("skip", "skip", "stop", "result", "output", "call", "probe", "accessor")
        last = len(self._kinds) - 1
        if text == "skip":
            self._at = min(self._at + 1, last)
            place = self.place(self._at)
            value = (
                f"({place}.input, 'skipped')" if self.is_tuple(self._at) else f"{place}.input * 2"
            )
            return f"{place}.skip({value})\nt = {place}.output"
        if text == "stop":
            return f"if {self.number(0)} > 0.5:\n    tracer.stop()"
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
    family = draw.choice(["stack"] * 6 + list(LANGUAGE))
    is_language = family in LANGUAGE
    kinds: tuple[str, ...] = ()
    if not is_language:
        some = _USUAL_KINDS if draw.random() < 0.5 else KINDS
        kinds = tuple(draw.choice(some) for _ in range(draw.randint(2, 4)))
    entry = draw.choice((*BLOCKS, *FUNCTIONS))
    parts, before, n_steps, is_direct = _parts(draw, family, kinds, entry)
    events = [event for event in EVENTS if not (is_language and event in _NOT_FOR_LANGUAGE)]
    if any(".skip(" in part.body for part in parts):
        # plain hooks cannot keep a module from being called, only throw away what it returns
        events = [event for event in events if event not in _SEEN_IN_A_SKIP]
    n_entries = draw.randint(2, 4)
    drawn_events = tuple(
        "nothing" if draw.random() < 0.4 else draw.choice(events) for _ in range(n_entries)
    )
    return Program(
        seed, family, kinds, parts, is_direct, before, n_steps, entry, draw.random() < 0.5,
        drawn_events,
    )  # fmt: skip


def _parts(
    draw: random.Random, family: str, kinds: tuple[str, ...], entry: str
) -> tuple[tuple[Part, ...], str, int, bool]:
    def body(depth: int = 2) -> str:
        writer = BlockWriter(draw, family, kinds, entry)
        text = writer.block(depth)
        if family == "stack":
            return f"{text}\n{SEEN}" if entry in FUNCTIONS else f"{text}\n{SEEN}.save()"
        return f"{text}\n{SEEN}" if entry in FUNCTIONS else f"{text}\n{SEEN}.save()"

    return (Part(body()),), "", 0, True
