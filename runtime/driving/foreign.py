"""Requests on objects that belong to no model: each is a plain Python operation."""

from __future__ import annotations

from typing import Any

from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.runtime.machines.steps import PlainSteps
from nnsight_dsl.transforms import requests
from nnsight_dsl.transforms.requests import Request, target_of

ON_TARGET = frozenset({requests.READ, requests.WRITE, requests.ELEMENT, requests.STEP})
"""Requests on the object before the dot, be it a place of a model or any other object."""


def find_foreign(request: Request) -> tuple[Any, ...] | None:
    """Return the plain Python operation that a request on any other object means.

    None if the request is for a place of a model, or has no target object.
    """
    if request[0] not in ON_TARGET:
        return None
    target = target_of(request)
    if request[0] == requests.STEP:
        # a loop over steps runs no code of the user's; one over any other iterable does
        is_foreign = isinstance(target, PlainSteps)
    else:
        is_foreign = not isinstance(target, Place)
    return _on_foreign(request) if is_foreign else None


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
