"""Guards: facts about one program on one model, cached with the conditions under which they hold.

A block that is entered again mostly finds the same model under the same names. Whether it is plain
(see `nnsight_dsl.transforms.source.plain`) and which places it can ask for is found out once; a
*fit* caches that, together with its guards:

- the values of the names that were looked at. Models, Python modules and classes are compared by
  identity. Of any other value only its type counts, and the value is not kept.
- the modules at the places. If one was replaced, the fit no longer holds.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from nnsight_dsl.runtime.driving.fast_path import LoneDriver
from nnsight_dsl.runtime.driving.results import StreamPlace
from nnsight_dsl.runtime.locations import Place, places_at
from nnsight_dsl.runtime.machines.machine import carried_programs
from nnsight_dsl.runtime.tapping.kept_taps import Fixtures, Needs
from nnsight_dsl.runtime.values.known_types import is_of_library
from nnsight_dsl.tracing.plainness import is_plain, is_plain_path, is_plain_value, own_names
from nnsight_dsl.tracing.saving import INJECTED
from nnsight_dsl.transforms.names import MISSING
from nnsight_dsl.transforms.program import Program, Running
from nnsight_dsl.transforms.source.plain import Path

_PASSING_ON = frozenset({nn.Sequential, nn.Identity})
"""Modules of torch that return their input unchanged, or a child's output."""

_NONE: frozenset[str] = frozenset()
_KEPT = (types.ModuleType, type, types.BuiltinFunctionType)


class _Any:
    """The type of `_ANY_PLAIN`, the mark for any plain value."""


_ANY_PLAIN = _Any()


@dataclass(slots=True, eq=False)
class Fit:
    """The cached facts about the runs of one program on one model.

    Attributes:
        user_globals: globals of the module that contains its block.
        function: the generator function with these globals and the injected names.
        is_plain: whether the program is plain, with the current values of its names.
        needs: the modules that it is known to ask for.
        names: the names that were looked at, and the value or mark of each.
        roots: those of them that accesses start from and that have another value in each run.
        seen: values of the other names that accesses start from.
        is_alone: whether a run of it needs nothing but one plain machine.
        chain: for each module on the way to a place: attributes of its parent, its key, and itself.
        attributes: names with paths from them that lead to attributes of modules, which may be set
            to other values.
        is_tried: True once a run has shown that its values are of known types, so that it asks
            for no other modules than those named; True at once for libraries' modules, or if
            all modules are tapped anyway.
        idle: drivers that a next run can reuse.
    """

    user_globals: dict[str, Any]
    function: Callable[..., Running]
    is_plain: bool
    needs: Needs
    is_alone: bool
    names: Sequence[tuple[str, Any]]
    roots: frozenset[str]
    seen: Mapping[str, Any]
    chain: Sequence[tuple[dict[str, Any], str, Any]]
    attributes: Sequence[tuple[str, Path]]
    is_tried: bool
    idle: list[LoneDriver] = field(default_factory=list)

    def new_driver(self, root: Place) -> LoneDriver:
        """Make a driver for runs that need nothing but one plain machine."""
        needs = self.needs
        is_known = needs.is_closed and not needs.expected
        return LoneDriver(root, needs.fixtures, is_known=is_known)

    def holds(
        self, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
    ) -> bool:
        """Return whether the guards still hold."""
        if user_globals is not self.user_globals:
            return False
        if self.is_plain and program in carried_programs:
            return False
        for name, known in self.names:
            value = names.get(name, MISSING)
            if value is MISSING:
                value = user_globals.get(name, MISSING)
                if value is MISSING:
                    value = program.initial(name, user_globals, names, fall_back=True)
            if value is not known and not (known is _ANY_PLAIN and _is_any_plain(value)):
                return False
        try:
            for own, name, module in self.chain:
                if own["_modules"][name] is not module:
                    return False
        except KeyError:
            return False
        for name, path in self.attributes:
            start = program.initial(name, user_globals, names, fall_back=True)
            if not is_plain_path(start, path):
                return False
        return True


