"""Classes of one's own for the envoys of some modules.

    class Attention(nnsight_dsl.Envoy):
        @property
        def heads(self):
            return self.output[0].unflatten(-1, (12, -1))

    model = LanguageModel("gpt2", envoys={GPT2Attention: Attention})
    model = LanguageModel("gpt2", envoys={"h.*.attn": Attention})

A class of modules comes first, the nearest one of several that are derived from each other. Then
come paths, in the order in which they are given: a path matches where a module's path ends in it,
and `*` is any one name. A module that has an alias is matched by its own names before its aliases.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

_Parts = Sequence[str]


class EnvoyClasses:
    """The classes of the envoys of one model.

    Args:
        envoys: classes of envoys, by class of modules or by path.
        base: the class that they have to be derived from, which is that of all other envoys.

    Raises:
        TypeError: a key is neither a class of modules nor a path, or a class is not derived from
            `base`, or has an `__init__`.
    """

    def __init__(self, envoys: Mapping[Any, type], base: type) -> None:
        self._by_class: dict[type, type] = {}
        self._by_path: list[tuple[_Parts, type]] = []
        for key, cls in envoys.items():
            _check(key, cls, base)
            if isinstance(key, str):
                self._by_path.append((key.strip(".").split("."), cls))
            else:
                self._by_class[key] = cls

    def of(self, module: nn.Module, spellings: Iterable[_Parts]) -> type | None:
        """Return the class of a module's envoy, None for that of all other envoys.

        Args:
            module: the module.
            spellings: its path from the root, spelled by its own names, and then by aliases.
        """
        # `__class__` of a module that is tapped now is its own class, `type()` is not
        for cls in module.__class__.__mro__:
            if cls in self._by_class:
                return self._by_class[cls]
        for parts in spellings if self._by_path else ():
            for pattern, found in self._by_path:
                if _ends_in(parts, pattern):
                    return found
        return None


def class_below(parent: Any, name: str, module: nn.Module) -> Any:
    """Return the class of the envoy of a module.

    Args:
        parent: the envoy above.
        name: the module's name there.
        module: the module.
    """
    root = parent._root
    classes: EnvoyClasses | None = root.__dict__.get("_classes")
    if classes is None:
        return root._envoy_class
    above = (*parent._above(), (parent._module, name))
    return classes.of(module, parent._renaming.spellings(above)) or root._envoy_class


def _ends_in(parts: _Parts, pattern: _Parts) -> bool:
    if len(pattern) > len(parts):
        return False
    ending = parts[len(parts) - len(pattern) :]
    return all(one in ("*", other) for one, other in zip(pattern, ending, strict=True))


def _check(key: Any, cls: Any, base: type) -> None:
    if not isinstance(key, str) and not (isinstance(key, type) and issubclass(key, nn.Module)):
        raise TypeError(
            f"a key of envoys= is {key!r}; give a class of modules, or a path as 'layers.*.attn'"
        )
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise TypeError(
            f"envoys= has {cls!r} for {key!r}; give a class that is derived from "
            f"{base.__module__}.{base.__qualname__}"
        )
    if any("__init__" in one.__dict__ for one in cls.__mro__[: cls.__mro__.index(base)]):
        raise TypeError(
            f"{cls.__name__} of envoys= has an __init__, which is not called: envoys are made when "
            "they are first looked up; give it properties, or attributes of the class"
        )
