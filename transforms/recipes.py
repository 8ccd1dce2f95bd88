"""Recipes: the source text of a block with the context needed to lower it in another process.

A code object is valid for one version of Python, so a program cannot be sent between processes as
it is. A recipe is sent instead: the text of the outermost lowered statement, its file and first
line, and the facts about the names around it. The receiver runs the same passes and gets the same
programs, with the same line numbers.

    {"text": "with model.trace(prompt):\\n    ...", "line": 12, "item": 0, "filename": ...}

A recipe is JSON with sorted name lists, so one block has one recipe, whichever process writes it,
and the recipe serves as the cache key of the programs lowered from it. An inner block is
identified by the recipe of the outermost block and its number among that block's programs.

Lowering again fails with `SyntaxError` where the text uses syntax that is newer than the
receiver's Python.
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
        around: the context of the statement.
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
    """Return the arguments that `write_recipe` was given.

    Of the file's lines, `Surroundings.lines` has those of the statement; the ones above it are
    placeholders.

    Raises:
        SyntaxError: the text is not valid in the running version of Python.
    """
    values = json.loads(recipe)
    text, line = values["text"], values["line"]
    # empty lines replace those above the statement, so that its line numbers are right; an
    # indented statement is put under an `if`, whatever its indentation
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