def fit_of(
    root: Place,
    fits: dict[Program, Fit],
    program: Program,
    user_globals: dict[str, Any],
    names: Mapping[str, Any],
) -> Fit:
    """Return the fit of a program on a model, from the cache if it still holds.

    Args:
        root: the root of the model.
        fits: cached fits of that model; a new fit is added.
        program: the program.
        user_globals: globals of the module that contains its block.
        names: values of the names around its block.
    """
    fit = fits.get(program)
    if fit is None or not fit.holds(program, user_globals, names):
        fit = _new_fit(root, program, user_globals, names)
        if all(_can_keep(value) for _, value in fit.names):
            fits[program] = fit
    return fit


def _new_fit(
    root: Place, program: Program, user_globals: dict[str, Any], names: Mapping[str, Any]
) -> Fit:
    plain = program.plain
    roots = {state.root for state in program.states if state.root is not None}
    looked_at = roots if plain is None else roots | plain.roots
    # the block reads no names of an enclosing function except its program's parameters
    values = {
        name: program.initial(name, user_globals, names, fall_back=True) for name in looked_at
    }
    plainly = plain is not None and program not in carried_programs and is_plain(plain, values)
    # a cache records modules that may already be running when it is made: tap all beforehand
    is_closed = plainly and plain is not None and not plain.makes_cache
    streams = False
    expected: list[tuple[Place, str]] = []
    chain: dict[int, tuple[dict[str, Any], str, Any]] = {}
    for state in program.states:
        start = values[state.root] if state.root is not None else None
        found = places_at(start, state.path) if isinstance(start, Place) else None
        # gradients are not values of a module
        is_closed = is_closed and (found is not None or state.port == "grad")
        for place in found or ():
            chain.update(_chain_to(place))
            streams |= isinstance(place, StreamPlace)
            # a place without a module, as a run's result, is not tapped
            if place._module is not None:
                expected.append((place, state.port))
    attributes = _attributes(plain.paths if plain is not None and plainly else (), values, chain)
    marks = [
        (name, _ANY_PLAIN if _is_any_plain(value) else value) for name, value in values.items()
    ]
    changing = {name for name, mark in marks if mark is _ANY_PLAIN and name in roots}
    # a block may name places of another model, which this run does not tap
    own = [place for place, _ in expected if place._root is root]
    fixtures = Fixtures(own)
    fixed = {id(place._module) for place in fixtures.places}
    return Fit(
        user_globals=user_globals,
        function=program.function(user_globals, INJECTED),
        is_plain=plainly,
        needs=Needs(
            fixtures if fixed else None,
            [pair for pair in expected if id(pair[0]._module) not in fixed],
            is_closed,
            streams,
        ),
        is_alone=plainly
        and not (changing or program.children or program.fetched or program.looks_outside)
        and not root._splits(),
        names=marks,
        roots=frozenset(changing),
        seen={name: values[name] for name in roots - changing},
        chain=list(chain.values()),
        attributes=attributes,
        is_tried=not is_closed or all(_hands_out_known(place) for place, _ in expected),
    )


def _attributes(
    paths: Iterable[Path],
    values: Mapping[str, Any],
    chain: dict[int, tuple[dict[str, Any], str, Any]],
) -> list[tuple[str, Path]]:
    """Return the paths that lead to attributes of modules; add those to modules to `chain`."""
    attributes = []
    for path in paths:
        start = values[path[0]]
        found = places_at(start, path[1]) if isinstance(start, Place) else []
        if found is None:
            attributes.append((path[0], path))
        for place in found or ():
            chain.update(_chain_to(place))
    return attributes


def _hands_out_known(place: Place) -> bool:
    """True if a module's values are of known types, as far as its class tells."""
    kind = type(place._module)
    return is_of_library(kind) and kind not in _PASSING_ON


def _chain_to(place: Place) -> Iterator[tuple[int, tuple[dict[str, Any], str, Any]]]:
    current: Place | None = place
    while current is not None:
        parent, key = current._parent, getattr(current, "_key", None)
        if parent is not None and key is not None:
            # not its table of modules, since deleting from a list makes a new table
            yield id(current), (parent._module.__dict__, key, current._module)
        current = parent


def _can_keep(value: Any) -> bool:
    return value is _ANY_PLAIN or value is MISSING or isinstance(value, (Place, *_KEPT))


def _is_any_plain(value: Any) -> bool:
    """Return whether only the type of a plain value counts, as of a tracer, new in each run."""
    if isinstance(value, Place):
        return value._module is None and value._root is None and own_names(type(value)) == _NONE
    if value is MISSING:
        return False
    return not isinstance(value, _KEPT) and is_plain_value(value)
