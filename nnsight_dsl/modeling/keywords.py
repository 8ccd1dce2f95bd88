"""The keywords that a forward takes, including those that it passes on as `**kwargs`.

    class Mine(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

takes an `attention_mask` although its signature has none. A misspelt keyword would vanish in such a
`**kwargs`, so the names that it accepts have to be found. `keywords_of` reads the source of a
forward and follows `**kwargs` to the next class (`super().forward`), to a submodule
(`self.model(..., **kwargs)`) and to a method (`self.embed(**kwargs)`). If the source is not
available, or a local variable is called, further keywords are possible, and the result is open.

An open forward may accept a keyword that nothing uses. `is_used` searches for the name in the
bytecode of the model's classes: as a parameter, or as a string constant, for `kwargs.pop("name")`.
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
"""The number of nested calls through which `**kwargs` is followed."""

_NOT_MODELS = ("torch.", "transformers.modeling_utils", "transformers.generation.")
"""Modules with base classes of models, whose methods have parameters that no forward takes."""

_Kind = inspect.Parameter


@dataclass(frozen=True, slots=True)
class Keywords:
    """The keywords that a call accepts.

    Attributes:
        names: the known ones.
        is_open: True if it may accept others.
    """

    names: frozenset[str]
    is_open: bool

    def __contains__(self, name: object) -> bool:
        return name in self.names


_UNKNOWN = Keywords(frozenset(), is_open=True)


def forward_of(module: nn.Module) -> Any:
    """Return the forward of a module: that of the instance, if it was replaced, or of its class."""
    return module.__dict__.get("forward") or type(module).forward


def keywords_of(module: nn.Module) -> Keywords:
    """Return the keywords that a module's forward takes."""
    own = module.__dict__.get("forward")
    if own is not None:
        found = _Reading(module).of(own, None)
        # an open one is usually a wrapper, such as accelerate's, around the forward of the class
        return either(found, _of_class(module)) if found.is_open else found
    return _of_class(module)


def is_used(module: nn.Module, name: str) -> bool:
    """Return whether the code of a model uses a keyword.

    The code is that of its classes and of its attention function.
    """
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
    """Return the parameters of a function that can be passed by name, without `self`."""
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
    """Return the parameters of a function, and its string constants that are identifiers."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    words = _words_of(code) if isinstance(code, CodeType) else set()
    return frozenset(one for one in words if one.isidentifier())


def _of_class(module: nn.Module) -> Keywords:
    for number, cls in enumerate(type(module).__mro__):
        if "forward" in cls.__dict__:
            return _Reading(module).of(cls.__dict__["forward"], number)
    return _UNKNOWN


def either(one: Keywords, other: Keywords) -> Keywords:
    """Return the union of the keywords of two calls."""
    return Keywords(one.names | other.names, is_open=one.is_open or other.is_open)


class _Reading:
    """Follows `**kwargs` from the forward of one module.

    Args:
        module: the module, to resolve `self.x` in the source.
        depth: the number of calls followed so far.
    """

    def __init__(self, module: nn.Module, depth: int = 0) -> None:
        self._module = module
        self._depth = depth

    def of(self, function: Any, number: int | None, by_position: int = 0) -> Keywords:
        """Return the keywords of a function.

        Args:
            function: a forward, or anything else that is called.
            number: index of its class in the MRO of the module's class, to resolve `super()`; None
                for a function that is not a method of it.
            by_position: the number of arguments passed to it by position.
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
        """Return the keywords that are accepted by the calls to which `**rest` is passed on."""
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
            # a keyword is passed to all of these calls, so all must accept it
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
    """Count the arguments passed by position; `*args`, of unknown length, is not counted."""
    return sum(not isinstance(one, ast.Starred) for one in call.args)


def _tree_of(function: Any) -> ast.FunctionDef | None:
    """Return the syntax tree of a function; None if its source is not available."""
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
    """Yield the code of the model's attention function, which transformers keeps in a registry."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = getattr(getattr(module, "config", None), "_attn_implementation", None)
    function: Callable[..., Any] | None = ALL_ATTENTION_FUNCTIONS.get(name)
    if isinstance(function, FunctionType):
        yield function.__code__


def _words_of(code: CodeType) -> set[str]:
    """Return the parameters and the string constants of a function, with those of inner ones."""
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
