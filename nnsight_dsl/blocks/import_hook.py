"""The import hook: blocks of imported modules are lowered when the module is compiled.

    import nnsight_dsl
    nnsight_dsl.install_import_hook("my_project", "my_experiments")

Its finder comes before the other finders and wraps the loader that they find, so that a module is
found in the same place as without it. Only Python's own source loader is wrapped; a module that
another tool rewrites (a test module under pytest, say) is left to that tool, and its blocks are
lowered when they are first entered.

Python's own machinery caches the rewritten code beside the ordinary `.pyc`, under a separate tag
that contains the versions: a cached file is always complete, and checked by time, size or hash.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Sequence
from importlib import _bootstrap_external
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from threading import RLock
from types import CodeType, ModuleType
from typing import Any

from nnsight_dsl.transforms.parsing import one_at_a_time
from nnsight_dsl.version import __version__

FORMAT = 8
"""To be incremented whenever the form of rewritten modules changes."""

_cache_from_source = _bootstrap_external.cache_from_source
_caching = RLock()


def _own_cache_from_source(path: Any, *args: Any, optimization: Any = None, **kwargs: Any) -> str:
    version = "".join(filter(str.isalnum, __version__))
    tag = f"nnsight{version}f{FORMAT}o{optimization or 0}"
    return str(_cache_from_source(path, *args, optimization=tag, **kwargs))


@one_at_a_time
def compile_module(source: str, filename: str) -> CodeType:
    """Compile a module, or a script, with all its blocks lowered.

    Raises:
        SyntaxError: the source is not valid Python.
    """
    # this imports libcst, which is not needed if all modules are cached
    from nnsight_dsl.transforms.program_bytes import dump_programs
    from nnsight_dsl.transforms.source.modules import PROGRAMS, SUPPORT, rewrite_module

    tree, programs = rewrite_module(source, filename)
    if programs:
        text = (
            f"import nnsight_dsl.blocks.support as {SUPPORT}\n"
            f"{PROGRAMS} = {SUPPORT}.programs({dump_programs(programs)!r})"
        )
        head = ast.parse(text).body
        for node in head:
            for inner in ast.walk(node):
                if isinstance(inner, (ast.stmt, ast.expr, ast.alias)):
                    inner.lineno = inner.end_lineno = 1
                    inner.col_offset = inner.end_col_offset = 0
        at = _first_statement(tree.body)
        tree.body[at:at] = head
    return compile(tree, filename, "exec", dont_inherit=True)


def _first_statement(body: Sequence[ast.stmt]) -> int:
    """Return the index of the first statement after the docstring and the future imports."""
    for index, node in enumerate(body):
        is_docstring = (
            index == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        )
        is_future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if not is_docstring and not is_future:
            return index
    return len(body)


class BlockLoader(SourceFileLoader):
    """Python's source loader, which lowers the blocks of the modules that it compiles."""

    def get_code(self, fullname: str) -> CodeType | None:
        from nnsight_dsl.transforms.prefilter import may_hold_blocks

        path = self.get_filename(fullname)
        if not may_hold_blocks(self.get_data(path)):
            return super().get_code(fullname)
        with _caching:
            try:
                _bootstrap_external.cache_from_source = _own_cache_from_source
                return super().get_code(fullname)
            finally:
                _bootstrap_external.cache_from_source = _cache_from_source

    def source_to_code(  # type: ignore[override]
        self, data: Any, path: Any, *, _optimize: int = -1
    ) -> CodeType:
        from nnsight_dsl.transforms.prefilter import may_hold_blocks

        if isinstance(data, (bytes, bytearray, memoryview)) and may_hold_blocks(bytes(data)):
            return compile_module(importlib.util.decode_source(bytes(data)), str(path))
        code: CodeType = super().source_to_code(data, path, _optimize=_optimize)
        return code


class BlockFinder(MetaPathFinder):
    """Finds modules of some packages as the other finders do, and wraps their loader."""

    def __init__(self, packages: Sequence[str] | None) -> None:
        self._packages = packages

    def should_lower(self, name: str) -> bool:
        """Return whether a module belongs to the packages; to all, if none were named."""
        if self._packages is None:
            return name.partition(".")[0] not in ("nnsight_dsl", "torch", "transformers")
        return any(name == package or name.startswith(f"{package}.") for package in self._packages)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not self.should_lower(name):
            return None
        for finder in sys.meta_path:
            if finder is self or isinstance(finder, BlockFinder):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is None:
                continue
            if type(spec.loader) is SourceFileLoader:
                spec.loader = BlockLoader(spec.loader.name, spec.loader.path)
            return spec
        return None


class ImportHook:
    """An installed import hook."""

    def __init__(self, finder: BlockFinder) -> None:
        self._finder = finder

    def remove(self) -> None:
        """Remove the hook; modules already imported stay lowered."""
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)

    def __enter__(self) -> ImportHook:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def install_import_hook(*packages: str) -> ImportHook:
    """Lower the blocks of modules that are imported from now on.

    Args:
        *packages: names of packages or modules, including their submodules; none means every
            module that Python's own source loader loads.

    Returns:
        The hook, which has `remove()` and can be used in a `with` statement.

    Example:
        >>> nnsight_dsl.install_import_hook("my_project")
        >>> import my_project.experiments
    """
    finder = BlockFinder(packages or None)
    sys.meta_path.insert(0, finder)
    return ImportHook(finder)
