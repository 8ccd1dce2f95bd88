"""For the length of a run a module has another class; what a forward asks about it stays true."""

import abc
import copy
import functools
import pickle
from typing import Any, ClassVar, Generic, TypeVar

import pytest
import torch
from torch import nn

from nnsight_dsl import NNsight
from tests.models import assert_same

X = torch.linspace(-1, 1, 6).reshape(2, 3)


class Counting(nn.Linear):
    """Counts its calls in its class."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        type(self).calls += 1
        return super().forward(x)


@functools.singledispatch
def kind_of(module: Any) -> str:
    return "any"


@kind_of.register
def _(module: nn.Linear) -> str:
    return "linear"


@kind_of.register
def _(module: Counting) -> str:
    return "counting"


QUESTIONS = {
    "equal": lambda a, b: (type(a) == Counting, Counting == type(a), type(a) != Counting),  # noqa: E721
    "in a tuple": lambda a, b: (type(a) in (nn.Linear, Counting), type(a) in (nn.ReLU,)),
    "in a set": lambda a, b: type(a) in {nn.Linear, Counting},
    "a key": lambda a, b: {Counting: 1, nn.Linear: 2}[type(a)],
    "two modules": lambda a, b: (type(a) == type(b), type(b) == nn.Linear),  # noqa: E721
    "hash": lambda a, b: hash(type(a)) == hash(Counting),
    "isinstance": lambda a, b: (isinstance(a, Counting), isinstance(b, Counting)),
    "instance of its type": lambda a, b: (
        isinstance(Counting(1, 1), type(a)),
        isinstance(b, type(a)),
    ),
    "subclass": lambda a, b: (
        issubclass(Counting, type(a)),
        issubclass(type(a), Counting),
        issubclass(type(a), type(b)),
        issubclass(type(b), type(a)),
        issubclass(nn.ReLU, type(a)),
    ),
    "class": lambda a, b: (a.__class__ is Counting, b.__class__ is nn.Linear),
    "names": lambda a, b: (type(a).__name__, type(a).__qualname__, type(a).__module__),
    "repr": lambda a, b: (repr(type(a)), repr(a)),
    "singledispatch": lambda a, b: (kind_of(a), kind_of(b)),
    "doc": lambda a, b: type(a).__doc__,
    "match": lambda a, b: _matched(a),
}


def _matched(module: nn.Module) -> str:
    match module:
        case Counting():
            return "counting"
        case nn.Linear():
            return "linear"
    return "any"


class Asking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = Counting(3, 3)
        self.b = nn.Linear(3, 3)
        self.ask = lambda a, b: None
        self.answer: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.answer = self.ask(self.a, self.b)
        return self.b(self.a(x))


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_forward_gets_the_answer_that_it_gets_without_a_run(question: str) -> None:
    module = Asking()
    module.ask = QUESTIONS[question]
    module(X)
    expected, module.answer = module.answer, None
    model = NNsight(module)
    with model.trace(X):
        a = model.a.output.save()
        b = model.b.output.save()
    assert module.answer == expected


def test_an_attribute_that_a_forward_sets_on_its_class_stays() -> None:
    model = NNsight(Asking())
    before = Counting.calls
    with model.trace(X):
        a = model.a.output.save()
    assert Counting.calls == before + 1


def test_a_module_that_a_forward_makes_of_its_type_is_of_the_class() -> None:
    class Making(nn.Module):
        made: list[nn.Module]

        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            empty = type(self.a).__new__(type(self.a))
            self.made = [type(self.a)(3, 3), empty, copy.copy(self.a), copy.deepcopy(self.a)]
            self.made.append(pickle.loads(pickle.dumps(self.a)))
            return self.a(x)

    module = Making()
    model = NNsight(module)
    with model.trace(X):
        a = model.a.output.save()
    assert [type(one) for one in module.made] == [nn.Linear] * 5


class Parts(nn.Module, abc.ABC):
    @abc.abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor: ...


class Doubling(Parts):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (2 if isinstance(self, type(self)) and issubclass(type(self), Parts) else 0)


Item = TypeVar("Item")


class Typed(nn.Module, Generic[Item]):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + (type(self) == Typed)  # noqa: E721


def test_abstract_and_generic_classes() -> None:
    module = nn.Sequential(Doubling(), Typed[int]())
    expected = module(X)
    model = NNsight(module)
    with model.trace(X):
        doubled = model[0].output.save()
        typed = model[1].output.save()
    assert_same([doubled, typed], [X * 2, expected])
    # an abstract class asks all of its subclasses, of which one was made for the run
    assert not isinstance(nn.ReLU(), Parts)
    assert not issubclass(nn.ReLU, Parts)
    assert isinstance(module[0], Parts)


def test_a_class_that_wants_arguments_of_its_subclasses() -> None:
    class Registered(nn.Module):
        known: ClassVar[list[type]] = []

        def __init_subclass__(cls, *, name: str) -> None:
            cls.known.append(cls)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    class One(Registered, name="one"):
        pass

    model = NNsight(nn.Sequential(One()))
    with model.trace(X):
        output = model[0].output.save()
    assert Registered.known == [One]


def test_a_metaclass_with_a_call_of_its_own() -> None:
    class Meta(type):
        made: ClassVar[list[str]] = []

        def __call__(cls, *args: Any) -> Any:
            Meta.made.append(cls.__name__)
            return super().__call__(*args)

    class Made(nn.Module, metaclass=Meta):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.__dict__["other"] = type(self)()
            return x

    module = Made()
    model = NNsight(nn.Sequential(module))
    with model.trace(X):
        output = model[0].output.save()
    assert Meta.made == ["Made", "Made"]
    assert type(module.other) is type(module) is Made
