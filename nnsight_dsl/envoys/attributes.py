"""Attributes that a user's subclass of a wrapper sets in its `__init__`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

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
