"""A file is not valid Python, or not a valid notebook.

The linter needs a file that Python can parse. Other files (Python 2, unfinished code, null bytes)
are reported at the line of the syntax error, and not checked any further.

Wrong:

    print "Hello"

Right:

    print("Hello")
"""

from __future__ import annotations

from collections.abc import Iterator

from ..analysis import File
from ..diagnostics import ERROR, Finding

CODE = "NNS901"
SEVERITY = ERROR


def check(file: File) -> Iterator[Finding]:
    """Yield nothing: the engine reports such files itself, since there is no `File` for them."""
    yield from ()
