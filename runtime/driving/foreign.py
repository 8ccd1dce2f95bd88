"""Requests, read: what one is for, and when it is served."""

from __future__ import annotations

from typing import Any

from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.runtime.machines.steps import PlainSteps
from nnsight_dsl.runtime.tapping.checkpoints import INPUTS, OUTPUT
from nnsight_dsl.transforms import requests
from nnsight_dsl.transforms.requests import Request

ON_TARGET = frozenset({requests.READ, requests.WRITE, requests.ELEMENT, requests.STEP})
"""Requests for whatever object stands before the dot, a place of a model or any other."""

BEFORE = ("input", "inputs")
"""Ports whose values there are before the call."""

_NO_CODE = Place()


def phase_of(request: Request) -> str | None:
    """Tell when a request is served: before the call of its module, or after."""
    verb = request[0]
    if verb == requests.READ:
        return INPUTS if request[2] in BEFORE else OUTPUT
    if verb == requests.ELEMENT:
        return INPUTS if request[4] in BEFORE else OUTPUT
    if verb == requests.WRITE:
        return INPUTS if request[3] in BEFORE else OUTPUT
    return INPUTS if verb == requests.SKIP else None


def target_of(request: Request) -> Any:
    verb = request[0]
    if verb == requests.WRITE:
        return request[2]
    if verb == requests.ELEMENT:
        return request[3]
    if verb == requests.STEP:
        # only a loop over something that is no steps runs the user's code
        return request[1] if isinstance(request[1], PlainSteps) else _NO_CODE
    return request[1]


def find_foreign(request: Request) -> tuple[Any, ...] | None:
    """Return the plain Python operation that a request on any other object stands for.

    None if it is for a place of a model, or for no object at all.
    """
    if request[0] in ON_TARGET and not isinstance(target_of(request), Place):
        return _on_foreign(request)
    return None


def _on_foreign(request: Request) -> tuple[Any, ...]:
    verb = request[0]
    if verb == requests.READ:
        return getattr, request[1], request[2]
    if verb == requests.STEP:
        return _next_item, request[1]
    if verb == requests.ELEMENT:
        _, value, container, _, _, *path = request
        return _set_item, container, path, value
    _, value, target, port = request
    return setattr, target, port, value


def _next_item(steps: PlainSteps) -> bool:
    for value in steps.iterator:
        steps.value = value
        return True
    return False


def _set_item(container: Any, path: list[Any], value: Any) -> None:
    for key in path[:-1]:
        container = container[key]
    container[path[-1]] = value


def key_of(place: Place) -> int:
    """Identify what a tap is for: a module, which may sit at several places, or a place."""
    return id(place if place._module is None else place._module)
