"""Aliases of modules: other names under which envoys reach them.

    rename = {
        "mlp": "feedforward",                     # wherever a module is called mlp
        "attn.c_proj": "out",                     # wherever there is such a path: h[0].out
        "transformer.h": "layers",                # the same; this one leads from the root only
        ".transformer": ["model", "backbone"],    # with a leading dot from the root only
        "model.wte": "embed",                     # through another alias
    "*.h": "blocks",                          # any one name before h
    GPT2Attention: "attention",               # wherever a module has one child of this class
    "h.0": "h.first",                         # an alias on the module that the prefix leads to
    }

The original names keep working. A key that matches nowhere is not an error, so that one mapping
can serve several architectures; the alias is then unknown, and the error for it says why. One that
matches several modules below the same one is, since an alias is the name of one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from nnsight_dsl.runtime.locations import ROOT, children_of
from nnsight_dsl.runtime.values.known_types import NOT_THERE, class_attribute, stored

_LINE = re.compile(r"^(?P<indent> *)\((?P<name>[^()\s]+)\): ")
_SEVERAL = re.compile(r"^(\d+)-\d+$")
_ANY = "*"

_Key: TypeAlias = str | type[nn.Module]
_Above: TypeAlias = tuple[tuple[nn.Module, str], ...]
"""The modules above one, the root first, each with the name of the next one in it."""
_Path: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Alias:
    """One alias, and the path that it leads to.

    Attributes:
        name: the alias.
        prefix: the path to the module that has the alias, from where the key begins.
        path: the path from that module to the one that the alias stands for.
        key: the key, as in an error.
        is_from_root: whether the key begins at the root only.
    """

    name: str
    prefix: tuple[_Key, ...]
    path: tuple[_Key, ...]
    key: str
    is_from_root: bool


class Renaming:
    """The aliases of one model.

    Args:
        rename: aliases by path, see above.
        root: the model.
        envoy_type: class whose attributes the aliases become.
        dot_is_root: whether a leading dot means the root; otherwise it has no meaning.

    Raises:
        ValueError: an alias could not be reached, or would lead to two modules.
    """

    def __init__(
        self,
        rename: Mapping[Any, str | Sequence[str]],
        root: nn.Module,
        envoy_type: type,
        *,
        dot_is_root: bool = True,
    ) -> None:
        self._aliases: list[_Alias] = []
        for key, names in rename.items():
            path, spelled = _path_of_key(key)
            is_from_root = dot_is_root and spelled.startswith(".")
            for value in [names] if isinstance(names, str) else names:
                *prefix, name = value.split(".")
                _check_name(value, name, spelled, envoy_type)
                if tuple(prefix) != path[: len(prefix)] or len(prefix) >= len(path):
                    raise ValueError(
                        f"the alias {value!r} of {spelled!r} is not on the way of its key; the "
                        "names before the last dot are those with which the key begins, as in "
                        "{'attn.c_proj': 'attn.out'}"
                    )
                rest = path[len(prefix) :]
                self._aliases.append(_Alias(name, tuple(prefix), rest, spelled, is_from_root))
        if self._aliases:
            for module, above in _places_in(root, ()):
                self._check_clashes(module, above)

    def _check_clashes(self, module: nn.Module, above: _Above) -> None:
        found: dict[str, tuple[nn.Module, str]] = {}
        where = ".".join(name for _, name in above) or "the model"
        for alias in self._aliases:
            matches = self._matches(alias, module, above)
            if len(matches) > 1:
                names = ", ".join(".".join(one) for one in matches[:3])
                raise ValueError(
                    f"the key {alias.key!r} of the alias {alias.name!r} matches {len(matches)} "
                    f"modules in {where} ({names}), and an alias is the name of one; give each "
                    "a key of its own"
                )
            if not matches or matches[0] == (alias.name,):
                continue
            target = _at(module, matches[0])
            if target is None:
                continue
            if _has_other(module, alias.name, target):
                raise ValueError(
                    f"the alias {alias.name!r} of {alias.key!r} is the name of "
                    f"{_kind_of(module, alias.name)} in {where}; choose another"
                )
            path = ".".join(matches[0])
            known, other = found.setdefault(alias.name, (target, path))
            if known is not target:
                raise ValueError(
                    f"the alias {alias.name!r} stands for {other!r} and for {path!r} in {where}; "
                    "choose another for one of them"
                )

    def path_of(self, module: nn.Module, name: str, above: _Above) -> _Path | None:
        """Return the path below a module that an alias leads to, None if it leads nowhere.

        Args:
            module: the module on which the alias is used.
            name: the alias.
            above: the modules above it.
        """
        return self._path_of(module, name, above, ())

    def _path_of(
        self, module: nn.Module, name: str, above: _Above, within: tuple[_Alias, ...]
    ) -> _Path | None:
        for alias in self._aliases:
            if alias.name == name and alias not in within:
                found = self._matches(alias, module, above, within)
                if len(found) == 1:
                    return found[0]
        return None

    def _matches(
        self, alias: _Alias, module: nn.Module, above: _Above, within: tuple[_Alias, ...] = ()
    ) -> list[_Path]:
        """Return the paths of original names that an alias can lead to below a module.

        Args:
            alias: the alias; its path may lead through others.
            module: the module on which the alias is used.
            above: the modules above it.
            within: aliases that are being resolved, which cannot lead through themselves.
        """
        within = (*within, alias)
        if not alias.prefix:
            is_here = not (alias.is_from_root and above)
            return self._followed(alias.path, module, above, within) if is_here else []
        for number in range(1) if alias.is_from_root else range(len(above)):
            beginning, way = above[:number], tuple(name for _, name in above[number:])
            if above and way in self._followed(alias.prefix, above[number][0], beginning, within):
                return self._followed(alias.path, module, above, within)
        return []

    def _followed(
        self, keys: Sequence[_Key], module: nn.Module, above: _Above, within: tuple[_Alias, ...]
    ) -> list[_Path]:
        """Return the paths below a module that match some keys, one for each module."""
        if not keys:
            return [()]
        found: dict[int, _Path] = {}
        for first in self._steps(keys[0], module, above, within):
            current, there = module, above
            for name in first:
                there = (*there, (current, name))
                current = children_of(current)[name]
            for rest in self._followed(keys[1:], current, there, within):
                target = _at(current, rest)
                if target is not None:
                    found.setdefault(id(target), (*first, *rest))
        return list(found.values())

    def _steps(
        self, key: _Key, module: nn.Module, above: _Above, within: tuple[_Alias, ...]
    ) -> Iterator[_Path]:
        children = children_of(module)
        if isinstance(key, type):
            yield from ((name,) for name, one in children.items() if isinstance(one, key))
        elif key == _ANY:
            yield from ((name,) for name, one in children.items() if one is not None)
        elif children.get(key) is not None:
            yield (key,)
        elif (path := self._path_of(module, key, above, within)) is not None:
            yield path

    def spellings(self, above: _Above) -> Iterator[Sequence[str]]:
        """Iterate over the names on the way to a module: its own, then with an alias for some.

        Args:
            above: the modules above it, each with the name of the next.
        """
        own = (ROOT, *(name for _, name in above))
        yield own
        for depth, (module, _) in enumerate(above):
            for alias in self._aliases:
                for path in self._matches(alias, module, above[:depth]):
                    end = depth + 1 + len(path)
                    if own[depth + 1 : end] == path:
                        yield (*own[: depth + 1], alias.name, *own[end:])

    def names_in(self, module: nn.Module, above: _Above) -> Iterator[str]:
        """Iterate over the aliases that can be used on a module."""
        for alias in self._aliases:
            if len(self._matches(alias, module, above)) == 1:
                yield alias.name

    def keys_of(self, name: str) -> list[str]:
        """Return the keys that an alias was given for, whether they lead to a module or not."""
        return [alias.key.removeprefix(".") for alias in self._aliases if alias.name == name]

    def printed(self, module: nn.Module, above: _Above) -> str:
        """Return the text of a module, with its aliases beside the names: `(mlp | feedforward)`.

        An alias that is used further up is shown with the place of its use: `(h | model.layers)`.
        """
        lines = []
        # the names on the way to a line, with their indents
        stack: list[tuple[int, str]] = []
        for line in repr(module).split("\n"):
            match = _LINE.match(line)
            if match is None:
                lines.append(line)
                continue
            indent, name = len(match["indent"]), match["name"]
            while stack and stack[-1][0] >= indent:
                stack.pop()
            several = _SEVERAL.match(name)
            stack.append((indent, several[1] if several else name))
            path = tuple(part for _, part in stack)
            shown = " | ".join([name, *self._shown(module, path, above)])
            lines.append(f"{match['indent']}({shown}): {line[match.end() :]}")
        return "\n".join(lines)

    def _shown(self, top: nn.Module, path: _Path, above: _Above) -> Iterator[str]:
        for alias in self._aliases:
            module, there = top, above
            for depth, name in enumerate(path):
                below = path[depth:]
                is_alias = below != (alias.name,) and self._matches(alias, module, there) == [below]
                if is_alias and len(below) == 1:
                    yield alias.name
                elif is_alias:
                    where = path[:depth][-2:] or (() if there else ("model",))
                    yield ".".join([*where, alias.name])
                if is_alias or name not in children_of(module):
                    break
                there, module = (*there, (module, name)), children_of(module)[name]


def _path_of_key(key: object) -> tuple[tuple[_Key, ...], str]:
    """Return the path that a key of `rename=` spells, and the key as text.

    Raises:
        ValueError: it is neither a path nor a class of modules.
    """
    if isinstance(key, str):
        return tuple(key.removeprefix(".").split(".")), key
    if isinstance(key, type) and issubclass(key, nn.Module):
        return (key,), key.__name__
    raise ValueError(
        f"rename= has the key {key!r}, and a key is the name of a module, its path or a class of "
        "modules"
    )


def _check_name(value: str, name: str, key: str, envoy_type: type) -> None:
    if not name.isidentifier():
        raise ValueError(
            f"the alias {value!r} of {key!r} is not a name; an alias is written model.alias"
        )
    if hasattr(envoy_type, name) or hasattr(nn.Module, name):
        raise ValueError(
            f"the alias {name!r} of {key!r} is the name of something that every module has here; "
            "choose another"
        )


def _kind_of(module: nn.Module, name: str) -> str:
    return "another module" if name in children_of(module) else "an attribute"


def _has_other(module: nn.Module, name: str, target: nn.Module) -> bool:
    """Return whether a name is that of something else in a module than the target."""
    if name in children_of(module):
        return True
    if stored(module, name) is NOT_THERE and class_attribute(type(module), name) is NOT_THERE:
        return False
    # a property of the model may lead to the same module
    return getattr(module, name, None) is not target


def _places_in(module: nn.Module, above: _Above) -> Iterator[tuple[nn.Module, _Above]]:
    yield module, above
    for name, child in children_of(module).items():
        if child is not None:
            yield from _places_in(child, (*above, (module, name)))


def _at(module: nn.Module, path: Sequence[str]) -> nn.Module | None:
    found: nn.Module | None = module
    for name in path:
        if found is None:
            return None
        found = children_of(found).get(name)
    return found
