"""What Python imports when it starts, in the children of a process that was switched.

It switches this process, too, and then runs the `sitecustomize` that it hides.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def _start() -> None:
    sys.path[:] = [path for path in sys.path if not path or Path(path).resolve() != _HERE]
    if importlib.util.find_spec("nnsight_dsl") is None:
        sys.path.append(str(_HERE.parents[2]))
    from nnsight_dsl.compat.switching import at_start

    at_start()
    hidden = PathFinder.find_spec("sitecustomize", sys.path)
    if hidden is not None and hidden.loader is not None:
        hidden.loader.exec_module(importlib.util.module_from_spec(hidden))


_start()
