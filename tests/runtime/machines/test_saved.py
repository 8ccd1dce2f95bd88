"""Which names leave a block: one table, tried in every kind of scope that a block can stand in."""

import linecache
import textwrap

import pytest
import torch

import nnsight_dsl
from nnsight_dsl import NNsight
from tests import models
from tests.models import assert_same

# Each entry: the claim, the block, and the names that leave with their values. Values are Python
# over `a` and `b` (outputs of layers 0 and 1 in a plain run). All other names that the block binds
# stay inside; `outer`, `number` and `items` are bound before the block, and keep their old values
# unless the entry says otherwise.
TABLE = [
    ("a saved tensor leaves", "h = model.layers[0].output.save()", {"h": "a"}),
    ("an unsaved tensor stays", "h = model.layers[0].output", {}),
    (
        "a saved tensor leaves by the function",
        "h = nnsight_dsl.save(model.layers[0].output)",
        {"h": "a"},
    ),
    ("a statement of its own saves a name", "h = model.layers[0].output\nh.save()", {"h": "a"}),
    (
        "a name that is rebound after saving stays",
        "h = model.layers[0].output.save()\nh = model.layers[1].output",
        {},
    ),
    (
        "a name that is rebound to another saved value leaves",
        "h = model.layers[0].output.save()\nh = model.layers[1].output.save()",
        {"h": "b"},
    ),
    (
        "an alias of a saved value leaves",
        "h = model.layers[0].output.save()\nalias = h",
        {"h": "a", "alias": "a"},
    ),
    (
        "an alias made before saving leaves",
        "h = model.layers[0].output\nalias = h\nalias.save()",
        {"h": "a", "alias": "a"},
    ),
    (
        "what is computed from a saved value stays",
        "h = model.layers[0].output.save()\ntwice = h * 2",
        {"h": "a"},
    ),
    ("a saved int leaves", "n = model.layers[0].output.shape[-1].save()", {"n": "4"}),
    ("a saved int leaves by the function", "n = nnsight_dsl.save(5)", {"n": "5"}),
    ("an int that is not saved stays", "n = model.layers[0].output.shape[-1]", {}),
    (
        "an int that equals a saved one stays",
        "n = model.layers[0].output.shape[-1].save()\nm = 4\nk = n",
        {"n": "4"},
    ),
    (
        "saved strings and floats leave",
        "s = 'x'.save()\nhalf = (0.5).save()",
        {"s": "'x'", "half": "0.5"},
    ),
    ("a saved None leaves", "nothing = None.save()\nother = None", {"nothing": "None"}),
    (
        "a saved bool leaves and its equals stay",
        "yes = (model.layers[0].output.numel() > 0).save()\nalso = True",
        {"yes": "True"},
    ),
    (
        "a saved list leaves with what is appended later",
        "found = [].save()\nfound.append(model.layers[0].output)\n"
        "found.append(model.layers[1].output)",
        {"found": "[a, b]"},
    ),
    ("an unsaved list stays", "found = [model.layers[0].output]", {}),
    (
        "a list of saved values stays",
        "found = [model.layers[0].output.save()]",
        {},
    ),
    (
        "a saved dict leaves with what is put in later",
        "found = {}.save()\nfound['a'] = model.layers[0].output\n"
        "found.update(b=model.layers[1].output)",
        {"found": "{'a': a, 'b': b}"},
    ),
    (
        "a saved tuple and set leave",
        "pair = (model.layers[0].output, 1).save()\nsome = {1, 2}.save()",
        {"pair": "(a, 1)", "some": "{1, 2}"},
    ),
    (
        "a saved comprehension leaves",
        "sums = [layer.output.sum() for layer in model.layers[:2]].save()",
        {"sums": "[a.sum(), b.sum()]"},
    ),
    (
        "the variable of a loop stays",
        "found = [].save()\nfor layer in model.layers[:2]:\n    found.append(layer.output)",
        {"found": "[a, b]"},
    ),
    (
        "the variable of a loop over saved values leaves",
        "items_saved = [model.layers[0].output.save(), model.layers[1].output.save()]\n"
        "for last in items_saved:\n    pass",
        {"last": "b"},
    ),
    (
        "a name that is saved in a loop has its last value",
        "for layer in model.layers[:2]:\n    h = layer.output.save()",
        {"h": "b"},
    ),
    (
        "an as target stays",
        "with torch.no_grad() as grad:\n    h = model.layers[0].output",
        {},
    ),
    (
        "an as target that is saved leaves",
        "import contextlib\n"
        "with contextlib.nullcontext(model.layers[0].output) as target:\n    target.save()",
        {"target": "a"},
    ),
    (
        "names in a with leave if they are saved",
        "with torch.no_grad():\n    h = model.layers[0].output.save()",
        {"h": "a.detach()"},
    ),
    (
        "an outer name that is rebound without saving keeps its value",
        "outer = model.layers[0].output",
        {},
    ),
    (
        "an outer name that is rebound and saved changes",
        "outer = model.layers[0].output.save()",
        {"outer": "a"},
    ),
    (
        "an outer int that is rebound without saving keeps its value",
        "number = number + 1\nh = (model.layers[0].output * number).save()",
        {"h": "a * 4"},
    ),
    (
        "an outer int that is counted up keeps its value",
        "number += 1\nnumber += 1\nh = (model.layers[0].output * number).save()",
        {"h": "a * 5"},
    ),
    (
        "an outer int that is rebound and saved changes",
        "number = nnsight_dsl.save(number + 1)\nh = model.layers[0].output",
        {"number": "4"},
    ),
    (
        "an outer list that is changed is changed",
        "items.append(model.layers[0].output.shape[0])",
        {"items": "[1, 2]"},
    ),
    (
        "an outer name that is saved without rebinding is itself",
        "items.save()\nh = model.layers[0].output",
        {"items": "[1]"},
    ),
    (
        "tuple targets leave one by one",
        "p, q = model.layers[0].output.save(), model.layers[1].output",
        {"p": "a"},
    ),
    (
        "tuple targets of saved values leave",
        "p, (q, *rest) = model.layers[0].output.save(), (model.layers[1].output.save(), 1)",
        {"p": "a", "q": "b"},
    ),
    (
        "tuple targets of saved ints leave",
        "p, q = nnsight_dsl.save(1), 2\nh = model.layers[0].output",
        {"p": "1"},
    ),
    (
        "chained targets leave",
        "p = q = model.layers[0].output.save()",
        {"p": "a", "q": "a"},
    ),
    (
        "chained targets of an int leave",
        "p = q = model.layers[0].output.shape[0].save()",
        {"p": "2", "q": "2"},
    ),
    ("a walrus target leaves", "(w := model.layers[0].output.save())", {"w": "a"}),
    ("a walrus target of an int leaves", "print(end='') or (w := nnsight_dsl.save(7))", {"w": "7"}),
    ("an unsaved walrus target stays", "(w := model.layers[0].output).sum()", {}),
    ("an annotated name leaves", "h: object = model.layers[0].output.save()", {"h": "a"}),
    (
        "a name that is augmented after saving is in place",
        "h = model.layers[0].output.clone().detach().save()\nh += 1",
        {"h": "a.detach() + 1"},
    ),
    (
        "a saved tensor edited later shows the edit",
        "h = model.layers[0].output.save()\nmodel.layers[0].output[:] = 0",
        {"h": "a * 0"},
    ),
    (
        "a deleted name does not leave",
        "h = model.layers[0].output.save()\ndel h",
        {},
    ),
    (
        "a function of the block stays",
        "def norm(value):\n    return value.norm()\nn = norm(model.layers[0].output).save()",
        {"n": "a.norm()"},
    ),
    (
        "an import of the block stays",
        "import math as m\nh = (model.layers[0].output * m.pi).save()",
        {"h": "a * 3.141592653589793"},
    ),
    (
        "a name bound in a branch that did not run does not leave",
        "if model.layers[0].output.numel() == 0:\n    h = model.layers[1].output.save()",
        {},
    ),
    (
        "a name bound in a branch that ran leaves",
        "if model.layers[0].output.numel() > 0:\n    h = model.layers[1].output.save()",
        {"h": "b"},
    ),
    (
        "a name of an except clause is gone",
        "try:\n    1 / model.layers[0].output.numel() * None\n"
        "except TypeError as error:\n    kind = type(error).__name__.save()",
        {"kind": "'TypeError'"},
    ),
    (
        "a captured name of a match leaves if saved",
        "match (model.layers[0].output, 1):\n    case (captured, 1):\n        captured.save()",
        {"captured": "a"},
    ),
    (
        "an object that has a save method of its own is not saved by it",
        "own = Own()\nresult = own.save(model.layers[0].output.shape[0])",
        {},
    ),
    (
        "an object that has a save method of its own leaves by the function",
        "own = nnsight_dsl.save(Own())\nresult = own.save(model.layers[0].output.shape[0]).real",
        {"own": "Own()"},
    ),
]

