"""Keywords of a forward: the ones that it takes, also where it passes `**kwargs` on.

    class Mine(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

takes an `attention_mask` although its signature has none. `keywords_of` follows `**kwargs` through
the text of a forward: to the next class, to a submodule (`self.model(..., **kwargs)`) and to a
function. Where the text cannot be read, or a local variable is called, nothing is known about the
other keywords, and the forward counts as open.

An open forward may swallow a keyword that nothing uses. `is_used` looks for its name in the code of
the model's classes: as a parameter, or as a string, which `kwargs.pop("name")` has.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from torch import nn

_DEEPEST = 8
"""How many calls `**kwargs` is followed through."""

_NOT_MODELS = ("torch.", "transformers.modeling_utils", "transformers.generation.")
"""Modules whose classes are bases of models, and have parameters that no forward takes."""

_Kind = inspect.Parameter


@dataclass(frozen=True, slots=True)
class Keywords:
    """The keywords of a call.

    Attributes:
        names: the ones that are known.
        is_open: whether there may be others.
    """

    names: frozenset[str]
    is_open: bool

    def __contains__(self, name: object) -> bool:
        return name in self.names


_UNKNOWN = Keywords(frozenset(), is_open=True)


def forward_of(module: nn.Module) -> Any:
    """Return the function that a call of a module runs: its own, or that of its class."""
    return module.__dict__.get("forward") or type(module).forward


def keywords_of(module: nn.Module) -> Keywords:
    """Return the keywords that a module's forward takes."""
    own = module.__dict__.get("forward")
    if own is not None:
        found = _Reading(module).of(own, None)
        # a wrapper, as accelerate puts one, which calls the forward of the class
        return either(found, _of_class(module)) if found.is_open else found
    return _of_class(module)


def is_used(module: nn.Module, name: str) -> bool:
    """Tell whether any class of a model, or a function beside one, knows a keyword."""
    # composite models pass `decoder_x` on as `x`
    names = {name, name.removeprefix("decoder_"), name.removeprefix("encoder_")}
    classes = {cls for one in module.modules() for cls in type(one).__mro__}
    return any(
        not names.isdisjoint(_words_of(code))
        for cls in classes
        if not f"{cls.__module__}.".startswith(_NOT_MODELS)
        for code in _codes_of(cls)
    ) or any(not names.isdisjoint(_words_of(code)) for code in _attention_codes(module))


def named_parameters(function: Any) -> frozenset[str]:
    """Return the parameters of a function that can be given by name, without `self`."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return frozenset()
    return frozenset(one.name for one in parameters if one.kind in _NAMED and one.name != "self")


def takes_any(function: Any) -> bool:
    """Tell whether a function has `**kwargs`."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(one.kind is _Kind.VAR_KEYWORD for one in parameters)


