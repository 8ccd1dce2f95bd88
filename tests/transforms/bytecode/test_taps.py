"""Tapped functions do what they did, tell of their operations, and can be changed at them."""

from __future__ import annotations

import functools
import inspect
import sys
import traceback
import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any

import pytest

from nnsight_dsl.transforms.bytecode.functions import innermost, rebuilt, with_code
from nnsight_dsl.transforms.bytecode.operations import operations_of
from nnsight_dsl.transforms.bytecode.taps import tapped_code
from nnsight_dsl.transforms.bytecode.verify import faults_in

from .samples import Noting, tapped


def arithmetic(x: Any, y: Any) -> Any:
    z = x + y * 2
    z -= 1
    return -z if x < y else z


def calls(x: Any, *args: Any, scale: Any = 2, **kwargs: Any) -> Any:
    found = dict(a=x, **kwargs)
    listed = sorted([*args, x], key=lambda one: -one)
    return found, listed, max(*args, x), f"{x} {scale}"


def comprehensions(x: Any) -> Any:
    doubled = [i * 2 for i in x if i not in (2,)]
    table = {k: [v + k for v in x] for k in doubled}
    return sum(i for i in doubled), table, {i % 2 for i in x}


def control(x: Any) -> Any:
    found = []
    for i in range(x):
        try:
            if i == 2:
                continue
            found.append(10 // (i - 1))
        except ZeroDivisionError as error:
            found.append(str(error))
        else:
            found.append(i)
        finally:
            found.append(-i)
    while len(found) < 20:
        found.append(found[-1] + 1)
    match found[:2]:
        case [first, *rest]:
            return first, rest
    return found


class Entered:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __enter__(self) -> Entered:
        return self

    def __exit__(self, *error: object) -> bool:
        self.seen.append(error[0])
        return True


def entering(x: Any) -> Any:
    with Entered() as one, Entered() as other:
        value = x / 0
        one.seen.append(value)
    return one.seen, other.seen


def generator(x: Any) -> Any:
    def items() -> Any:
        for i in x:
            sent = yield i + 1
            if sent:
                yield sent * 2

    return list(items()), [*map(str, x)]


def chained(x: Any) -> Any:
    a = b = (c := x + 1)
    d, (e, *f) = a, (b, c, *range(x))
    return 0 < a <= b < 100, a is b, d, e, f, f[1:3], f[-1]


def raising(x: Any) -> Any:
    y = x + 1
    return y.nothing(
        y,
    )


CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
    "arithmetic": (arithmetic, (1, 2), {}),
    "floats": (arithmetic, (3.5, 2), {}),
    "a wrong type": (arithmetic, (1, "a"), {}),
    "calls": (calls, (1, 5, 3), {"scale": 4, "b": 1}),
    "a wrong call": (calls, (1,), {"a": 2}),
    "comprehensions": (comprehensions, ([1, 2, 3],), {}),
    "control": (control, (5,), {}),
    "with": (entering, (1,), {}),
    "generator": (generator, ([1, 2],), {}),
    "chained": (chained, (4,), {}),
    "raising": (raising, (4,), {}),
}


