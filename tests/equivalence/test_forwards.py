"""Real forwards with all of their operations tapped: nothing is different, unless a tap says so.

The forwards of torch's modules, its functions, and the forwards of transformers' modelling files,
each tapped after every operation, and around every operation. What can be run on small inputs is
run; all of it is verified without running.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import CodeType, FunctionType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree
from transformers.models.bert.modeling_bert import BertPooler
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from nnsight_dsl.transforms.bytecode.functions import innermost, rebuilt, with_code
from nnsight_dsl.transforms.bytecode.operations import operations_of
from nnsight_dsl.transforms.bytecode.taps import tapped_code
from nnsight_dsl.transforms.bytecode.verify import faults_in
from tests import models
from tests.equivalence.forwards import FUNCTIONS, MODELLING, MODELS, MODULES, listed

LISTED_FLOOR = 300
EXECUTED_FLOOR = 200
WAYS = ("after", "around")

pytestmark = pytest.mark.filterwarnings(
    # transformers, importing deberta_v2: two of its functions are scripted by torch
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)


class _PassesThrough:
    """Sees an operation and changes nothing; knows whether it was done."""

    def __init__(self) -> None:
        self.began = self.ended = 0

    def before(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[[], Any]:
        self.began += 1
        return partial(function, *args, **kwargs)

    def after(self, value: Any) -> Any:
        self.ended += 1
        return value


_tapped_in: dict[str, dict[CodeType, tuple[CodeType, _PassesThrough]]] = {way: {} for way in WAYS}


def _tapped_code(code: CodeType, way: str) -> tuple[CodeType, _PassesThrough]:
    """Tap all operations of a function with one tap, once for each function and way."""
    known = _tapped_in[way].get(code)
    if known is None:
        tap, names = _PassesThrough(), operations_of(code)
        around = frozenset(names) if way == "around" else frozenset()
        known = tapped_code(code, dict.fromkeys(names, tap), around), tap
        _tapped_in[way][code] = known
    return known


def _tapped(function: Any, way: str) -> Any:
    """Copy a callable with all operations of the function at its heart tapped."""

    def made(heart: FunctionType) -> FunctionType:
        return with_code(heart, _tapped_code(heart.__code__, way)[0])

    return rebuilt(function, made)


@contextmanager
def _all_tapped(module: nn.Module, way: str) -> Iterator[None]:
    """Tap all operations of the forwards of a module and of all below it."""
    changed = []
    for below in module.modules():
        if innermost(below.forward) is not None:
            below.__dict__["forward"] = _tapped(below.forward, way)
            changed.append(below)
    try:
        yield
    finally:
        for below in changed:
            del below.__dict__["forward"]


def _identical(one: Any, other: Any) -> bool:
    """Compare results, tensors bit by bit."""
    leaves, spec = _pytree.tree_flatten(one)
    other_leaves, other_spec = _pytree.tree_flatten(other)
    return spec == other_spec and all(map(_is_same_leaf, leaves, other_leaves))


def _is_same_leaf(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return (
            type(one) is type(other)
            and (one.dtype, one.shape) == (other.dtype, other.shape)
            and torch.equal(_bytes(one), _bytes(other))
        )
    if isinstance(one, (int, float, str, bool, torch.dtype, type(None))):
        return type(one) is type(other) and one == other
    # what keeps keys and values is compared by the tensors in it
    return type(one) is type(other) and _identical(_tensors_in(one), _tensors_in(other))


def _tensors_in(found: Any) -> Any:
    layers = getattr(found, "layers", [found])
    return [
        {key: value for key, value in vars(layer).items() if isinstance(value, torch.Tensor)}
        for layer in layers
    ]


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def _run(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call a function on copies of its arguments, with the seed set."""
    args, kwargs = copy.deepcopy((args, kwargs))
    torch.manual_seed(0)
    with torch.no_grad():
        return function(*args, **kwargs)


def _run_module(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
    plain = _run(module, args, kwargs)
    for way in WAYS:
        with _all_tapped(module, way):
            found = _run(module, args, kwargs)
        assert _identical(found, plain), f"{name}, tapped {way}"
        assert _identical(_run(module, args, kwargs), plain), f"{name}, tapped no more"


def _executed() -> set[CodeType]:
    """Return the functions whose operations were seen to be done, in both ways."""
    return {
        code
        for code, (_, tap) in _tapped_in["after"].items()
        if tap.ended
        and code in _tapped_in["around"]
        and _tapped_in["around"][code][1].began
        and _tapped_in["around"][code][1].ended
    }


@cache
def _run_modules() -> None:
    for make in MODULES:
        torch.manual_seed(1)
        module, args = make()
        _run_module(repr(module), module.eval(), args, {})


@cache
def _run_functions() -> None:
    for name, make in FUNCTIONS:
        torch.manual_seed(1)
        args, kwargs = make()
        function = getattr(F, name)
        plain = _run(function, args, kwargs)
        for way in WAYS:
            found = _run(_tapped(function, way), args, kwargs)
            assert _identical(found, plain), f"{name}, tapped {way}"


@cache
def _run_models() -> None:
    for name, make, inputs in MODELS:
        module = make()
        torch.manual_seed(1)
        _run_module(name, module, (), inputs())


def test_every_operation_of_every_forward_can_be_tapped() -> None:
    assert len(MODELLING) >= 30
    assert len(listed()) >= LISTED_FLOOR
    faults = {
        f"{name}, tapped {way}": found
        for code, name in listed().items()
        for way in WAYS
        if (found := faults_in(_tapped_code(code, way)[0], code))
    }
    assert faults == {}
    count = sum(len(operations_of(code)) for code in listed())
    print(f"{len(listed())} forwards with {count} operations tapped and verified")


def test_tapped_modules_of_torch_return_the_same_bits() -> None:
    _run_modules()


def test_tapped_functions_of_torch_return_the_same_bits() -> None:
    _run_functions()


def test_tapped_models_return_the_same_bits() -> None:
    _run_models()


def test_most_forwards_were_executed_tapped() -> None:
    _run_modules()
    _run_functions()
    _run_models()
    executed = _executed() & listed().keys()
    assert len(executed) >= EXECUTED_FLOOR
    print(f"{len(executed)} of {len(listed())} forwards executed with all operations tapped")
