"""Recipes: the text of a block, with what it takes to lower it again in another process.

The code of a program is made for one version of Python. What travels in its place is the text of
the outermost statement that was lowered, its file and first line, and what was known of the names
around it. The same passes make the same programs of it at the other end, on the same lines.

    {"text": "with model.trace(prompt):\\n    ...", "line": 12, "item": 0, "filename": ...}

A recipe is JSON with its names in order, so one block has one recipe, whichever process writes it,
and programs that were lowered from it are kept by it. Blocks inside a block have the recipe of the
outermost one, and their number among its programs.
"""

from __future__ import annotations

import ast
import json

from .source.surroundings import Surroundings


def write_recipe(node: ast.With | ast.FunctionDef, item: int | None, around: Surroundings) -> str:
    """Return the recipe of a statement.

    Args:
        node: the statement, with positions in `around.lines`.
        item: index of the item of a `with` statement that opens the block, None for a function.
        around: where the statement stands.
    """
    text = "\n".join(around.lines[node.lineno - 1 : node.end_lineno])
    return json.dumps(
        {
            "text": text,
            "line": node.lineno,
            "item": item,
            "filename": around.filename,
            "name": around.name,
            "locals": sorted(around.locals),
            "is_function": around.is_function,
            "class_name": around.class_name,
            "first_argument": around.first_argument,
            "rebound": sorted(around.rebound),
            "is_last": around.is_last,
            "flags": around.flags,
        }
    )


def parse_recipe(recipe: str) -> tuple[ast.With | ast.FunctionDef, int | None, Surroundings]:
    """Return what `write_recipe` was given; of the file's lines those of the statement alone.

    Raises:
        SyntaxError: the text is no Python of the version that runs here.
    """
    values = json.loads(recipe)
    text, line = values["text"], values["line"]
    # empty lines stand for those above it, and one statement for all that it is indented by
    is_indented = text[0].isspace()
    above = "\n" * (line - 2) + "if 1:\n" if is_indented else "\n" * (line - 1)
    node: ast.AST = ast.parse(above + text, values["filename"]).body[0]
    if isinstance(node, ast.If):
        node = node.body[0]
    if not isinstance(node, (ast.With, ast.FunctionDef)):
        raise TypeError(f"the text of a recipe is a {type(node).__name__}")
    around = Surroundings(
        filename=values["filename"],
        lines=(above + text).split("\n"),
        name=values["name"],
        locals=frozenset(values["locals"]),
        is_function=values["is_function"],
        class_name=values["class_name"],
        first_argument=values["first_argument"],
        rebound=frozenset(values["rebound"]),
        flags=values["flags"],
        is_last=values["is_last"],
    )
    return node, values["item"], around
