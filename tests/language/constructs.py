"""The constructs of the language, each with an access of a model value inside.

A row's statements run through every entry point (`test_entry_points.py`), and once in plain Python
on a reference (`reference.py`), which says what the names that it saves have to be.
`docs/language.md` has a line for each row.
"""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import dedent, indent

LOWERED, CARRIED, REFUSED = "lowered", "carried", "refused"
ACCESS = "model.layers[1].output"


@dataclass(frozen=True)
class Construct:
    """One row.

    Attributes:
        name: as in `docs/language.md`.
        how: lowered, carried or refused.
        body: statements of a block, or "" if `text` says where the block stands.
        saved: names that leave.
        before: statements in front of the block.
        after: statements behind it.
        opening: what opens the block.
        oracle: other statements for plain Python, where the block's are none there.
        text: a whole module text, in which `ACCESS` may be replaced by the call of an `@intervene`
            function.
        remedy: part of the message of a refusal.
        refused_alone: text of an `@intervene` function that is refused likewise.
    """

    name: str
    how: str
    body: str = ""
    saved: tuple[str, ...] = ()
    before: str = ""
    after: str = ""
    opening: str = "model.trace(x)"
    oracle: str = ""
    text: str = ""
    remedy: str = ""
    refused_alone: str = ""

    def module_text(self, *, body: str | None = None) -> str:
        """The block at the top level of a module."""
        if self.text:
            return self.text
        block = f"with {self.opening} as tracer:\n{indent(body or self.body, '    ')}\n"
        return f"{self.before}{block}{self.after}"

    def function_text(self) -> str:
        """The block in a function, whose locals it binds."""
        names = ", ".join(f"{name!r}: {name}" for name in self.saved)
        block = f"with {self.opening} as tracer:\n{indent(self.body, '    ')}\n"
        inside = indent(f"{block}return {{{names}}}\n", "    ")
        call = "globals().update(place())\n"
        return f"{self.before}def place():\n{inside}{call}{self.after}"

    def carried_text(self) -> str:
        """The same statements in a function that the block calls: every access is carried."""
        return self._in_function("def steered(model, tracer):", self._block_that_calls())

    def intervention_text(self, *, alone: bool) -> str:
        """The same statements in an `@intervene` function, run by itself or called in a block."""
        if self.text:
            call = f"@intervene\ndef access(model):\n    return {ACCESS}\n"
            return call + self.text.replace(ACCESS, "access(model)")
        model, _, rest = self.opening.partition(".trace(")
        run = f"globals().update(steered.run({model}, {rest})\n"
        head = "@intervene\ndef steered(model, tracer):"
        return self._in_function(head, run if alone else self._block_that_calls())

    def _block_that_calls(self) -> str:
        model = self.opening.partition(".")[0]
        return (
            f"with {self.opening} as tracer:\n"
            f"    found = save(steered({model}, tracer))\n"
            "globals().update(found)\n"
        )

    def _in_function(self, head: str, call: str) -> str:
        names = ", ".join(f"{name!r}: {name}" for name in self.saved)
        model = self.opening.partition(".")[0]
        body = f"{self.body}\nreturn {{{names}}}"
        if model != "model":
            body = body.replace(f"{model}.", "model.")
        body = body.replace("layers[", "model.layers[").replace("model.model.", "model.")
        return f"{self.before}{head}\n{indent(body, '    ')}\n{call}{self.after}"

    def reference_text(self) -> str:
        """What plain Python runs."""
        return self.module_text(body=self.oracle or None)


def _text(text: str) -> str:
    return dedent(text).lstrip("\n").rstrip() + "\n" if text.strip() else ""


def _row(name: str, how: str, body: str, saved: str, **more: str) -> Construct:
    more = {key: _text(one) if key != "opening" else one for key, one in more.items()}
    return Construct(name, how, _text(body).rstrip(), tuple(saved.split()), **more)


