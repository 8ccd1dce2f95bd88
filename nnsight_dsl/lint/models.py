"""Model facts by reference, with a cache on disk.

A reference is a folder with a `config.json`, the name of a repository, or
`package.module:factory`, where the factory returns a module, a wrapper of this package, or a
module and its example arguments.

    structure_for("gpt2").place(("lm_head",))       # "lm_head"

Building and recording a model takes seconds, so the facts are cached in the user's cache folder.
The key is a hash of the config (for a factory: of the Python files of its package, or beside its
module) and of the versions of the libraries. On a cache hit neither torch nor the model is loaded.
A factory whose model depends on anything else, such as a data file, may be served stale facts.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nnsight_dsl.version import __version__

from .cache_files import cache_folder, write_whole
from .model_facts import Structure, structure_of
from .settings import SettingsError

_FORM = 3
"""Version of the cached JSON; increase it when `Structure.as_json` changes."""


def structure_for(reference: str) -> Structure:
    """Return the facts about a model.

    Args:
        reference: a folder, a repository or a factory, as described above.

    Raises:
        SettingsError: there is no such model, or it cannot be built.
    """
    is_factory = _is_factory(reference)
    if is_factory and "" not in sys.path:
        # as `python -m` does, import from the current folder
        sys.path.insert(0, "")
    key = _factory_key(reference) if is_factory else _config_key(reference)
    path = cache_folder() / "models" / f"{key}.json"
    if key:
        try:
            return structure_of(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            pass
    from .building import recorded_config, recorded_factory

    try:
        structure = recorded_factory(reference) if is_factory else recorded_config(reference)
    except SettingsError:
        raise
    except Exception as error:
        raise SettingsError(
            f"the model {reference!r} cannot be built: {type(error).__name__}: {error}"
        ) from error
    if key:
        write_whole(path, json.dumps(structure.as_json()))
    return structure


def _is_factory(reference: str) -> bool:
    module, colon, name = reference.partition(":")
    return bool(colon) and name.isidentifier() and module.replace(".", "").isidentifier()


def _versions() -> str:
    found = [str(_FORM), __version__, sys.version]
    for name in ("torch", "transformers", "accelerate"):
        try:
            found.append(version(name))
        except PackageNotFoundError:
            found.append("none")
    return "\n".join(found)


def _config_key(reference: str) -> str:
    """Hash the config of a model without loading the model.

    Empty, which means "do not cache", if the config has not been downloaded.
    """
    file = Path(reference) / "config.json"
    if not file.is_file():
        from huggingface_hub import try_to_load_from_cache

        try:
            found = try_to_load_from_cache(reference, "config.json")
        except ValueError as error:
            raise SettingsError(
                f"{reference!r} is neither a folder with a config.json, nor the name of a "
                f"repository, nor package.module:factory ({error})"
            ) from None
        if not isinstance(found, str):
            return ""
        file = Path(found)
    return hashlib.sha256(_versions().encode() + file.read_bytes()).hexdigest()[:32]


def _factory_key(reference: str) -> str:
    """Hash the files that define a factory, without importing it.

    These are all Python files of its package, since a factory calls other modules of it. For a
    module outside of packages, they are those in its folder.
    """
    module = reference.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise SettingsError(
            f"{module!r} of {reference!r} is not a module that can be imported here"
        )
    found = hashlib.sha256(_versions().encode() + reference.encode())
    for path in _files_beside(Path(spec.origin), module):
        found.update(path.read_bytes())
    return found.hexdigest()[:32]


def _files_beside(file: Path, module: str) -> list[Path]:
    depth = module.count(".") + (file.name == "__init__.py")
    if depth == 0:
        return sorted(file.parent.glob("*.py"))
    return sorted(file.parents[depth - 1].rglob("*.py"))
