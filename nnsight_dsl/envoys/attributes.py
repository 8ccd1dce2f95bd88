"""Attributes of envoys: those that a user's subclass sets, and facts that a submodule may hide."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Generic, TypeVar, overload

_Value = TypeVar("_Value")

IN_INIT = "_in_init"
"""Attribute of a wrapper while the `__init__` of a user's class runs: how many of them do."""


def keeping_attributes(init: Callable[..., None]) -> Callable[..., None]:
    """Make attributes that a subclass sets in its `__init__` belong to the wrapper."""

    @wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        own = self.__dict__
        own[IN_INIT] = own.get(IN_INIT, 0) + 1
        try:
            init(self, *args, **kwargs)
        finally:
            own[IN_INIT] -= 1
            if not own[IN_INIT]:
                del own[IN_INIT]

    return __init__


class Fact(Generic[_Value]):
    """A read-only attribute of envoys, unless the module has a submodule of that name.

    It has no `__set__`, so that an attribute that a subclass of a wrapper sets comes first.
    """

    def __init__(self, function: Callable[[Any], _Value]) -> None:
        self._function = function
        self._name = function.__name__
        self.__doc__ = function.__doc__

    @overload
    def __get__(self, envoy: None, kind: type) -> Fact[_Value]: ...
    @overload
    def __get__(self, envoy: object, kind: type) -> _Value: ...
    def __get__(self, envoy: Any, kind: type) -> Any:
        if envoy is None:
            return self
        child = envoy._child(self._name)
        return self._function(envoy) if child is None else child