def _placed(name: str, how: str, text: str, saved: str, **more: str) -> Construct:
    return Construct(name, how, text=_text(text), saved=tuple(saved.split()), **more)


def _refused(name: str, text: str, remedy: str, alone: str = "") -> Construct:
    return Construct(name, REFUSED, text=_text(text), remedy=remedy, refused_alone=_text(alone))


LANGUAGE = (
    _row("read", LOWERED, "h = layers[2].output.save()", "h"),
    _row("input", LOWERED, "h = layers[2].input.save()", "h"),
    _row("write", LOWERED, "layers[1].output = layers[1].output * 2\ny = model.output.save()", "y"),
    _row(
        "list comprehension",
        LOWERED,
        "norms = [layers[i].output.norm() for i in range(3)].save()",
        "norms",
    ),
    _row(
        "set comprehension",
        LOWERED,
        "sums = {round(layers[i].output.sum().item(), 3) for i in range(3)}.save()",
        "sums",
    ),
    _row(
        "dict comprehension",
        LOWERED,
        "named = {f'h{i}': layers[i].output for i in range(3)}.save()",
        "named",
    ),
    _row(
        "generator expression",
        CARRIED,
        "total = sum(layers[i].output.sum() for i in range(3)).save()",
        "total",
    ),
    _row(
        "lazy generator expression",
        CARRIED,
        """
        lazy = (layers[i].output for i in range(6))
        first = next(lazy).save()
        some = any(bool(layers[i].output.sum() < 1e9) for i in range(1, 99)).save()
        y = layers[2].output.save()
        """,
        "first some y",
    ),
    _row(
        "nested comprehension",
        LOWERED,
        "table = [[layers[i].output[j, 0].item() for j in range(2)] for i in range(3)].save()",
        "table",
    ),
    _row(
        "comprehension with two loops and conditions",
        LOWERED,
        """
        found = [(i, h[j, 0].item()) for i in range(4) if layers[i].output.sum() > -9
                 for h in [layers[i].output] for j in range(2) if h[j, 1] > -9].save()
        """,
        "found",
    ),
    _row(
        "lambda",
        CARRIED,
        "read = lambda i, factor=2: layers[i].output * factor\npair = [read(0), read(2, 3)].save()",
        "pair",
    ),
    _row(
        "nested def",
        CARRIED,
        "def read(i):\n    return layers[i].output\npair = [read(0), read(2)].save()",
        "pair",
    ),
    _row(
        "recursive def",
        CARRIED,
        """
        def total(i):
            return layers[i].output.sum() + (total(i + 1) if i < 3 else 0)
        t = total(0).save()
        """,
        "t",
    ),
    _row(
        "def with defaults",
        CARRIED,
        """
        def read(i=1, *rest, base=layers[0].output, **named):
            return base + layers[i].output, rest, named
        found = [read(), read(2, 3, 4, k=5)].save()
        """,
        "found",
    ),
    _row(
        "closure",
        CARRIED,
        """
        def reader(factor):
            def read(i):
                return layers[i].output * factor
            return read
        pair = [reader(2)(0), reader(3)(1)].save()
        """,
        "pair",
    ),
    _row(
        "nonlocal in a nested def",
        CARRIED,
        """
        def counted():
            count = 0
            def add(i):
                nonlocal count
                count += layers[i].output.sum().item()
            add(0)
            add(1)
            return count
        count = save(counted())
        """,
        "count",
    ),
    _row(
        "global in a nested def",
        CARRIED,
        """
        def keep(i):
            global KEPT
            KEPT = layers[i].output.sum().item()
        keep(1)
        kept = save(KEPT)
        """,
        "kept",
        after="again = KEPT",
    ),
    _row(
        "decorated def",
        CARRIED,
        """
        @elsewhere.twice
        def read(i):
            return layers[i].output
        h = read(1).save()
        """,
        "h",
    ),
    _row(
        "f-string",
        CARRIED,
        "text = f'{layers[0].output.sum().item():.3f} {layers[1].output.shape!r:>{30}}'.save()",
        "text",
    ),
    _row(
        "walrus",
        LOWERED,
        "if (h := layers[0].output).sum() < 1e9:\n    kept = [h, (last := h * 2)].save()",
        "kept",
    ),
    _row(
        "chained assignment",
        LOWERED,
        """
        a = b = layers[0].output
        c = layers[1].output = layers[1].output * 2
        found = [a, b, c, layers[2].output].save()
        """,
        "found",
    ),
    _row("annotated assignment", LOWERED, "h: torch.Tensor = layers[1].output.save()", "h"),
    _row(
        "augmented assignment",
        LOWERED,
        "total = 0.0\ntotal += layers[0].output\nlayers[1].output += total\n"
        "y = [total, model.output].save()",
        "y",
    ),
    _row(
        "augmented assignment of an element",
        LOWERED,
        "layers[1].output[:, -1] += 2\ny = model.output.save()",
        "y",
    ),
    _row(
        "augmented assignment in a tuple's tensor",
        LOWERED,
        "gpt2.transformer.h[1].attn.output[0][:, -1] += 2\ny = gpt2.lm_head.output.save()",
        "y",
        opening="gpt2.trace('the red cat')",
    ),
    _row(
        "assignment to an element of a tuple",
        LOWERED,
        """
        attn = gpt2.transformer.h[1].attn
        attn.output[0] = attn.output[0] * 2
        y = gpt2.lm_head.output.save()
        """,
        "y",
        opening="gpt2.trace('the red cat')",
        oracle="""
        attn = gpt2.transformer.h[1].attn
        attn.output = (attn.output[0] * 2, *attn.output[1:])
        y = gpt2.lm_head.output
        """,
    ),
    _row(
        "del",
        LOWERED,
        """
        h = layers[0].output
        kept = [h, layers[1].output].save()
        del h, kept[1]
        """,
        "kept",
    ),
    _row(
        "starred unpacking",
        LOWERED,
        """
        first, *rest = layers[0].output, layers[1].output, layers[2].output
        found = [*rest, first].save()
        """,
        "found",
    ),
    _row(
        "nested unpacking",
        LOWERED,
        """
        (a, (b, *c)), [d] = (layers[0].output, (layers[1].output, 1, 2)), [layers[2].output]
        found = [a, b, c, d].save()
        """,
        "found",
    ),
    _row(
        "unpacked arguments",
        LOWERED,
        "found = torch.stack(*[[layers[0].output, layers[1].output]], **{'dim': 1}).save()",
        "found",
    ),
    _row(
        "conditional expression",
        LOWERED,
        """
        h = (layers[0].output if layers[0].output.sum() < 1e9 else layers[5].output).save()
        y = layers[1].output.save()
        """,
        "h y",
    ),
    _row(
        "and, or",
        LOWERED,
        """
        no = 0 and layers[5].output
        yes = layers[0].output.sum().item() or layers[5].output
        found = [no, yes, not layers[1].output.sum().item()].save()
        """,
        "found",
    ),
    _row(
        "chained comparison",
        LOWERED,
        """
        found = [0 < -1 < layers[5].output.sum(), -99 < layers[0].output.sum().item() < 99].save()
        y = layers[1].output.save()
        """,
        "found y",
    ),
    _row(
        "try, except, else, finally",
        LOWERED,
        """
        try:
            layers[0].output.no_such_attribute
        except AttributeError as error:
            caught = [layers[0].output, type(error).__name__].save()
        else:
            log.append("else")
        finally:
            log.append(layers[1].output.sum().item())
        try:
            h = layers[2].output.save()
        except ValueError:
            log.append("except")
        else:
            y = layers[3].output.save()
        """,
        "caught h y",
    ),
    _row(
        "except*",
        LOWERED,
        """
        try:
            raise ExceptionGroup("g", [ValueError(layers[0].output.sum().item()), KeyError("k")])
        except* ValueError as group:
            values = [group.exceptions[0].args[0], layers[1].output].save()
        except* KeyError:
            keys = [layers[2].output].save()
        """,
        "values keys",
    ),
    _row(
        "StopIteration",
        LOWERED,
        """
        try:
            raise StopIteration(layers[0].output.sum().item())
        except StopIteration as error:
            value = [error.value, layers[1].output].save()
        """,
        "value",
    ),
    _row(
        "with a context manager",
        CARRIED,
        """
        with elsewhere.Around(log, layers[0], layers[2]) as h:
            kept = [h, layers[1].output].save()
            raise ValueError
        y = layers[3].output.save()
        """,
        "kept y",
    ),
    _row(
        "with several items",
        LOWERED,
        """
        with (
            elsewhere.noted(log, "a") as a,
            elsewhere.noted(log, layers[0].output.sum().item()) as b,
        ):
            found = [a, b, layers[1].output].save()
        with elsewhere.noted(log, "c"), elsewhere.noted(log, "d"):
            layers[2].output[:] = 0
        y = model.output.save()
        """,
        "found y",
    ),
    _row(
        "with torch.no_grad()",
        LOWERED,
        """
        with torch.no_grad():
            h = (layers[0].output * 2).save()
            state = [torch.is_grad_enabled(), h.requires_grad].save()
        after = [torch.is_grad_enabled(), layers[1].output.requires_grad].save()
        """,
        "h state after",
    ),
    _row(
        "assignment to an element in torch.no_grad()",
        LOWERED,
        """
        with torch.no_grad():
            layers[1].output[:, -1] -= 2
            layers[1].output[:, 0] = layers[1].output[:, 1]
        y = model.output.save()
        """,
        "y",
    ),
    _row(
        "match",
        LOWERED,
        """
        match layers[0].output.shape, layers[1].output.sum().item():
            case (2, 9), _:
                found = [1].save()
            case (rows, columns), value if layers[2].output.sum() < 1e9:
                found = [rows, columns, value, layers[3].output].save()
            case _:
                found = [3].save()
        """,
        "found",
    ),
    _row(
        "while, else",
        LOWERED,
        """
        i, total = 0, []
        while layers[i].output.sum() < 1e9 and i < 3:
            total.append(layers[i].output)
            i += 1
        else:
            total.append(layers[i].output)
        total.save()
        """,
        "total",
    ),
    _row(
        "for, break, continue, else",
        LOWERED,
        """
        found = [].save()
        for i, layer in enumerate(layers):
            if i == 1:
                continue
            found.append(layer.output)
            if layers[i].output.sum() < 1e9 and i == 3:
                break
        else:
            found.append("else")
        for i in range(4, 6):
            found.append(layers[i].output)
        else:
            found.append("else")
        """,
        "found",
    ),
    _row(
        "assert",
        LOWERED,
        """
        assert layers[0].output.sum() < 1e9, layers[5].output
        try:
            assert layers[1].output is None, layers[2].output.sum().item()
        except AssertionError as error:
            message = [*error.args].save()
        """,
        "message",
    ),
    _row(
        "raise, from",
        LOWERED,
        """
        try:
            raise ValueError(layers[0].output.sum().item()) from KeyError(layers[1].output.shape)
        except ValueError as error:
            parts = [error.args, error.__cause__.args, layers[2].output].save()
        """,
        "parts",
    ),
    _row(
        "import",
        LOWERED,
        """
        import math
        from os import path as found
        root = save(math.sqrt(abs(layers[0].output.sum().item())))
        name = save(found.join("a", str(layers[1].output.shape)))
        """,
        "root name",
    ),
    _row(
        "class body",
        CARRIED,
        """
        class Found:
            hidden = layers[0].output
            twice = hidden * 2
            def read(self):
                return layers[1].output
        found = [Found.hidden, Found.twice, Found().read()].save()
        """,
        "found",
    ),
    _row(
        "docstring",
        LOWERED,
        '''
        """What this block does."""
        h = layers[1].output.save()
        ''',
        "h",
    ),
    _row(
        "several statements in a line",
        LOWERED,
        "h = layers[0].output; k = h + layers[1].output; found = [h, k].save()",
        "found",
    ),
    _row(
        "statement of several lines",
        LOWERED,
        """
        found = [
            layers[0].output,  # the first
            (layers[1]
             .output
             .sum()),
            layers[2].output \\
                * 2,
        ].save()
        """,
        "found",
    ),
    _row(
        "locals()",
        LOWERED,
        "h = layers[0].output\nnames = sorted(n for n in locals() if n in ('h', 'zz')).save()",
        "names",
    ),
    _placed(
        "one-line body",
        LOWERED,
        f"with model.trace(x): h = {ACCESS}.save()",
        "h",
    ),
    _placed(
        "several with items",
        LOWERED,
        f"""
        with torch.no_grad(), model.trace(x) as t, elsewhere.noted(log, "a") as a:
            h = {ACCESS}.save()
            name = [a, torch.is_grad_enabled()].save()
        """,
        "h name",
    ),
    _placed(
        "block in a loop",
        LOWERED,
        f"""
        found = []
        for factor in range(3):
            with model.trace(x * factor):
                h = {ACCESS}.save()
            found.append(h)
        """,
        "found",
    ),
    _placed(
        "block in a method",
        LOWERED,
        f"""
        class Base:
            def own(self, h):
                return h * 2
        class User(Base):
            def __init__(self, model):
                self.__model = model
            def own(self, h):
                model = self.__model
                with model.trace(x):
                    __h = super().own({ACCESS}).save()
                return __h
        h = User(model).own(None)
        """,
        "h",
    ),
    _placed(
        "block in a class body",
        LOWERED,
        f"""
        class User:
            factor = 2
            with model.trace(x):
                h = ({ACCESS} * factor).save()
        h = User.h
        """,
        "h",
    ),
    _placed(
        "block in a function with free variables",
        LOWERED,
        f"""
        def outer(factor):
            found = []
            def inner():
                with model.trace(x):
                    h = ({ACCESS} * factor).save()
                found.append(h)
                return lambda: (h, factor)
            return inner()(), found
        found = outer(3)
        """,
        "found",
    ),
    _placed(
        "two traces in one with",
        CARRIED,
        f"""
        with model.trace(x) as one, other.trace(x) as two:
            h = {ACCESS}.save()
            k = other.layers[1].output.save()
        """,
        "h k",
    ),
    _placed(
        "block in async code",
        LOWERED,
        f"""
        async def user():
            await asyncio.sleep(0)
            with model.trace(x):
                h = {ACCESS}.save()
            await asyncio.sleep(0)
            return h
        h = run_async(user())
        """,
        "h",
    ),
    _placed(
        "block in a generator",
        LOWERED,
        f"""
        def user():
            for factor in range(2):
                with model.trace(x * factor):
                    h = {ACCESS}.save()
                yield h
        found = list(user())
        """,
        "found",
    ),
    _placed(
        "block in try, finally",
        LOWERED,
        f"""
        try:
            with model.trace(x):
                h = {ACCESS}.save()
                raise KeyError("k")
        except KeyError as error:
            found = [error.args, h]
        finally:
            log.append("finally")
        """,
        "found",
    ),
    _placed(
        "return without a value, at the end of a function",
        LOWERED,
        """
        seen = []
        def place(most):
            if most > 0:
                with model.trace(x):
                    h = layers[1].output
                    try:
                        seen.append(h * 1)
                        for i in range(3):
                            if h.sum() < most:
                                return
                    finally:
                        log.append("finally")
                    seen.append(layers[2].output * 1)
            else:
                with model.trace(x):
                    seen.append(layers[3].output * 1)
                    return None
        place(1e9)
        place(1e-9)
        place(0)
        """,
        "seen",
    ),
    _placed(
        "return out of an @intervene function",
        CARRIED,
        """
        @intervene
        def pick(model, most):
            for layer in model.layers:
                try:
                    if layer.output.sum() < most:
                        return layer.output
                finally:
                    log.append("finally")
        with model.trace(x):
            h = pick(model, 1e9).save()
            nothing = save(pick(model, -1e9))
        """,
        "h nothing",
    ),
)

