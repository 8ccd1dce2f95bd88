"""Public docstrings have the sections that their users need."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import nnsight_dsl
from nnsight_dsl.envoys.ports import Ports
from nnsight_dsl.explain import explain
from nnsight_dsl.modeling.vllm import VLLM
from nnsight_dsl.studies.sweep import Sweep
from nnsight_dsl.tracing.intervene import Intervention
from nnsight_dsl.tracing.session import Session
from nnsight_dsl.tracing.tracer import Tracer

FUNCTIONS = ("save", "intervene", "sweep", "layers_report", "install_import_hook")
CLASSES = (
    nnsight_dsl.NNsight, nnsight_dsl.LanguageModel, nnsight_dsl.TransformersModel,
    nnsight_dsl.VisionLanguageModel, nnsight_dsl.Envoy, Ports, Tracer, Session, Intervention,
    Sweep, VLLM,
)  # fmt: skip
"""What a user is handed, and calls methods of."""


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Iterate over the public functions and methods."""
    yield "explain", explain
    for name in FUNCTIONS:
        yield name, getattr(nnsight_dsl, name)
    for cls in CLASSES:
        for name, value in vars(cls).items():
            function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
            if not name.startswith("_") and inspect.isfunction(function):
                yield f"{cls.__name__}.{name}", function


def lacking(function: Callable[..., Any]) -> list[str]:
    """Return the sections that a function's docstring lacks."""
    text = inspect.getdoc(function) or ""
    pattern = r"^(Args|Returns|Raises|Example):\n((?: .*\n|\n)*)"
    sections = dict(re.findall(pattern, f"{text}\n", re.MULTILINE))
    signature = inspect.signature(function)
    names = [name for name in signature.parameters if name not in ("self", "cls")]
    described = re.findall(r"^ {4}\*{0,2}(\w+):", sections.get("Args", ""), re.MULTILINE)
    found = [f"Args: {name}" for name in names if name not in described]
    if signature.return_annotation not in (None, "None") and "Returns" not in sections:
        found.append("Returns")
    body = ast.parse(textwrap.dedent(inspect.getsource(function)))
    if any(isinstance(node, ast.Raise) for node in ast.walk(body)) and "Raises" not in sections:
        found.append("Raises")
    if names and "    EngineError: always" not in text and ">>>" not in sections.get("Example", ""):
        found.append("Example")
    return found


def test_public_functions_say_what_they_take_return_and_raise() -> None:
    found = {name: missing for name, one in public() if (missing := lacking(one))}
    assert found == {}
    assert len(list(public())) > 30


@pytest.mark.parametrize("cls", CLASSES)
def test_public_classes_have_a_docstring(cls: type) -> None:
    assert len((cls.__doc__ or "").split()) > 3


def test_a_missing_section_is_found() -> None:
    def bare(one: int, *others: int) -> int:
        """Do something.

        Args:
            one: a number.
        """
        raise ValueError

    assert lacking(bare) == ["Args: others", "Returns", "Raises", "Example"]
