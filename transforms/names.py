"""Every name put into somebody else's namespace.

Lowered code runs in the user's globals, so what it needs beside the user's names reaches it
through closure cells, never through the globals. All such names begin with the same prefix,
which the summary of a block's names leaves out again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREFIX = "_nns_"

GENERATED = "_nns_comprehension_"
"""How the names of functions begin that stand for a comprehension."""

MISSING_NAME = "_nns_missing"
SAVE = "_nns_save"
SAVE_OF = "_nns_save_of"
KEY = "_nns_key"
INPLACE = "_nns_inplace"
USERS = "_nns_users"
ARGUMENTS = "_nns_arguments"
IS_BLOCK = "_nns_is_block"
BOUND_BY = "_nns_bound_by"
OUTER = "_nns_outer"
TEMP_VALUE = "_nns_value"
TEMP_PLACE = "_nns_place"
TEMP_STEPS = "_nns_steps"
TEMP_LEFT = "_nns_left"

TAPPED = "_nns_tapped"
"""Attribute of the class that a module has for the length of a run: the class that it has else."""

INJECTED = (MISSING_NAME, SAVE, SAVE_OF, KEY, INPLACE, USERS, ARGUMENTS, IS_BLOCK, BOUND_BY, OUTER)
"""Names that lowered code finds in its closure; runtime supplies their values."""


def is_ours(name: str) -> bool:
    """Return whether a name in a block's namespace was put there by the lowering."""
    return name.startswith(PREFIX)


def users_names(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Return a namespace without the names that the lowering put into it."""
    return {name: value for name, value in namespace.items() if not is_ours(name)}


class Missing:
    """The type of the one value that stands for "this name is not bound yet"."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<not bound>"


MISSING = Missing()


class KeyOf:
    """`KeyOf()[1:2, ...]` is the key that a subscript with the same text passes on."""

    __slots__ = ()

    def __getitem__(self, key: object) -> object:
        return key
