"""`import nnsight` for programs that were written for it.

    import nnsight_dsl.compat
    nnsight_dsl.compat.install()

    from nnsight import LanguageModel        # this package's

The names of its documented surface resolve to ours, those that it has deprecated with a warning.
Objects of built-in types get a `save` method, as its programs expect of code in helpers, too.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

_ALIASES = {
    "nnsight": "nnsight_dsl",
    "nnsight.modeling": "nnsight_dsl.modeling",
    "nnsight.modeling.base": "nnsight_dsl.modeling.base",
    "nnsight.modeling.language": "nnsight_dsl.modeling.language",
    "nnsight.intervention": None,
    "nnsight.intervention.envoy": "nnsight_dsl.envoys.envoy",
    "nnsight.intervention.tracing": None,
    "nnsight.intervention.tracing.globals": None,
    "nnsight.ndif": None,
}
VERSION = "0.8.1"
"""The version whose documented surface the names are those of, as programs ask for it."""

_BUILTINS = (list, dict, tuple, set, frozenset, int, float, bool, str, bytes, slice)


class _Alias(types.ModuleType):
    """A module whose names are another module's."""

    def __init__(self, name: str, target: str | None) -> None:
        super().__init__(name, f"{target or 'nnsight_dsl'}, under the name of nnsight.")
        self.__path__: list[str] = []
        self._target = target

    def __getattr__(self, name: str) -> Any:
        if name == "__version__" and self.__name__ == "nnsight":
            return VERSION
        if name.startswith("__"):
            raise AttributeError(name)
        if self.__name__ == "nnsight" and name in _DEPRECATED:
            return _DEPRECATED[name]
        if (self.__name__, name) in _OTHERS:
            return _OTHERS[self.__name__, name]
        if self._target is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(self._target), name)


def _deprecated(name: str, instead: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def deprecated(*args: Any, **kwargs: Any) -> Any:
        warnings.warn(f"nnsight.{name} is deprecated; {instead}", DeprecationWarning, stacklevel=2)
        return function(*args, **kwargs)

    return deprecated


def _apply(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _removed(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError(
        "this construct of older versions is gone; write plain Python in the block: 'if', 'for' "
        "and functions work as everywhere"
    )


_DEPRECATED = {
    "list": _deprecated("list", "write list()", list),
    "dict": _deprecated("dict", "write dict()", dict),
    "apply": _deprecated("apply", "call the function itself", _apply),
    "cond": _deprecated("cond", "write an 'if' statement", _removed),
    "local": _deprecated("local", "code runs locally as it is", _removed),
    "trace": _deprecated("trace", "decorate with nnsight_dsl.intervene", _removed),
}


def _register(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError(
        "remote execution is not built; leave remote=True out to run on this machine"
    )


_OTHERS: dict[tuple[str, str], Any] = {
    # the type of a value in a block, which here is the value's own
    ("nnsight.intervention.tracing.globals", "Object"): Any,
    ("nnsight.ndif", "register"): _register,
}


def install() -> None:
    """Let `import nnsight`, and its documented sub-modules, import this package.

    Raises:
        ImportError: the real nnsight is already imported in this process.
    """
    present = sys.modules.get("nnsight")
    if present is not None and not isinstance(present, _Alias):
        raise ImportError(
            "nnsight itself is already imported; call nnsight_dsl.compat.install() before the "
            "first 'import nnsight'"
        )
    for name, target in _ALIASES.items():
        alias = sys.modules[name] = _Alias(name, target)
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, alias)
    _mount_save()


def uninstall() -> None:
    """Take it all back."""
    for name in _ALIASES:
        sys.modules.pop(name, None)
    for cls in _BUILTINS:
        _namespace_of(cls).pop("save", None)
        ctypes.pythonapi.PyType_Modified(ctypes.py_object(cls))


def _mount_save() -> None:
    from nnsight_dsl.tracing.saving import save

    def save_method(self: Any) -> Any:
        return save(self)

    for cls in _BUILTINS:
        _namespace_of(cls)["save"] = save_method
        ctypes.pythonapi.PyType_Modified(ctypes.py_object(cls))


def _namespace_of(cls: type) -> dict[str, Any]:
    """Return the dictionary behind a built-in type's read-only view of it."""
    namespace: dict[str, Any] = gc.get_referents(cls.__dict__)[0]
    return namespace
