"""The modules that answer to the name `nnsight`: a finder for them, and for their version.

A finder at the head of `sys.meta_path` makes each module when it is first imported. Its names are
looked up in `names.py` when they are first used, so that importing `nnsight` imports no torch.
`importlib.util.find_spec("nnsight")` and `importlib.metadata.version("nnsight")` ask it, too.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder
from typing import Any

from nnsight_dsl.compat.names import MISSING_MODULES, names_of, removed_from

_TOP = "nnsight"


class Alias(types.ModuleType):
    """A module whose names are other modules'."""

    _nnsight_dsl_dialect: str

    def __getattr__(self, name: str) -> Any:
        own = self.__name__
        if name.startswith("__"):
            raise AttributeError(f"module {own!r} has no attribute {name!r}", name=name, obj=self)
        target = (names_of(self._nnsight_dsl_dialect, own) or {}).get(name)
        if target is None:
            below = f"{own}.{name}"
            if names_of(self._nnsight_dsl_dialect, below) is not None:
                return importlib.import_module(below)
            reason = removed_from(self._nnsight_dsl_dialect, own, name)
            raise AttributeError(reason, name=name, obj=self)
        module, _, attribute = target.partition(":")
        value: Any = importlib.import_module(module)
        for part in attribute.split(".") if attribute else ():
            value = getattr(value, part)
        self.__dict__[name] = value
        return value

    def __dir__(self) -> list[str]:
        known = names_of(self._nnsight_dsl_dialect, self.__name__) or {}
        return sorted({*super().__dir__(), *known})


def is_alias(module: types.ModuleType) -> bool:
    """Return whether a module is one of these."""
    return isinstance(module, Alias)


class _AliasLoader(Loader):
    """Makes a module of the finder's dialect."""

    def __init__(self, finder: AliasFinder) -> None:
        self._finder = finder

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return Alias(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        finder, name = self._finder, module.__name__
        own = module.__dict__
        own["_nnsight_dsl_dialect"] = finder.dialect
        own["__doc__"] = f"nnsight_dsl under the name {name}, for programs written for nnsight."
        own["__all__"] = sorted(names_of(finder.dialect, name) or ())
        if name == _TOP:
            own["__version__"] = finder.version
            finder.imported()


class AliasFinder(DistributionFinder):
    """Finds `nnsight` and the modules in it.

    Attributes:
        dialect: the version that programs were written for, as `"0.8"`.
        version: the version that `nnsight.__version__` names, as `"0.8.1"`.
    """

    def __init__(
        self, dialect: str, version: str, at_import: Callable[[str], None] | None = None
    ) -> None:
        self.dialect = dialect
        self.version = version
        self._at_import = at_import

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> ModuleSpec | None:
        if name.partition(".")[0] != _TOP:
            return None
        if names_of(self.dialect, name) is None:
            if name in MISSING_MODULES:
                raise ModuleNotFoundError(
                    f"{name} is missing on purpose: {MISSING_MODULES[name]}", name=name
                )
            return None
        # each is a package with no folder, so that a module in it is asked for here
        return ModuleSpec(name, _AliasLoader(self), origin="nnsight_dsl.compat", is_package=True)

    def imported(self) -> None:
        """Do what the import of `nnsight` itself brings along."""
        if self._at_import is not None:
            self._at_import(self.dialect)

    def find_distributions(
        self, context: DistributionFinder.Context | None = None
    ) -> Iterator[Distribution]:
        name = None if context is None else context.name
        if name is None or name.lower() == _TOP:
            yield _AliasDistribution(self.version)


class _AliasDistribution(Distribution):
    """The metadata of `nnsight`, for programs that ask for its version."""

    def __init__(self, version: str) -> None:
        self._texts = {
            "METADATA": f"Metadata-Version: 2.1\nName: {_TOP}\nVersion: {version}\n"
            "Summary: nnsight_dsl, under the name of nnsight\n",
            "top_level.txt": f"{_TOP}\n",
        }

    def read_text(self, filename: str) -> str | None:
        return self._texts.get(filename)

    def locate_file(self, path: Any) -> Any:
        raise FileNotFoundError(f"{path} of nnsight is nowhere: nnsight_dsl answers to its name")
