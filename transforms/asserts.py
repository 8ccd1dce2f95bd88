"""Support for pytest's assertion rewriting.

pytest compiles a test module from a tree in which each `assert` is replaced by assignments and a
test, so that a failure shows the values compared. This matters here twice:

- the plain text of the module compiles to other code than the running one, so a candidate text
  has to be rewritten in the same way before it is compared (see `texts.py`);
- the asserts of a block are compiled by this package, and show their values only if they are
  rewritten too.

Rewritten code is recognised by its names, which begin with `@py`. It refers to two modules of
pytest through the globals of the user's module, where pytest has put them.
"""

from __future__ import annotations

import ast
import sys
import warnings
from types import CodeType

from .same_code import names_in


def is_rewritten_by_pytest(code: CodeType) -> bool:
    """Return whether a code object contains an `assert` that pytest has rewritten."""
    return any(name.startswith("@py") for name in names_in(code))


def rewrite_asserts(tree: ast.Module) -> None:
    """Rewrite the asserts of a module in place as pytest does, if pytest is loaded."""
    rewrite = sys.modules.get("_pytest.assertion.rewrite")
    if rewrite is None:
        return
    with warnings.catch_warnings():
        # pytest has already warned about an assert of a tuple, when it rewrote the module
        warnings.simplefilter("ignore")
        rewrite.rewrite_asserts(tree, b"", "")