OUTER = {"outer": "old", "number": 3, "items": [1]}


class Own:
    """A class with a `save` of its own."""

    def save(self, value):
        return value + 1

    def __eq__(self, other):
        return isinstance(other, Own)

    __hash__ = None


_SETUP = "outer, number, items = 'old', 3, [1]\n"
_TRACE = "with model.trace(x):\n"


def _block(text: str) -> str:
    return _SETUP + _TRACE + textwrap.indent(text, "    ") + "\n"


def _in_module(text):
    return _block(text) + "found = dict(globals())\n"


def _in_function(text):
    body = _block(text) + "return dict(locals())\n"
    return "def f():\n" + textwrap.indent(body, "    ") + "found = f()\n"


def _in_method(text):
    body = _block(text) + "return dict(locals())\n"
    method = "def f(self):\n" + textwrap.indent(body, "    ")
    return "class C:\n" + textwrap.indent(method, "    ") + "found = C().f()\n"


def _in_class_body(text):
    body = _block(text) + "found_here = dict(locals())\n"
    return "class C:\n" + textwrap.indent(body, "    ") + "found = C.found_here\n"


def _in_closure(text):
    # every name is a cell of the function, because the inner function reads it
    names = sorted({"h", "found", "p", "q", "w", "n", "alias", "s", "f_", *OUTER})
    reads = "".join(f"    try: _ = {name}\n    except NameError: pass\n" for name in names)
    body = f"def peek():\n{reads}" + _block(text) + "peek()\nreturn dict(locals())\n"
    # names that the block does not bind are bound after the return, which makes them local
    body += "".join(f"{name} = None\n" for name in names)
    return "def f():\n" + textwrap.indent(body, "    ") + "found = f()\n"


