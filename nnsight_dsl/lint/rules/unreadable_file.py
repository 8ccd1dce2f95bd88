"""A file is no Python, or no notebook.

The linter reads what `ast` can parse. A file that is no Python (an old one of Python 2, a half of
one, one with null bytes) is reported at the line where Python gives up, and nothing else is said
about it.

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
    """Find nothing: what cannot be read is reported before there is a file to look at."""
    yield from ()