def words_of(function: Any) -> frozenset[str]:
    """Return the parameters of a function and the strings in it that could be names."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    words = _words_of(code) if isinstance(code, CodeType) else set()
    return frozenset(one for one in words if one.isidentifier())


def _of_class(module: nn.Module) -> Keywords:
    for number, cls in enumerate(type(module).__mro__):
        if "forward" in cls.__dict__:
            return _Reading(module).of(cls.__dict__["forward"], number)
    return _UNKNOWN


def either(one: Keywords, other: Keywords) -> Keywords:
    """Return the keywords that one of two calls takes."""
    return Keywords(one.names | other.names, is_open=one.is_open or other.is_open)


class _Reading:
    """Follows `**kwargs` from the forward of one module."""

    def __init__(self, module: nn.Module, depth: int = 0) -> None:
        self._module = module
        self._depth = depth

    def of(self, function: Any, number: int | None, by_position: int = 0) -> Keywords:
        """Return the keywords of a function.

        Args:
            function: a forward, or anything else that is called.
            number: place of its class among the module's bases, for `super()`.
            by_position: how many arguments are given to it by position.
        """
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            return _UNKNOWN
        named = [one.name for one in parameters if one.kind in _NAMED]
        named = named[by_position + (number is not None) :]
        rest = next((one.name for one in parameters if one.kind is _Kind.VAR_KEYWORD), None)
        if rest is None:
            return Keywords(frozenset(named), is_open=False)
        passed_on = self._passed_on(function, rest, number)
        return Keywords(frozenset(named) | passed_on.names, passed_on.is_open)

    def _passed_on(self, function: Any, rest: str, number: int | None) -> Keywords:
        """Return the keywords that are taken where `**rest` is passed on to."""
        tree = _tree_of(function)
        if tree is None or self._depth >= _DEEPEST:
            return self._of_next_class(number) if number is not None else _UNKNOWN
        first = tree.args.args[0].arg if tree.args.args else ""
        found = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and any(
                one.arg is None and isinstance(one.value, ast.Name) and one.value.id == rest
                for one in node.keywords
            ):
                taken = self._of_call(node.func, _positions(node), first, number)
                given = {one.arg for one in node.keywords}
                found.append(Keywords(taken.names - given, taken.is_open))
        if not found:
            return _UNKNOWN
        names = frozenset().union(*(one.names for one in found))
        return Keywords(
            # a keyword goes to all of them
            frozenset(name for name in names if all(one.is_open or name in one for one in found)),
            is_open=any(one.is_open for one in found),
        )

    def _of_call(self, called: ast.expr, count: int, first: str, number: int | None) -> Keywords:
        path: list[str] = []
        while isinstance(called, ast.Attribute):
            path.insert(0, called.attr)
            called = called.value
        is_super = isinstance(called, ast.Call) and ast.unparse(called.func) == "super"
        if is_super and path in (["forward"], ["__call__"]) and number is not None:
            return self._of_next_class(number, count)
        if not isinstance(called, ast.Name) or called.id != first or not path:
            return _UNKNOWN
        target: Any = self._module
        for name in path:
            target = getattr(target, name, None)
        if isinstance(target, nn.Module):
            return self._below(target, count)
        if isinstance(getattr(target, "__self__", None), nn.Module) and path[-1] in (
            "forward",
            "__call__",
        ):
            return self._below(target.__self__, count)
        return _Reading(self._module, self._depth + 1).of(target, None, count)

    def _of_next_class(self, number: int, count: int = 0) -> Keywords:
        bases = type(self._module).__mro__
        for later in range(number + 1, len(bases)):
            if bases[later] is nn.Module:
                break
            if "forward" in bases[later].__dict__:
                reading = _Reading(self._module, self._depth + 1)
                return reading.of(bases[later].__dict__["forward"], later, count)
        return _UNKNOWN

    def _below(self, module: nn.Module, count: int) -> Keywords:
        reading = _Reading(module, self._depth + 1)
        if self._depth >= _DEEPEST:
            return _UNKNOWN
        for number, cls in enumerate(type(module).__mro__):
            if "forward" in cls.__dict__:
                return reading.of(cls.__dict__["forward"], number, count)
        return _UNKNOWN


_NAMED = (_Kind.POSITIONAL_OR_KEYWORD, _Kind.KEYWORD_ONLY)


def _positions(call: ast.Call) -> int:
    """Count the arguments that are given by position; of `*args` nothing is known."""
    return sum(not isinstance(one, ast.Starred) for one in call.args)


def _tree_of(function: Any) -> ast.FunctionDef | None:
    """Return the syntax tree of a function; None where its text cannot be found."""
    try:
        text = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
        (statement,) = ast.parse(text).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    return statement if isinstance(statement, ast.FunctionDef) else None


def _codes_of(cls: type) -> Iterator[CodeType]:
    for value in cls.__dict__.values():
        function = inspect.unwrap(value) if isinstance(value, FunctionType) else None
        if isinstance(function, FunctionType):
            yield function.__code__


def _attention_codes(module: nn.Module) -> Iterator[CodeType]:
    """Find the functions that compute attention, which transformers keeps in a table."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = getattr(getattr(module, "config", None), "_attn_implementation", None)
    function: Callable[..., Any] | None = ALL_ATTENTION_FUNCTIONS.get(name)
    if isinstance(function, FunctionType):
        yield function.__code__


def _words_of(code: CodeType) -> set[str]:
    """Return the parameters of a function and the strings in it."""
    count = code.co_argcount + code.co_kwonlyargcount
    words = set(code.co_varnames[:count])
    for constant in code.co_consts:
        if isinstance(constant, str):
            words.add(constant)
        elif isinstance(constant, tuple):
            words.update(one for one in constant if isinstance(one, str))
        elif isinstance(constant, CodeType):
            words |= _words_of(constant)
    return words