def _in_nested_function(text):
    # the names from before the block belong to the enclosing function
    inner = "nonlocal outer, number, items\n" + _TRACE + textwrap.indent(text, "    ") + "\n"
    inner += "result = dict(locals())\nreturn result\n"
    body = _SETUP + "def g():\n" + textwrap.indent(inner, "    ") + "return g()\n"
    return "def f():\n" + textwrap.indent(body, "    ") + "found = f()\n"


SCOPES = {
    "module": _in_module,
    "function": _in_function,
    "method": _in_method,
    "class body": _in_class_body,
    "cells": _in_closure,
    "nested function": _in_nested_function,
}


def _run(source: str, namespace: dict) -> dict:
    filename = f"<names {len(linecache.cache)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    namespace.update(torch=torch, nnsight_dsl=nnsight_dsl, Own=Own, __name__="names")
    exec(compile(source, filename, "exec"), namespace)
    return namespace["found"]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("claim", "text", "leaving"), TABLE, ids=[row[0] for row in TABLE])
def test_names_that_leave(model: NNsight, x, outputs, scope, claim, text, leaving) -> None:
    found = _run(SCOPES[scope](text), {"model": model, "x": x})
    a, b = outputs[:2]
    known = {"a": a, "b": b, "Own": Own}
    expected = {name: eval(value, dict(known)) for name, value in leaving.items()}
    ours = {"model", "x", "self", "torch", "nnsight_dsl", "Own", "C", "f", "peek", "g"}
    left = {name for name in found if not name.startswith("__") and name not in ours}
    assert left == {*expected, *OUTER}
    for name, value in {**OUTER, **expected}.items():
        if isinstance(value, (torch.Tensor, list, dict, tuple)):
            assert_same(found[name], value)
        else:
            assert found[name] == value


def test_a_walrus_in_a_comprehension_binds_a_name_of_the_block(model, x, outputs) -> None:
    with model.trace(x):
        found = [w := layer.output for layer in model.layers[:2]].save()
        last = (w * 2).save()
    assert_same(found, outputs[:2])
    assert_same(last, outputs[1] * 2)
    assert "w" not in locals()


def test_aliases_stay_aliases(model: NNsight, x) -> None:
    with model.trace(x):
        first = model.layers[0].output.save()
        second = first
        pair = [first, first].save()
    assert first is second
    assert pair[0] is pair[1] is first


