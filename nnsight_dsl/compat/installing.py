"""Installing the names of nnsight in this process, and taking them back."""

from __future__ import annotations

import sys

from nnsight_dsl.compat.aliases import AliasFinder, is_alias
from nnsight_dsl.compat.builtin_save import mount, unmount

VERSIONS = {"0.8": "0.8.1", "0.6": "0.6.0"}
"""By the dialect that `install` takes, the version that `nnsight.__version__` names."""
VERSION = VERSIONS["0.8"]
"""The version whose documented surface the names are by default."""

_installed: AliasFinder | None = None


def install(version: str = "0.8", *, lazily: bool = False) -> None:
    """Let `import nnsight`, and its documented sub-modules, import this package.

    Args:
        version: the version that programs were written for, `"0.8"` or `"0.6"`.
        lazily: give built-in types their `save` only once `nnsight` is imported.

    Raises:
        ImportError: the real nnsight is already imported in this process.
        ValueError: there is no dialect for this version.

    Example:
        >>> nnsight_dsl.compat.install()
        >>> from nnsight import LanguageModel
    """
    global _installed
    if version not in VERSIONS:
        raise ValueError(
            f"version={version!r} is not known; programs written for nnsight "
            f"{' or '.join(VERSIONS)} can be run"
        )
    present = sys.modules.get("nnsight")
    if present is not None and not is_alias(present):
        raise ImportError(
            "nnsight itself is already imported; call nnsight_dsl.compat.install() before the "
            "first 'import nnsight'"
        )
    if _installed is not None and _installed.dialect == version:
        return
    uninstall()
    _installed = AliasFinder(version, VERSIONS[version], mount if lazily else None)
    sys.meta_path.insert(0, _installed)
    if not lazily:
        mount(version)


def uninstall() -> None:
    """Take it all back."""
    global _installed
    if _installed is None:
        return
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not _installed]
    _installed = None
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "nnsight" and is_alias(module):
            del sys.modules[name]
    unmount()
