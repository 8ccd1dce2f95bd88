"""A name that a block may not have bound yet is the one around the block."""

import linecache
from textwrap import indent

import pytest
import torch
from torch import nn

from nnsight_dsl import NNsight

X = torch.ones(1, 3)

# each may bind b, or seems to, and then reads it
STATEMENTS = {
    "a walrus in a lambda": "c = (lambda p: (b := 1))(b)\nd = b\nb = 3",
    "a lambda that is not called": "f = lambda: (b := 5)\nd = b\nb = 3",
    "a lambda's parameter": "f = (lambda b: b)(7)\nd = b\nb = 3",
    "a lambda's default": "f = (lambda p=b: p)()\nd = f\nb = 3",
    "a with that swallows an error": (
        "with contextlib.suppress(ZeroDivisionError):\n    1 // 0\n    b = 1\nd = b"
    ),
    "a with in a with": (
        "with contextlib.suppress(ZeroDivisionError):\n"
        "    with torch.no_grad():\n        1 // 0\n        b = 1\nd = b"
    ),
    "a with that comes to its end": "with contextlib.nullcontext():\n    b = 1\nd = b",
    "and": "c = 0 and (b := 1)\nd = b",
    "a chained comparison": "c = 5 < 1 < (b := 9)\nd = b",
    "an assertion's message": "assert True, (b := 3)\nd = b",
    "a guard": "match 3:\n    case 1 if (b := 4): pass\n    case _: pass\nd = b",
    "a pattern": "match 3:\n    case [b]: pass\n    case _: pass\nd = b",
    "an empty comprehension": "c = [(b := 1) for i in ()]\nd = b",
    "an empty loop": "for b in (): pass\nwhile False: b = 3\nd = b",
    "a clause that is not reached": "try: pass\nexcept ValueError: b = 1\nd = b",
}


@pytest.mark.parametrize("where", ["trace", "invoke"])
@pytest.mark.parametrize("name", STATEMENTS)
def test_a_name_that_is_not_bound_for_sure(name: str, where: str) -> None:
    statements = STATEMENTS[name]
    names = {"contextlib": __import__("contextlib"), "torch": torch, "b": 2}
    exec(statements, names)

    body = f"{statements}\nd = [d, model[0].output.shape].save()"
    if where == "invoke":
        body = f"with tracer.invoke():\n{indent(body, '    ')}"
    text = (
        "import contextlib, torch\ndef user(model, x):\n    b = 2\n"
        f"    with model.trace(x) as tracer:\n{indent(body, '        ')}\n    return d, b\n"
    )
    filename = f"<scopes of {name} in {where}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    own: dict = {}
    exec(compile(text, filename, "exec"), own)
    found, around = own["user"](NNsight(nn.Sequential(nn.Linear(3, 3))), X)
    assert found == [names["d"], torch.Size([1, 3])]
    assert around == 2


def test_invokes_that_bind_a_name_in_a_with_do_not_wait_for_each_other() -> None:
    from contextlib import nullcontext

    model = NNsight(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    with model.trace(X) as tracer:
        with tracer.invoke():
            with nullcontext():
                hidden = model[1].output
            late = hidden.sum().save()
        with tracer.invoke():
            with nullcontext():
                hidden = model[0].output
            early = hidden.sum().save()
    assert torch.equal(early, model[0]._module(X).sum())
    assert torch.equal(late, model._module(X).sum())
