"""Asserts that pytest has rewritten, so that a failed one explains itself.

pytest compiles a test module from a tree in which each `assert` is a series of assignments and a
test. Its text compiles to other code, unless it is rewritten likewise; and a block's own asserts,
which are compiled here, explain themselves only if they are rewritten, too. What pytest puts into
code begins with `@py`, and reaches two modules through the user's globals.
"""

from __future__ import annotations

import ast
import sys
import warnings
from types import CodeType

from .same_code import names_in


def is_rewritten_by_pytest(code: CodeType) -> bool:
    """Return whether an `assert` in a code object is one that pytest has rewritten."""
    return any(name.startswith("@py") for name in names_in(code))


def rewrite_asserts(tree: ast.Module) -> None:
    """Rewrite the asserts of a module as pytest does, in place, where pytest is there."""
    rewrite = sys.modules.get("_pytest.assertion.rewrite")
    if rewrite is None:
        return
    with warnings.catch_warnings():
        # an assert of a tuple: pytest has said so
        warnings.simplefilter("ignore")
        rewrite.rewrite_asserts(tree, b"", "")