HELPERS = (
    _row(
        "function that reads",
        CARRIED,
        "h = read(layers[1]).save()",
        "h",
        before="def read(layer): return elsewhere.read(layer)",
    ),
    _row(
        "function that writes",
        CARRIED,
        "double(layers[1])\ny = model.output.save()",
        "y",
        before="""
        def double(layer):
            layer.output = layer.output * 2
            layer.output[:, 0] += 1
        """,
    ),
    _row("method", CARRIED, "h = elsewhere.Probe(layers[1]).hidden(factor=3).save()", "h"),
    _row(
        "property",
        CARRIED,
        """
        probe = elsewhere.Probe(layers[1])
        norm = probe.norm.save()
        probe.norm = 7
        y = model.output.save()
        """,
        "norm y",
    ),
    _row(
        "functools.partial",
        CARRIED,
        "read = functools.partial(elsewhere.Probe.hidden, factor=2)\n"
        "h = read(elsewhere.Probe(layers[1])).save()",
        "h",
    ),
    _row(
        "decorated function", CARRIED, "h = elsewhere.twice(elsewhere.read)(layers[1]).save()", "h"
    ),
    _row(
        "closure of a helper",
        CARRIED,
        "h = reader(3)(layers[1]).save()",
        "h",
        before="""
        def reader(factor):
            def read(layer):
                return layer.output * factor
            return read
        """,
    ),
    _row(
        "recursive helper",
        CARRIED,
        "found = below(list(layers[:4])).save()",
        "found",
        before="""
        def below(layers):
            return [layers[0].output, *below(layers[1:])] if layers else []
        """,
    ),
    _row(
        "generator consumed in the block",
        CARRIED,
        """
        found = [].save()
        for h in elsewhere.each(layers):
            found.append(h)
            if len(found) == 3:
                break
        found.append(layers[3].output)
        """,
        "found",
    ),
    _row(
        "function named as ours are",
        CARRIED,
        "h = block(layers[1]).save()\nblock_0 = [names(layers[2])].save()",
        "h block_0",
        before="def block(layer): return layer.output\nnames = block",
    ),
    _row("helper in another module", CARRIED, "h = elsewhere.read(layers[1]).save()", "h"),
    _row(
        "third-party package",
        CARRIED,
        """
        keys = functools.cache(lambda i: elsewhere.number(layers[i]))
        found = list(sortedcontainers.SortedKeyList(range(3), key=keys)).save()
        """,
        "found",
    ),
    _row("map", CARRIED, "found = list(map(elsewhere.read, layers[:3])).save()", "found"),
    _row(
        "sorted",
        CARRIED,
        "found = [n for n, _ in sorted(enumerate(layers), key=lambda p: p[1].output.sum().item())]"
        ".save()",
        "found",
    ),
    _row(
        "max",
        CARRIED,
        "found = save(max(range(4), key=lambda i: layers[i].output.sum()))",
        "found",
    ),
    _row(
        "functools.reduce",
        CARRIED,
        "t = functools.reduce(lambda t, layer: t + layer.output, layers[:3], 0).save()",
        "t",
    ),
    _row(
        "operator.attrgetter",
        CARRIED,
        "found = [*map(operator.attrgetter('output'), layers[:2]), "
        "getattr(layers[2], 'output')].save()",
        "found",
    ),
    _row(
        "tree_map",
        CARRIED,
        "found = tree_map(lambda i: layers[i].output, {'a': 0, 'b': [1, (2,)]}).save()",
        "found",
    ),
    _row(
        "accessor object",
        CARRIED,
        """
        hidden = elsewhere.Accessor(layers)
        h = hidden[0]
        found = [h, h in hidden, hidden.layer_1, len(hidden)].save()
        """,
        "found",
    ),
    _row(
        "operator of an object",
        CARRIED,
        """
        hidden = elsewhere.Accessor(layers)
        total = (hidden + 1).save()
        """,
        "total",
    ),
    _row(
        "iteration of an object",
        CARRIED,
        "first, second, *rest = elsewhere.Accessor(layers)\nfound = [first, second, rest].save()",
        "found",
    ),
    _row(
        "plain object with an output",
        LOWERED,
        """
        box.output = 1
        box.output += 2
        found = [box.output, layers[1].output].save()
        """,
        "found",
        before="import types\nbox = types.SimpleNamespace()",
    ),
    _row(
        "@intervene function",
        CARRIED,
        "steer(model, 1, scale=3.0)\ny = model.output.save()",
        "y",
        before="""
        @intervene
        def steer(model, layer: int, scale: float = 1.0):
            model.layers[layer].output[:, -1] += scale
        """,
    ),
    _row(
        "@intervene function in another",
        CARRIED,
        "h = outer(model).save()",
        "h",
        before="""
        @intervene
        def inner(model, layer: int):
            return model.layers[layer].output
        @intervene
        def outer(model):
            return inner(model, 0) + inner.bind(layer=1)(model)
        """,
    ),
)


