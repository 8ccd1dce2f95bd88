"""One thread parses at a time.

CPython 3.11 counts the depth of the syntax tree that `ast.parse` builds in a place that all threads
share. If two threads build trees at once, one of them may end with `SystemError: AST constructor
recursion depth mismatch`. What is parsed at the entry of a block is parsed under this lock.
"""

from __future__ import annotations

from threading import RLock

PARSING = RLock()
