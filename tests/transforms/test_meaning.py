"""Statements whose meaning a lowering loses easily mean what they mean in plain Python.

Each stands for a family; `test_equivalence_property.py` draws from all of them at random.
"""

import textwrap

import pytest

from tests.transforms.lowering import (
    assert_same_meaning,
    codes_below,
    drive,
    lower,
    lower_body,
)

BODIES = {
    "a tuple without parentheses is one value": "d.output = 1, 2",
    "a starred tuple is one value": "d.output = *c.output, 4",
    "a tuple is one operand of +=": "c.output += 4, 5",
    "a tuple is one element": "c.output[0] = 1, 2",
    "an access in the first iterable only": "z = [i + 1 for i in c.output]",
    "an access in the first iterable of a dict": "z = {i: i for i in c.output}",
    "an access in the first iterable of a set": "z = {i for i in c.output}",
    "an access in a lambda in a comprehension": (
        "z = [lambda: (i, a.output) for i in range(3)][0]()"
    ),
    "an access in a later iterable": "z = [i + j for i in (1, 2) for j in c.output]",
    "a nested comprehension": "z = [[a.output + j for j in range(i)] for i in c.output]",
    "a walrus in a comprehension": "z = [y := a.output + i for i in range(2)]",
    "+= below a loop starts from the outer value": "for i in c.output:\n    x += i",
    "+= below a condition starts from the outer value": "if a.output:\n    x -= 1",
    "+= alone starts from the outer value": "x += a.output",
    "a comprehension's variable is not the block's": (
        "z = [0 for x in range(3)]\nz = x\nx = a.output"
    ),
    "a walrus that is not reached binds nothing": "z = False and (x := 1)\nz = x + a.output",
    "a conditional binding keeps the outer value": "if not a.output:\n    x = 1\nz = x",
    "a declaration binds nothing": "if not a.output:\n    x: int = 3\nz = x",
    "a read of a deleted name": "x = a.output\ndel x\nz = x",
    "a read before any binding": "z = w\nw = a.output",
    "a StopIteration in a comprehension is caught": (
        "try:\n"
        "    z = [next(iter(())) for i in range(3) if a.output]\n"
        "except StopIteration:\n"
        "    z = 'stopped'"
    ),
    "a StopIteration in a block is caught": (
        "try:\n    z = next(iter(())) + a.output\nexcept StopIteration:\n    z = 'stopped'"
    ),
    "a value pattern": (
        "class P:\n    output = 1\nmatch a.output:\n    case P.output:\n        z = 3"
    ),
    "a capture pattern": (
        "match (a.output, b.output):\n    case (z, y) if y > a.output:\n        z += 1"
    ),
    "a guard that has an access": "match x:\n    case 10 if a.output:\n        z = 3",
    "the target of += is taken before the value": "a.output += (a := b).output",
    "an element += reads the container once": "d.output = [1]\nd.output[0] += 4",
    "an index is evaluated after the container": "a.output[1 // 0] = 4",
    "an index that calls": "c.output[note(1)] = 4",
    "a slice": "c.output[:2] = [9]",
    "an access as an index": "c.output[a.output] = b.output",
    "one line below if": "if a.output: b.output = 7; x = b.output",
    "one line below for": "for i in c.output: b.output = i",
    "a target in a tuple": "a.output, z = 3, 4",
    "a nested target": "(z, [a.output, *y]), x = (1, (2, 3, 4)), 5",
    "a target of for": "for a.output in range(3):\n    pass",
    "a target of with": "with guard as a.output:\n    z = a.output",
    "an annotated target": "a.output: int = 3",
    "an annotated name": "z: int = a.output",
    "a chain from left to right": "x = a.output = b.output = note(5)",
    "a chain of elements": "c.output[0] = c.output[1] = z = note(5)",
    "deleting a port": "del a.output",
    "deleting an element": "del c.output[0]",
    "an f-string": "z = f'{a.output} {x!r:>{b.output}}'",
    "a default and a decorator": (
        "@(lambda f: f() + a.output)\ndef z(p=b.output):\n    return p + b.output"
    ),
    "a class body": (
        "class K:\n    v = a.output\n    w = [a.output for i in range(2)]\nz = (K.v, K.w)"
    ),
    "a chained comparison stops early": "z = a.output > b.output > note(1)",
    "a conditional expression evaluates one branch": "z = a.output if b.output > 5 else note(2)",
    "while with else": (
        "while a.output < 5:\n"
        "    a.output += 1\n"
        "    if a.output == 3: continue\n"
        "    if a.output == x: break\n"
        "else:\n"
        "    z = 1"
    ),
    "an error that is raised again": (
        "try:\n    1 / (a.output - 1)\nexcept ZeroDivisionError as e:\n    z = a.output\n    raise"
    ),
    "an error with a cause": (
        "try:\n"
        "    x // (a.output - 1)\n"
        "except ZeroDivisionError as e:\n"
        "    raise ValueError(1) from e"
    ),
    "finally with an access": "try:\n    nope\nfinally:\n    z = a.output",
    "an exception group": (
        "try:\n"
        "    raise ExceptionGroup('g', [ValueError(a.output)])\n"
        "except* ValueError as e:\n"
        "    z = b.output"
    ),
    "starred displays and arguments": "z = [*c.output, *(a.output, b.output), note(*[a.output])]",
    "semicolons": "z = a.output; a.output = z + 1; y = a.output",
    "parentheses over several lines": "z = (a\n     .output  # why\n     + 1)",
    "a generator expression stays lazy": "z = any(note(a.output) for i in range(3))",
    "a nested function sees later bindings": (
        "def f():\n    return y + a.output\ny = 5\nz = f()"
    ),
    "a nested function reads a name of the block": (
        "y = 1\ndef f():\n    return [y + a.output for i in range(2)]\nz = f()"
    ),
    "save on an object with a method of its own": (
        "class S:\n    def save(self):\n        return 'own'\nz = S().save()"
    ),
}  # fmt: skip


@pytest.mark.parametrize("in_function", [False, True], ids=["module", "function"])
@pytest.mark.parametrize("claim", BODIES)
def test_a_block_means_what_python_means(claim, in_function):
    assert_same_meaning(BODIES[claim], in_function=in_function)


def test_locals_shows_the_names_of_the_user():
    program = lower_body("y = [t.output for i in range(2)]\nz = sorted(locals())")
    left = drive(program, {"t": type("T", (), {"output": 1})}, {})
    assert left["z"] == ["y"]


def test_a_private_name_of_a_class_is_mangled_in_a_block():
    source = textwrap.dedent("""
        class C:
            def run(self):
                __q = 4
                with model.trace(0):
                    z = self.__p + __q
    """).lstrip()
    known = frozenset({"self", "_C__q", "z"})
    program = lower(source, class_name="C", name="run", is_function=True, locals=known)
    this = type("C", (), {"_C__p": 3})()
    assert drive(program, {}, {"self": this, "_C__q": 4})["z"] == 7


def test_a_program_can_be_started_again():
    program = lower_body("x += 1\nz = [x + i for i in range(2)]")
    first = drive(program, {"x": 1}, {})
    second = drive(program, {"x": 5}, {})
    assert (first["z"], second["z"]) == ([2, 3], [6, 7])


def test_no_name_of_ours_is_global():
    program = lower_body("z = [t.output.save() for i in t.output]\nt.output += 1\nt.output[0] = 1")
    used = {name for code in codes_below(program.code) for name in code.co_names}
    assert not {name for name in used if name.startswith("_nns_")}