def _refusal(
    name: str, body: str, remedy: str, *, alone: bool = True, is_async: bool = False
) -> Construct:
    kind = "async def" if is_async else "def"
    call = "run_async(place())" if is_async else "next(iter(place() or ()), None)"
    text = f"{kind} place():\n    for i in range(2):\n        with model.trace(x):\n"
    text += indent(_text(body), " " * 12) + f"{call}\n"
    own = f"@intervene\n{kind} block(model):\n{indent(_text(body), '    ')}" if alone else ""
    return _refused(name, text, remedy, own)


REFUSALS = (
    _refusal("return", f"h = {ACCESS}\nreturn h", "return it after the block", alone=False),
    _refusal(
        "return before other statements",
        f"if {ACCESS} is not None:\n    return",
        "put the rest of the block under an 'if'",
        alone=False,
    ),
    _refusal("break", f"if {ACCESS} is None:\n    break", "leave the loop after", alone=False),
    _refusal("continue", f"if {ACCESS} is None:\n    continue", "leave the loop", alone=False),
    _refusal("yield", f"yield {ACCESS}", "yield it after the block"),
    _refusal("yield from", f"yield from {ACCESS}", "yield them after the block"),
    _refusal("await", f"await asyncio.sleep({ACCESS})", "before or after", is_async=True),
    _refusal("async with", f"async with {ACCESS}:\n    pass", "around the block", is_async=True),
    _refusal("async for", f"async for i in {ACCESS}:\n    pass", "before the block", is_async=True),
    _refusal(
        "async comprehension", f"h = [i async for i in {ACCESS}]", "before the block", is_async=True
    ),
    _refusal("global", f"global KEPT\nKEPT = {ACCESS}.save()", "assign the global after"),
    _refused(
        "nonlocal",
        f"""
        def place():
            kept = None
            def inner():
                with model.trace(x):
                    nonlocal kept
                    kept = {ACCESS}.save()
            inner()
        place()
        """,
        "assign the name after",
        alone=f"""
        def place():
            kept = None
            @intervene
            def block(model):
                nonlocal kept
                kept = {ACCESS}
        place()
        """,
    ),
    _refused(
        "import *",
        f"with model.trace(x):\n    from math import *\n    h = {ACCESS}.save()",
        "import the names",
    ),
)

ALL = (*LANGUAGE, *HELPERS, *REFUSALS)
MEANT = (*LANGUAGE, *HELPERS)
BY_NAME = {row.name: row for row in ALL}
