"""Serialisation of programs, for the cache of modules compiled by the import hook.

`marshal`, the format of `.pyc` files, handles code objects and plain values; a program is written
as a dictionary of its fields. Like a `.pyc` file, the bytes are valid only for the version of
Python and of this package that wrote them. The name of the cache file contains both versions, so
this module does not check them. Programs for another process travel as recipes (`recipes.py`).
"""

from __future__ import annotations

import dataclasses
import marshal
from typing import Any

from .program import Program
from .source.accesses import State
from .source.plain import Plain


def _fields(value: Any) -> tuple[Any, ...]:
    return tuple(getattr(value, field.name) for field in dataclasses.fields(value))


def _as_values(program: Program) -> dict[str, Any]:
    values = dict(
        zip([field.name for field in dataclasses.fields(program)], _fields(program), strict=True)
    )
    values["states"] = tuple(_fields(state) for state in program.states)
    values["plain"] = None if program.plain is None else _fields(program.plain)
    values["children"] = tuple(_as_values(child) for child in program.children)
    return values


def _from_values(values: dict[str, Any]) -> Program:
    values = dict(values)
    values["states"] = tuple(State(*fields) for fields in values["states"])
    values["plain"] = None if values["plain"] is None else Plain(*values["plain"])
    values["children"] = tuple(_from_values(child) for child in values["children"])
    return Program(**values)


def dump_programs(programs: tuple[Program, ...]) -> bytes:
    """Serialise programs."""
    return marshal.dumps(tuple(_as_values(program) for program in programs))


def load_programs(data: bytes) -> tuple[Program, ...]:
    """Deserialise the result of `dump_programs`."""
    return tuple(_from_values(values) for values in marshal.loads(data))