def test_a_saved_object_is_the_object_itself(model: NNsight, x) -> None:
    outside = [0]
    with model.trace(x):
        inside = outside.save()
        inside.append(model.layers[0].output.shape[0])
    assert inside is outside
    assert outside == [0, 2]


def test_a_nonlocal_name_is_rebound_in_its_function(model: NNsight, x, outputs) -> None:
    kept = lost = None

    def run():
        nonlocal kept, lost
        with model.trace(x):
            kept = model.layers[0].output.save()
            lost = model.layers[1].output

    run()
    assert_same(kept, outputs[0])
    assert lost is None


total = None
ignored = "old"


def test_a_global_name_is_rebound_in_its_module(model: NNsight, x, outputs) -> None:
    global total, ignored
    with model.trace(x):
        total = model.layers[0].output.save()
        ignored = model.layers[1].output
    assert_same(globals()["total"], outputs[0])
    assert globals()["ignored"] == "old"


def test_a_block_sees_names_that_are_bound_after_its_function_was_made(model: NNsight, x) -> None:
    def run():
        with model.trace(x):
            scaled = (model.layers[0].output * factor).save()
        return scaled

    factor = 2
    first = run()
    factor = 4
    second = run()
    assert_same(second, first * 2)


def test_an_attribute_target_is_bound_where_it_is(model: NNsight, x, outputs) -> None:
    class Holder:
        pass

    holder = Holder()
    table = {}
    with model.trace(x):
        holder.value = model.layers[0].output
        table["key"] = model.layers[1].output
    assert_same(holder.value, outputs[0])
    assert_same(table["key"], outputs[1])


def test_a_private_name_is_mangled_as_in_its_class(model: NNsight, x, outputs) -> None:
    class Reader:
        def __init__(self):
            self.__factor = 3

        def read(self):
            with model.trace(x):
                __scaled = (model.layers[0].output * self.__factor).save()
            return __scaled

    assert_same(Reader().read(), outputs[0] * 3)


def test_super_works_in_a_block(model: NNsight, x, outputs) -> None:
    class Base:
        def scale(self, value):
            return value * 2

    class Derived(Base):
        def scale(self, value):
            return value * 100

        def read(self):
            with model.trace(x):
                scaled = super().scale(model.layers[0].output).save()
            return scaled

    assert_same(Derived().read(), outputs[0] * 2)


def test_locals_in_a_block_shows_its_names(model: NNsight, x) -> None:
    with model.trace(x):
        hidden = model.layers[0].output
        names = sorted(name for name in locals() if name in ("hidden", "outside")).save()
    assert names == ["hidden"]


def test_names_leave_a_block_that_raises(model: NNsight, x, outputs) -> None:
    hidden = later = None
    with pytest.raises(KeyError):
        with model.trace(x):
            hidden = model.layers[0].output.save()
            later = model.layers[1].output
            raise KeyError
    assert_same(hidden, outputs[0])
    assert later is None


def test_names_leave_a_block_that_is_stopped(model: NNsight, x, outputs) -> None:
    count = None
    with model.trace(x) as tracer:
        hidden = model.layers[0].output.save()
        count = hidden.shape[0].save()
        tracer.stop()
        hidden = None
    assert_same(hidden, outputs[0])
    assert count == 2


def test_names_of_invokes_leave_the_trace() -> None:
    model = models.wrapped(models.GPT2)
    lost = "old"
    with model.trace() as tracer:
        with tracer.invoke("the cat sat"):
            first = model.lm_head.output.save()
            lost = first * 2  # noqa: NNS301
        with tracer.invoke("a red bird"):
            second = model.lm_head.output.save()
            size = second.shape[1].save()
        marker = ["built"].save()
    assert first.shape == second.shape == (1, 3, len(models.WORDS))
    assert size == 3
    assert marker == ["built"]
    assert lost == "old"


def test_a_name_that_several_invokes_save_is_that_of_the_last() -> None:
    model = models.wrapped(models.GPT2)
    with model.trace() as tracer:
        for prompt in ("the cat sat", "a red bird"):
            with tracer.invoke(prompt):
                ids = model.transformer.wte.input.save()
    assert_same(ids, models.token_ids("a red bird"))


def test_the_tracer_keeps_its_name(model: NNsight, x) -> None:
    with model.trace(x) as tracer:
        hidden = model.layers[0].output.save()
    assert type(tracer).__name__ == "Tracer"
