"""Running a script or a module with all its blocks lowered before it runs."""

from __future__ import annotations

import builtins
import functools
import importlib.util
import os
import sys
import tokenize
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnsight_dsl.blocks.import_hook import compile_module


def run_script(path: Path, arguments: Sequence[str]) -> None:
    """Run a script as `python script.py arguments...` would, as the module `__main__`.

    Args:
        path: the script.
        arguments: its arguments, `sys.argv[1:]`.
    """
    with tokenize.open(path) as file:
        text = file.read()
    sys.path[0] = str(path.resolve().parent)
    _run_as_main(text, str(path), arguments, {"__cached__": None})


def run_module(name: str, arguments: Sequence[str]) -> None:
    """Run a module, or the `__main__` of a package, as `python -m name arguments...` would.

    Args:
        name: the module.
        arguments: its arguments, `sys.argv[1:]`.

    Raises:
        ImportError: there is no such module, or it has no Python source.
    """
    sys.path[0] = os.getcwd()
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{name}.__main__")
    if spec is None or spec.loader is None:
        raise ImportError(f"no module named {name!r} can be run; give a module or a package")
    source = getattr(spec.loader, "get_source", lambda name: None)(spec.name)
    if source is None or spec.origin is None:
        raise ImportError(f"{spec.name!r} has no Python source, so its blocks cannot be lowered")
    about = {
        "__spec__": spec,
        "__package__": spec.parent,
        "__loader__": spec.loader,
        "__cached__": spec.cached,
    }
    _run_as_main(source, spec.origin, arguments, about)


def _run_as_main(
    text: str, filename: str, arguments: Sequence[str], about: Mapping[str, Any]
) -> None:
    code = compile_module(text, filename)
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=filename, __builtins__=builtins, **about)
    sys.argv = [filename, *arguments]
    # so that objects defined in the script can be pickled, and found by name
    sys.modules["__main__"] = main
    sys.excepthook = functools.partial(_show_error, filename)
    exec(code, main.__dict__)


def _show_error(
    filename: str,
    kind: type[BaseException],
    error: BaseException,
    traceback: types.TracebackType | None,
) -> None:
    """Show an error from the script's own frame on, as if Python had run the script itself."""
    entry = traceback
    while entry is not None and entry.tb_frame.f_code.co_filename != filename:
        entry = entry.tb_next
    if entry is not None:
        error.__traceback__ = entry
    sys.__excepthook__(kind, error, entry or traceback)
