"""Aliases of modules: other names under which envoys reach them.

    rename = {
        "mlp": "feedforward",                     # wherever a module is called mlp
        "attn.c_proj": "out",                     # wherever there is such a path: h[0].out
        "transformer.h": "layers",                # the same; this one leads from the root only
        ".transformer": ["model", "backbone"],    # with a leading dot from the root only
        "model.wte": "embed",                     # through another alias
    }

The original names keep working. A key that matches nowhere is not an error, so that one mapping
can serve several architectures; the alias is then unknown, and the error for it says why.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from nnsight_dsl.runtime.locations import children_of

_LINE = re.compile(r"^(?P<indent> *)\((?P<name>[^()\s]+)\): ")
_SEVERAL = re.compile(r"^(\d+)-\d+$")


@dataclass(frozen=True, slots=True)
class _Alias:
    """One alias, and the path that it leads to."""

    name: str
    path: tuple[str, ...]
    is_from_root: bool


class Renaming:
    """The aliases of one model.

    Args:
        rename: aliases by path, see above.
        root: the model.
        envoy_type: class whose attributes the aliases become.

    Raises:
        ValueError: an alias could not be reached, or would lead to two modules.
    """

    def __init__(
        self, rename: Mapping[str, str | Sequence[str]], root: nn.Module, envoy_type: type
    ) -> None:
        self._aliases: list[_Alias] = []
        for key, names in rename.items():
            if not isinstance(key, str) or "*" in key:
                raise ValueError(
                    f"rename= has the key {key!r}, and a key is the name of a module or its path; "
                    "write one entry for each path"
                )
            path = tuple(key.removeprefix(".").split("."))
            for name in [names] if isinstance(names, str) else names:
                if not name.isidentifier():
                    raise ValueError(
                        f"the alias {name!r} of {key!r} is not a single name; an alias is written "
                        "model.alias, so give it a name without dots"
                    )
                if hasattr(envoy_type, name) or hasattr(nn.Module, name):
                    raise ValueError(
                        f"the alias {name!r} of {key!r} is the name of something that every "
                        "module has here; choose another"
                    )
                self._aliases.append(_Alias(name, path, key.startswith(".")))
        if self._aliases:
            for place, module in root.named_modules(remove_duplicate=False):
                self._check_clashes(module, place)

    def _check_clashes(self, module: nn.Module, place: str) -> None:
        found: dict[str, tuple[str, ...]] = {}
        where = place or "the model"
        for alias in self._aliases:
            path = self._resolved(alias, module, is_root=not place)
            if path is None or path == (alias.name,):
                continue
            if alias.name in children_of(module):
                raise ValueError(
                    f"the alias {alias.name!r} of {'.'.join(alias.path)!r} is the name of another "
                    f"module in {where}; choose another"
                )
            if found.setdefault(alias.name, path) != path:
                raise ValueError(
                    f"the alias {alias.name!r} stands for {'.'.join(found[alias.name])!r} and "
                    f"for {'.'.join(path)!r} in {where}; choose another for one of them"
                )

    def path_of(self, module: nn.Module, name: str, *, is_root: bool) -> tuple[str, ...] | None:
        """Return the path below a module that an alias leads to, None if it leads nowhere."""
        return self._path_of(module, name, is_root, ())

    def _path_of(
        self, module: nn.Module, name: str, is_root: bool, within: tuple[_Alias, ...]
    ) -> tuple[str, ...] | None:
        for alias in self._aliases:
            if alias.name == name and alias not in within:
                found = self._resolved(alias, module, is_root=is_root, within=within)
                if found is not None:
                    return found
        return None

    def _resolved(
        self,
        alias: _Alias,
        module: nn.Module,
        *,
        is_root: bool,
        within: tuple[_Alias, ...] = (),
    ) -> tuple[str, ...] | None:
        """Return the path of original names that an alias leads to below a module, None for none.

        Args:
            alias: the alias; its path may lead through others.
            module: the module at which the path begins.
            is_root: whether that is the root.
            within: aliases that are being resolved, which cannot lead through themselves.
        """
        if alias.is_from_root and not is_root:
            return None
        path: list[str] = []
        current: nn.Module | None = module
        for number, name in enumerate(alias.path):
            if current is None:
                return None
            found: tuple[str, ...] | None = (name,)
            if children_of(current).get(name) is None:
                is_here = is_root and number == 0
                found = self._path_of(current, name, is_here, (*within, alias))
            if found is None:
                return None
            path += found
            current = _at(current, found)
        return tuple(path)

    def names_in(self, module: nn.Module, *, is_root: bool) -> Iterator[str]:
        """Iterate over the aliases that can be used on a module."""
        for alias in self._aliases:
            if self._resolved(alias, module, is_root=is_root) is not None:
                yield alias.name

    def keys_of(self, name: str) -> list[str]:
        """Return the paths that an alias was given for, whether they exist or not."""
        return [".".join(alias.path) for alias in self._aliases if alias.name == name]

    def printed(self, module: nn.Module, *, is_root: bool) -> str:
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
            shown = " | ".join(
                [name, *self._shown(module, tuple(part for _, part in stack), is_root=is_root)]
            )
            lines.append(f"{match['indent']}({shown}): {line[match.end() :]}")
        return "\n".join(lines)

    def _shown(self, top: nn.Module, path: tuple[str, ...], *, is_root: bool) -> Iterator[str]:
        for alias in self._aliases:
            for depth in range(len(path)):
                above, below = path[:depth], path[depth:]
                module = _at(top, above)
                if module is None or below == (alias.name,):
                    continue
                here = is_root and not above
                if self._resolved(alias, module, is_root=here) != below:
                    continue
                if len(below) == 1:
                    yield alias.name
                else:
                    where = above[-2:] or (("model",) if is_root else ())
                    yield ".".join([*where, alias.name])
                break


def _at(module: nn.Module, path: Sequence[str]) -> nn.Module | None:
    found: nn.Module | None = module
    for name in path:
        if found is None:
            return None
        found = children_of(found).get(name)
    return found
