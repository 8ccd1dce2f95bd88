"""`import nnsight` for programs that were written for it.

    import nnsight_dsl.compat
    nnsight_dsl.compat.install()             # or install("0.6")

    from nnsight import LanguageModel        # this package's

The names of its documented surface resolve to this package's (`names.py` has the table), those
that it has deprecated with a warning. Where a program of that version expects another behaviour
than the native one, the class that its name leads to is a subclass with adapters: `as_08.py` and
`as_06.py`. So the dialect is that of a model, decided by the import path of its class, and the
runtime has none.

Objects of built-in types get a `save` method, as its programs expect of code in helpers, too.
This module imports no torch: a process that never imports `nnsight` does not pay for the switch.
"""

from __future__ import annotations

from typing import Any

from nnsight_dsl.compat.installing import VERSION as VERSION
from nnsight_dsl.compat.installing import VERSIONS as VERSIONS
from nnsight_dsl.compat.installing import install as install
from nnsight_dsl.compat.installing import uninstall as uninstall
from nnsight_dsl.compat.switching import switch


def load_ipython_extension(shell: Any) -> None:
    """Install it by `%load_ext nnsight_dsl.compat`, in the first cell of a notebook."""
    switch("0.8")
