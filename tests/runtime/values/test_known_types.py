"""Only exact types are known: a subclass may define any operation, and none is taken for plain."""

from __future__ import annotations

import linecache
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from nnsight_dsl import NNsight
from nnsight_dsl.runtime.values.known_types import is_known
from nnsight_dsl.tracing.plainness import own_names
from nnsight_dsl.transforms.source.plain import ATTRIBUTES

X = torch.arange(4.0)[None]

KNOWN: dict[str, Callable[[], Any]] = {
    "a number": lambda: 1,
    "a text": lambda: "a",
    "nothing": lambda: None,
    "a tensor": lambda: torch.ones(1),
    "a parameter": lambda: nn.Parameter(torch.ones(1)),
    "a sparse tensor": lambda: torch.ones(1).to_sparse(),
    "a nested tensor": lambda: torch.nested.nested_tensor([torch.ones(1)], layout=torch.jagged),
    "a tuple with a cache": lambda: (torch.ones(1), DynamicCache(), None),
    "an output of transformers": lambda: BaseModelOutput(last_hidden_state=torch.ones(1)),
    "a dict of lists": lambda: {"a": [torch.ones(1), {"b": 1}]},
    "an ordered dict": lambda: OrderedDict(a=torch.ones(1)),
    "what max returns": lambda: torch.ones(2, 2).max(0),
    "a dtype": lambda: torch.float32,
}

BASES: dict[type, tuple[Any, ...]] = {
    int: (1,),
    float: (1.0,),
    complex: (1j,),
    str: ("a",),
    bytes: (b"a",),
    list: ([1],),
    tuple: ([1],),
    dict: ({"a": 1},),
    set: ([1],),
    frozenset: ([1],),
    OrderedDict: ({"a": 1},),
    torch.Tensor: ([1.0],),
    nn.Parameter: (torch.ones(1),),
    BaseModelOutput: (torch.ones(1),),
    DynamicCache: (),
}


def subclass(base: type, **namespace: Any) -> Any:
    """Make an instance of a class that derives from one, and defines some names."""
    made = type("Users", (base,), {**namespace, "__module__": "users"})
    if issubclass(base, torch.Tensor):
        return torch.ones(1).as_subclass(made)
    return made(*BASES[base])


@pytest.mark.parametrize("name", KNOWN)
def test_a_value_of_a_librarys_type_is_known(name):
    assert is_known(KNOWN[name]())


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.__name__)
def test_a_value_of_a_subclass_is_not_known(base):
    value = subclass(base)
    assert not is_known(value)
    assert not is_known([(torch.ones(1), {"a": value})])


@pytest.mark.parametrize(
    "value",
    [
        deque([1]),
        defaultdict(list),
        map(str, [1]),
        (one for one in [1]),
        print,
        len,
        nn.Linear(1, 1),
        nn.Linear,
        torch.optim.SGD([nn.Parameter(torch.ones(1))]),
        torch,
        lambda: None,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_runs_what_it_is_given_is_not_known(value):
    assert not is_known(value)


def test_a_container_without_an_end_is_not_known():
    endless: list[Any] = []
    endless.append(endless)
    assert not is_known(endless)


def test_an_array_of_objects_is_not_known():
    numpy = pytest.importorskip("numpy")
    assert is_known(numpy.ones(2))
    assert is_known(numpy.float32(1))
    assert not is_known(numpy.array([object()], dtype=object))


def test_a_subclass_that_redefines_an_operation_is_not_as_good_as_ours():
    class Named(NNsight):
        def hidden(self) -> None: ...

    class Redefined(NNsight):
        def __iter__(self) -> Any: ...

    class Multiplied(NNsight):
        def __mul__(self, other: object) -> Any: ...

    assert own_names(NNsight) == frozenset()
    assert own_names(Named) == {"hidden"}
    assert own_names(Redefined) is None
    assert own_names(Multiplied) is None


# every operation that a block may name, of every type that may be met there


def _operations() -> list[tuple[type, str, str]]:
    found = []
    for base in BASES:
        for name in sorted(ATTRIBUTES - {"save"}):
            if callable(getattr(base, name, None)):
                found.append((base, name, f"value.{name}()"))
        for name, text in {
            "__add__": "value + 1",
            "__mul__": "value * 2",
            "__getitem__": "value[0]",
            "__neg__": "-value",
            "__abs__": "abs(value)",
            "__lt__": "value < 1",
            "__rsub__": "1 - value",
        }.items():
            found.append((base, name, text))
    return found


class Net(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.__name__)
def test_any_operation_of_a_users_class_may_read_a_value(base):
    net = Net()
    model = NNsight(net)
    expected = net.first(X)
    for of, name, text in _operations():
        if of is not base:
            continue

        def read(*args: Any, **kwargs: Any) -> torch.Tensor:
            return model.first.output

        names = {"model": model, "X": X, "value": subclass(base, **{name: read})}
        run(f"with model.trace(X):\n    found = ({text}).save()\n", names)
        assert torch.equal(names["found"], expected), text


def run(text: str, names: dict[str, Any]) -> None:
    filename = f"<known {len(linecache.cache)}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    exec(compile(text, filename, "exec"), names)
