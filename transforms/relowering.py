"""Programs made again from their recipes, as in another process.

lower_again(program.recipe)[0]      # a program that does what `program` does
"""

from __future__ import annotations

import ast
from functools import lru_cache

from .parsing import one_at_a_time
from .program import Program
from .recipes import parse_recipe


@lru_cache(maxsize=1024)
@one_at_a_time
def lower_again(recipe: str) -> tuple[Program, ...]:
    """Return the programs of a recipe: the outermost, and all inside it, by their numbers.

    Raises:
        SyntaxError: the text is not valid in this version of Python.
        UnsupportedSyntaxError: it holds a construct that no program can express.
    """
    # libcst is imported where a block is lowered, and only there
    from .source.pipeline import lower_block, lower_function

    node, item, around = parse_recipe(recipe)
    if isinstance(node, ast.FunctionDef):
        program = lower_function(node, around)
    else:
        program = lower_block(node, item or 0, around)
    return tuple(program.all_programs())