def outcome(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return what a call returns, or what it raises and through which lines of the function."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        entries = traceback.extract_tb(error.__traceback__)
        lines = [entry.lineno for entry in entries if entry.filename == __file__]
        return type(error), str(error), lines


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_tapped_function_does_what_it_did(case: str, around: bool) -> None:
    function, args, kwargs = CASES[case]
    copy, log = tapped(function, around=around)
    assert outcome(copy, *args, **kwargs) == outcome(function, *args, **kwargs)
    # a call whose arguments do not fit together comes to nothing that a tap could be told
    assert log or case == "a wrong call"
    assert isinstance(function, FunctionType)
    assert faults_in(copy.__code__, function.__code__) == []


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_each_operation_alone_can_be_tapped(case: str, around: bool) -> None:
    function, args, kwargs = CASES[case]
    assert isinstance(function, FunctionType)
    for name in operations_of(function.__code__):
        copy, log = tapped(function, [name], around=around)
        assert outcome(copy, *args, **kwargs) == outcome(function, *args, **kwargs)
        assert {entry[0] for entry in log} <= {name}


def test_a_tap_is_told_what_an_operation_is_given_and_what_it_makes() -> None:
    copy, log = tapped(arithmetic, ["mul_0", "add_0"], around=True)
    assert copy(1, 2) == arithmetic(1, 2)
    assert log == [
        ("mul_0", (2, 2), {}),
        ("mul_0", 4),
        ("add_0", (1, 4), {}),
        ("add_0", 5),
    ]


def test_keyword_and_star_arguments_are_told_apart() -> None:
    copy, log = tapped(calls, ["sorted_0", "max_0", "dict_0"], around=True)
    copy(1, 5, b=2)
    arguments = {entry[0]: entry[1:] for entry in log if len(entry) == 3}
    (given,), kwargs = arguments["sorted_0"]
    assert (given, list(kwargs)) == ([5, 1], ["key"])
    assert arguments["max_0"] == ((5, 1), {})
    assert arguments["dict_0"] == ((), {"a": 1, "b": 2})


# each kind of operation, changed by a tap and in the text
EDITS: dict[str, tuple[str, Callable[..., Any]]] = {
    "add_0": ("value", lambda x, y: -(7 - 1) if x < y else 7 - 1),
    "mul_0": ("value", lambda x, y: -(x + 7 - 1) if x < y else x + 7 - 1),
    "z": ("value", lambda x, y: -(7 - 1) if x < y else 7 - 1),
    "isub_0": ("value", lambda x, y: -7 if x < y else 7),
    "lt_0": ("value", lambda x, y: -(x + y * 2 - 1)),
    "neg_0": ("skip", lambda x, y: 7 if x < y else x + y * 2 - 1),
    "return_0": ("value", lambda x, y: 7),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_at_an_operation_is_the_edit_in_the_text(name: str) -> None:
    how, by_hand = EDITS[name]
    copy, _ = tapped(arithmetic, [name], around=True, changes={name: {how: 7}})
    for x, y in ((1, 2), (5, 2)):
        assert copy(x, y) == by_hand(x, y)


def test_arguments_can_be_replaced() -> None:
    copy, _ = tapped(arithmetic, ["add_0"], around=True, changes={"add_0": {"args": (10, 20)}})
    assert copy(1, 2) == -29


def test_a_skipped_call_is_not_made() -> None:
    def user(x: list[int]) -> Any:
        found = x.append(1)
        return found

    copy, _ = tapped(user, ["x_append_0"], around=True, changes={"x_append_0": {"skip": "seven"}})
    given: list[int] = []
    assert copy(given) == "seven"
    assert given == []


class Base:
    def forward(self, x: Any) -> Any:
        return ("base", x)


class Derived(Base):
    def forward(self, x: Any) -> Any:
        return super().forward(x), __class__.__name__, sorted(locals())  # type: ignore[name-defined]


@pytest.mark.parametrize("around", [False, True])
def test_super_locals_and_the_class_cell_are_as_before(around: bool) -> None:
    copy, log = tapped(Derived.forward, around=around)
    one = Derived()
    assert copy(one, 3) == one.forward(3)
    assert {entry[0] for entry in log} >= {"forward_0", "locals_0", "sorted_0"}


@pytest.mark.parametrize("around", [False, True])
def test_calls_that_look_at_their_caller_find_it(around: bool) -> None:
    def caller() -> Any:
        return sys._getframe(1).f_code.co_name, inspect.stack()[1].function

    def user(x: Any) -> Any:
        y = caller()
        return y, eval("x + 1"), [*vars()], sys._getframe().f_lineno

    copy, _ = tapped(user, around=around)
    assert copy(1) == user(1)


@pytest.mark.parametrize("around", [False, True])
def test_a_warning_is_at_the_line_of_the_caller(around: bool) -> None:
    def user() -> None:
        warnings.warn("careful", UserWarning, stacklevel=1)

    copy, _ = tapped(user, around=around)
    found = []
    for function in (copy, user):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            function()
        found.append((seen[0].filename, seen[0].lineno))
    assert found[0] == found[1]


def test_a_closure_keeps_its_cells() -> None:
    count = 0

    def user(x: Any) -> Any:
        nonlocal count
        count += x
        return [count + i for i in range(2)]

    copy, _ = tapped(user, around=True)
    assert copy(3) == [3, 4]
    assert user(3) == [6, 7]


def test_a_function_keeps_its_defaults_names_and_attributes() -> None:
    copy, _ = tapped(calls, around=True)
    for name in ("__defaults__", "__kwdefaults__", "__annotations__", "__name__", "__doc__"):
        assert getattr(copy, name) == getattr(calls, name)
    assert inspect.signature(copy) == inspect.signature(calls)


def test_what_is_not_asked_for_is_not_touched() -> None:
    copy, _ = tapped(arithmetic, [])
    assert copy.__code__.co_code == arithmetic.__code__.co_code
    assert list(copy.__code__.co_positions()) == list(arithmetic.__code__.co_positions())


def test_an_operation_that_does_not_exist_is_refused() -> None:
    with pytest.raises(KeyError):
        tapped_code(arithmetic.__code__, {"nothing_0": Noting("nothing_0", [])}, frozenset())


# functions around functions


def shell(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs), "shell"

    return wrapper


class Bound:
    factor = 3

    @shell
    @shell
    def forward(self, x: Any) -> Any:
        return x * self.factor


def test_the_heart_of_decorated_bound_and_partial_functions_is_exchanged() -> None:
    def with_seven(inner: FunctionType) -> FunctionType:
        return tapped(inner, ["mul_0"], changes={"mul_0": {"value": 7}})[0]

    one = Bound()
    calls_of_it: list[tuple[Any, tuple[Any, ...]]] = [
        (one.forward, (2,)),
        (functools.partial(one.forward, 2), ()),
        (functools.partial(Bound.forward, one), (2,)),
    ]
    for function, args in calls_of_it:
        assert innermost(function) is inspect.unwrap(Bound.forward)
        copy = rebuilt(function, with_seven)
        assert copy(*args) == ((7, "shell"), "shell")
        assert function(*args) == ((6, "shell"), "shell")


def test_what_is_not_written_in_python_has_no_heart() -> None:
    assert innermost(len) is None
    assert innermost("text".join) is None
    assert innermost(Entered) is None


def test_a_copy_with_other_code_is_the_only_one() -> None:
    copy = with_code(arithmetic, arithmetic.__code__)
    assert copy is not arithmetic
    assert copy(1, 2) == arithmetic(1, 2)
