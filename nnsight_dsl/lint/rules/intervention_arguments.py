"""An `@intervene` function is called with an unknown argument, or without a required one.

The arguments of an intervention are checked when it is called or bound. If it is defined in the
same file, the linter checks them as well.

Wrong:

    @intervene
    def scale(model, layer: int, factor: float = 2.0):
        model.transformer.h[layer].output *= factor


    with model.trace("The Eiffel Tower is in"):
        scale(model, 1, facto=3.0)

Right:

    @intervene
    def scale(model, layer: int, factor: float = 2.0):
        model.transformer.h[layer].output *= factor


    with model.trace("The Eiffel Tower is in"):
        scale(model, 1, factor=3.0)
"""

from __future__ import annotations

import ast
import inspect
from collections import Counter
from collections.abc import Iterator

from ..analysis import File
from ..blocks import is_intervene
from ..diagnostics import ERROR, Finding
from ..tree import bound_by

CODE = "NNS701"
SEVERITY = ERROR

_EMPTY = inspect.Parameter.empty


def check(file: File) -> Iterator[Finding]:
    """Check calls of interventions, and of their `bind`, against their signatures."""
    known = _interventions(file)
    if not known:
        return
    for node in file.tree.walk(file.tree.module):
        if not isinstance(node, ast.Call):
            continue
        name, is_bind = _callee(node)
        if name not in known or _is_unclear(node):
            continue
        signature = known[name]
        keywords = {one.arg: None for one in node.keywords if one.arg is not None}
        try:
            if is_bind:
                signature.bind_partial(**keywords)
            else:
                signature.bind(*[None] * len(node.args), **keywords)
        except TypeError as error:
            parameters = ", ".join(map(repr, signature.parameters))
            yield Finding(node, f"{name} {_described(error)}; its parameters are {parameters}")


def _interventions(file: File) -> dict[str, inspect.Signature]:
    counts = Counter(name for node in file.tree.walk(file.tree.module) for name in bound_by(node))
    found = {}
    for node in file.tree.walk(file.tree.module):
        if isinstance(node, ast.FunctionDef) and counts[node.name] == 1:
            link = file.tree.link(node)
            is_method = link is not None and isinstance(link.parent, ast.ClassDef)
            is_alone = len(node.decorator_list) == 1 and is_intervene(node.decorator_list[0])
            if is_alone and not is_method:
                found[node.name] = _signature(node.args)
    return found


def _signature(given: ast.arguments) -> inspect.Signature:
    parameters = []
    positional = [*given.posonlyargs, *given.args]
    first_default = len(positional) - len(given.defaults)
    for index, one in enumerate(positional):
        is_only = index < len(given.posonlyargs)
        kind = (
            inspect.Parameter.POSITIONAL_ONLY
            if is_only
            else inspect.Parameter.POSITIONAL_OR_KEYWORD
        )
        default = None if index >= first_default else _EMPTY
        parameters.append(inspect.Parameter(one.arg, kind, default=default))
    if given.vararg is not None:
        parameters.append(inspect.Parameter(given.vararg.arg, inspect.Parameter.VAR_POSITIONAL))
    for one, value in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        default = _EMPTY if value is None else None
        parameters.append(
            inspect.Parameter(one.arg, inspect.Parameter.KEYWORD_ONLY, default=default)
        )
    if given.kwarg is not None:
        parameters.append(inspect.Parameter(given.kwarg.arg, inspect.Parameter.VAR_KEYWORD))
    return inspect.Signature(parameters)


def _callee(call: ast.Call) -> tuple[str, bool]:
    if isinstance(call.func, ast.Name):
        return call.func.id, False
    if isinstance(call.func, ast.Attribute) and call.func.attr == "bind":
        owner = call.func.value
        if isinstance(owner, ast.Name) and not call.args:
            return owner.id, True
    return "", False


def _is_unclear(call: ast.Call) -> bool:
    return any(isinstance(one, ast.Starred) for one in call.args) or any(
        one.arg is None for one in call.keywords
    )


def _described(error: TypeError) -> str:
    """Rephrase the message of `inspect.Signature.bind` as a predicate of the intervention."""
    text = str(error)
    if text.startswith("missing a required"):
        return f"is called without {text.partition(': ')[2]}"
    if text.startswith("got an unexpected keyword argument"):
        return f"has no parameter {text.rpartition(' ')[2]}"
    return f"is called with other arguments: {text}"
