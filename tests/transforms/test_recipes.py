"""A program that is lowered again from its recipe is the same program, in another process too."""

import ast
import dataclasses
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnsight_dsl.transforms.program import Program
from nnsight_dsl.transforms.program_bytes import dump_programs, load_programs
from nnsight_dsl.transforms.recipes import parse_recipe, write_recipe
from nnsight_dsl.transforms.relowering import lower_again
from nnsight_dsl.transforms.source.modules import rewrite_module
from nnsight_dsl.transforms.source.pipeline import lower_function
from nnsight_dsl.transforms.source.surroundings import Surroundings
from tests.language.constructs import MEANT
from tests.transforms.lowering import FILENAME, lower, lower_body
from tests.transforms.test_equivalence_property import bodies
from tests.transforms.test_lowering_cases import CASES, CONSTRUCTS

ROOT = Path(__file__).resolve().parents[2]


def described(value: Any) -> Any:
    """Write out all that a program holds, in an order that is the same in each process."""
    if isinstance(value, CodeType):
        return [
            value.co_name,
            value.co_qualname,
            value.co_filename,
            value.co_firstlineno,
            value.co_flags,
            value.co_code.hex(),
            value.co_exceptiontable.hex(),
            [*value.co_names, *value.co_varnames, *value.co_cellvars, *value.co_freevars],
            [list(position) for position in value.co_positions()],
            [described(const) for const in value.co_consts],
        ]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, (tuple, list)):
        return [described(item) for item in value]
    if dataclasses.is_dataclass(value):
        return [described(getattr(value, field.name)) for field in dataclasses.fields(value)]
    return value if isinstance(value, (str, int, type(None))) else repr(value)


def assert_same_again(program: Program) -> None:
    lower_again.cache_clear()
    expected = [described(one) for one in program.all_programs()]
    assert [described(one) for one in lower_again(program.recipe)] == expected
    for number, one in enumerate(program.all_programs()):
        assert (one.recipe, one.number) == (program.recipe, number)


@pytest.mark.parametrize("construct", CONSTRUCTS)
def test_each_construct_is_lowered_again_to_the_same(construct):
    text = (CASES / construct / "before.py").read_text(encoding="utf-8")
    assert_same_again(lower(text))
    below = "\n" * 20 + "def user():\n    if 1:\n" + textwrap.indent(text, " " * 8)
    known = frozenset({"model", "layers", "x", "tracer"})
    assert_same_again(lower(below, is_function=True, name="user", locals=known))


@pytest.mark.parametrize("row", MEANT, ids=[row.name for row in MEANT])
def test_each_block_of_a_module_is_lowered_again_to_the_same(row):
    texts = [row.module_text()] if row.text else [row.module_text(), row.function_text()]
    for text in texts:
        for program in rewrite_module(text, "user.py")[1]:
            assert_same_again(program)
            (stored,) = load_programs(dump_programs((program,)))
            assert described(stored) == described(program)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(bodies(), st.integers(0, 12))
def test_random_blocks_are_lowered_again_to_the_same(body, line):
    program = lower_body(body, name="user", is_function=line % 2 == 0, locals=frozenset("abcdxy"))
    assert_same_again(program)


PLACES = {
    "private names of a class": """
        class Study:
            def run(self):
                with self.__model.trace(0) as tracer:
                    self.__kept = __x.output
                    super().note(locals())
        """,
    "a class body": """
        class Study:
            with model.trace(0):
                h = model.output.save()
        """,
    "annotations that stay text": """
        from __future__ import annotations
        with model.trace(0):
            h: not_there = model.output.save()
        """,
    "a name that a function beside it rebinds": """
        def user():
            x = 0
            def other():
                nonlocal x
                x = 1
            with model.trace(0):
                model.output = x
        """,
    "a text of less indentation": """
        def user():
            with model.trace(0):
                note('''
        not indented
        ''', "é", model.output)
        """,
    "the second item": """
        def user():
            with guard as g, model.trace(0) as tracer, other as o:
                h = model.output
        """,
    "blocks in blocks in a block": """
        with model.session():
            with model.trace() as tracer:
                for p in prompts:
                    with tracer.invoke(p):
                        h = model.output
                with tracer.invoke(p):
                    loss = model.output.sum()
                    with loss.backward():
                        g = h.grad.save()
            with model.trace(0):
                model.output = h
        """,
    "tabs": "def user():\n\twith model.trace(0):\n\t\th = model.output.save()\n",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_block_keeps_what_depends_on_its_place(place):
    (program,) = rewrite_module(textwrap.dedent(PLACES[place]), "user.py")[1]
    assert_same_again(program)


def test_a_function_is_lowered_again_to_the_same():
    text = textwrap.dedent("""
        class Study:
            @decorated(
                1
            )
            def steer(self, model, layer: int = 3):
                model.layers[layer].output *= factor
                return [model.layers[i].output for i in range(layer)]
        """)
    node = next(one for one in ast.walk(ast.parse(text)) if isinstance(one, ast.FunctionDef))
    known = frozenset({"self", "model", "layer", "factor"})
    around = Surroundings("user.py", text.splitlines(), "steer", known, True)
    program = lower_function(node, around)
    assert program.line == 6
    assert_same_again(program)


def test_a_recipe_is_read_as_it_was_written():
    program = lower("\n\nwith model.trace(0):\n    h = model.output.save()\n\nnext_statement()\n")
    node, item, around = parse_recipe(program.recipe)
    assert write_recipe(node, item, around) == program.recipe
    assert (around.filename, node.lineno, item) == (FILENAME, 3, 0)
    assert json.loads(program.recipe)["text"] == "with model.trace(0):\n    h = model.output.save()"


def test_a_recipe_is_lowered_once():
    program = lower_body("h = model.output.save()")
    lower_again.cache_clear()
    assert lower_again(program.recipe) is lower_again(json.loads(json.dumps(program.recipe)))
    assert lower_again.cache_info().misses == 1
    other = lower_body("\nh = model.output.save()")
    assert lower_again(other.recipe)[0].code != program.code  # its lines are others


ELSEWHERE = """
import json, sys
from nnsight_dsl.transforms.relowering import lower_again
from tests.transforms.test_recipes import described
recipes = json.load(sys.stdin)
print(json.dumps([[described(one) for one in lower_again(recipe)] for recipe in recipes]))
"""


def test_another_process_lowers_recipes_to_the_same():
    programs = [
        lower((CASES / construct / "before.py").read_text(encoding="utf-8"))
        for construct in CONSTRUCTS
    ]
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        input=json.dumps([program.recipe for program in programs]),
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = [[described(one) for one in program.all_programs()] for program in programs]
    assert json.loads(done.stdout) == expected
