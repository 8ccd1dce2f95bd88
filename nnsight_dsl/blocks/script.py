"""Running a script with all its blocks lowered before it runs."""

from __future__ import annotations

import builtins
import functools
import sys
import types
from collections.abc import Sequence
from pathlib import Path

from nnsight_dsl.blocks.import_hook import compile_module


def run_script(path: Path, arguments: Sequence[str], *, as_nnsight: bool = False) -> None:
    """Run a script as `python script.py arguments...` would, as the module `__main__`.

    Args:
        path: the script.
        arguments: its arguments, `sys.argv[1:]`.
        as_nnsight: let `import nnsight` in it import this package.
    """
    import tokenize

    if as_nnsight:
        from nnsight_dsl import compat

        compat.install()
    with tokenize.open(path) as file:
        code = compile_module(file.read(), str(path))
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=str(path), __builtins__=builtins, __cached__=None)
    sys.argv = [str(path), *arguments]
    sys.path[0] = str(path.resolve().parent)
    # so that objects defined in the script can be pickled, and found by name
    sys.modules["__main__"] = main
    sys.excepthook = functools.partial(_show_error, str(path))
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
