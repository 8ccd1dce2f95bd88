"""Calls that look plain and are not: a correct block runs the first time, whatever it calls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from nnsight_dsl import CONFIG, CarriedCallError, NNsight, OutOfOrderError


class Reads(nn.Module):
    """Two layers, with a property, a method and an attribute that a block may name."""

    wrapper: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))

    @property
    def hidden(self) -> torch.Tensor:
        return self.wrapper.first.output

    def mean(self) -> torch.Tensor:
        return self.wrapper.first.output.mean()

    def extra_repr(self) -> str:
        return "" if self.wrapper is None else str(self.wrapper.first.output.shape)


class Subclass(NNsight):
    """A wrapper with a property and a method that touch values."""

    @property
    def hidden(self) -> torch.Tensor:
        return self.first.output

    @hidden.setter
    def hidden(self, value: torch.Tensor) -> None:
        self.first.output = value

    def mean(self) -> torch.Tensor:
        return self.first.output.mean()

    def __matmul__(self, other: float) -> torch.Tensor:
        return self.first.output * other


class Values(dict[str, Any]):
    """A `dict` whose `get` reads a value."""

    def get(self, name: str, default: Any = None) -> Any:
        return self[name].first.output


class Items(list[Any]):
    """A `list` that reads a value where it is indexed or iterated over."""

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index).first.output

    def __iter__(self) -> Iterator[Any]:
        yield self[0]


class Number(int):
    """An `int` whose sum reads a value."""

    wrapper: Any

    def __add__(self, other: Any) -> Any:
        return self.wrapper.first.output + other


class Tensor(torch.Tensor):
    """A tensor whose operations read a value."""

    wrapper: Any = None

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if function is torch.Tensor.mul and Tensor.wrapper is not None:
                return Tensor.wrapper.first.output * 2
            return function(*args, **(kwargs or {}))


@pytest.fixture
def net() -> Iterator[Reads]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        yield Reads()


X = torch.arange(3.0)[None]


@pytest.fixture(autouse=True, params=["error", "off"])
def lint(request: pytest.FixtureRequest) -> Iterator[None]:
    """With the linter, the first run of a model taps all modules anyway."""
    before, CONFIG.APP.LINT = CONFIG.APP.LINT, request.param
    yield
    CONFIG.APP.LINT = before


def test_a_property_of_a_subclass_reads_a_value(net):
    model = Subclass(net)
    with model.trace(X):
        found = model.hidden.save()
    assert torch.equal(found, net.first(X))


def test_a_method_of_a_subclass_that_is_named_like_a_tensors_reads_a_value(net):
    model = Subclass(net)
    with model.trace(X):
        found = model.mean().save()
    assert torch.equal(found, net.first(X).mean())


def test_an_operator_of_a_subclass_reads_a_value(net):
    model = Subclass(net)
    with model.trace(X):
        found = (model @ 3).save()
    assert torch.equal(found, net.first(X) * 3)


def test_a_property_of_the_wrapped_module_reads_a_value(net):
    model = net.wrapper = NNsight(net)
    with model.trace(X):
        found = model.hidden.save()
    assert torch.equal(found, net.first(X))


def test_a_method_of_the_wrapped_module_that_is_named_like_a_tensors_reads_a_value(net):
    model = net.wrapper = NNsight(net)
    with model.trace(X):
        found = model.mean().save()
    assert torch.equal(found, net.first(X).mean())


def test_a_method_of_a_module_that_a_name_of_the_block_stands_for_reads_a_value(net):
    model = net.wrapper = NNsight(net)
    with model.trace(X):
        here = [model]
        found = here[0].mean().save()
    assert torch.equal(found, net.first(X).mean())


def test_the_text_of_a_module_reads_a_value(net):
    model = net.wrapper = NNsight(net)
    with model.trace(X):
        found = [str(model)].save()
    assert "torch.Size([1, 3])" in found[0]


def test_a_container_of_a_users_class_reads_a_value(net):
    model = NNsight(net)
    values, items = Values(model=model), Items([model])
    with model.trace(X):
        got = values.get("model").save()
    with model.trace(X):
        indexed = items[0].save()
    with model.trace(X):
        iterated = [one * 2 for one in items].save()
    assert torch.equal(got, net.first(X))
    assert torch.equal(indexed, net.first(X))
    assert torch.equal(iterated[0], net.first(X) * 2)


def test_a_container_in_a_container_reads_a_value(net):
    model = NNsight(net)
    nested = [[Items([model])]]
    with model.trace(X):
        found = nested[0][0][0].save()
    assert torch.equal(found, net.first(X))


def test_a_number_of_a_users_class_reads_a_value(net):
    model = NNsight(net)
    number = Number(1)
    number.wrapper = model
    with model.trace(X):
        found = (number + 1).save()
    assert torch.equal(found, net.first(X) + 1)


def test_a_tensor_of_a_users_class_reads_a_value(net):
    model = NNsight(net)
    mine = torch.ones(1).as_subclass(Tensor)
    Tensor.wrapper = model
    try:
        with model.trace(X):
            found = (mine * 1).save()
    finally:
        Tensor.wrapper = None
    assert torch.equal(found, net.first(X) * 2)


def test_an_outer_name_that_the_block_binds_later_reads_a_value(net):
    model = NNsight(net)
    values = Values(model=model)
    with model.trace(X):
        found = values.get("model").save()
        values = None
    assert torch.equal(found, net.first(X))


def test_a_function_of_python_that_looks_up_what_it_is_given_reads_a_value(net):
    import itertools
    import operator

    model = NNsight(net)
    pairs = [(model.first, "output")]
    with model.trace(X):
        found = list(itertools.starmap(getattr, pairs)).save()
    look_up = operator.attrgetter("output")
    with model.trace(X):
        again = list(map(look_up, [model.first])).save()
    assert torch.equal(found[0], net.first(X))
    assert torch.equal(again[0], net.first(X))


# what the model itself hands to a block


@dataclass
class Held:
    """What a module returns: a tensor, and properties that read other modules."""

    value: torch.Tensor

    @property
    def real(self) -> torch.Tensor:
        return Holding.wrapper.last.output

    def mean(self) -> torch.Tensor:
        return Holding.wrapper.last.output.mean()

    def __add__(self, other: float) -> torch.Tensor:
        return Holding.wrapper.last.output + other

    def __getitem__(self, index: int) -> torch.Tensor:
        return Holding.wrapper.last.output[index]

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield Holding.wrapper.last.output

    def early(self) -> torch.Tensor:
        return Holding.wrapper.first.output

    copy = early


class Hold(nn.Module):
    """Puts a tensor into an object."""

    plainly = False

    def forward(self, x: torch.Tensor) -> Any:
        return x * 2 if self.plainly else Held(x * 2)


class Take(nn.Module):
    """Takes it out again."""

    def forward(self, held: Any) -> torch.Tensor:
        return (held.value if isinstance(held, Held) else held) + 1


class Holding(nn.Module):
    """A model in which an object passes from one module to the next."""

    wrapper: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.hold = Hold()
        self.last = Take()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.hold(self.first(x)))


@pytest.fixture
def holding() -> Iterator[Holding]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = Holding()
    Holding.wrapper = NNsight(net)
    yield net
    Holding.wrapper = None


@pytest.mark.parametrize(
    ("use", "meaning"),
    [
        ("held.real", lambda last: last),
        ("held.mean()", lambda last: last.mean()),
        ("held + 1", lambda last: last + 1),
        ("held[0]", lambda last: last[0]),
        ("[one * 2 for one in held][0]", lambda last: last * 2),
    ],
)
@pytest.mark.parametrize("port", ["model.hold.output", "model.last.input"])
def test_an_object_that_a_module_returns_reads_a_value(holding, use, meaning, port):
    text = f"with model.trace(X):\n    held = {port}\n    found = ({use}).save()\n"
    names = run(text, model=Holding.wrapper)
    assert torch.equal(names["found"], meaning(holding(X)))


def test_an_object_that_comes_only_in_a_later_run_reads_a_module_that_is_named(holding):
    model = Holding.wrapper
    found = []
    for plainly in (True, True, False, False):
        Hold.plainly = plainly
        try:
            with model.trace(X):
                held = model.hold.output
                found.append((held + 1).save())
                after = model.last.output.save()
        finally:
            Hold.plainly = False
    assert torch.equal(found[2], holding(X) + 1)
    assert torch.equal(found[3], holding(X) + 1)
    assert torch.equal(after, holding(X))


def test_what_such_an_object_asks_for_too_late_is_an_error_of_its_own(holding):
    model = Holding.wrapper
    with pytest.raises(OutOfOrderError, match=r"first\.output has already passed"):
        with model.trace(X):
            held = model.hold.output
            held.copy()


def test_a_value_of_another_invoke_reads_a_value():
    from nnsight_dsl import LanguageModel
    from tests.models import new_gpt2, tokenizer

    model = LanguageModel(new_gpt2(), tokenizer=tokenizer())

    class Probe:
        def mean(self) -> torch.Tensor:
            return model.transformer.h[1].output.mean()

    with model.trace() as tracer:
        with tracer.invoke("the cat"):
            probe = Probe()
        with tracer.invoke("the dog"):
            found = probe.mean().save()
    with model.trace("the dog"):
        alone = model.transformer.h[1].output.mean().save()
    assert torch.allclose(found, alone, atol=1e-5)


def run(text: str, **names: Any) -> dict[str, Any]:
    """Run a text as a function of a module whose source is known."""
    import linecache

    filename = f"<plain {len(linecache.cache)}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    names |= {"X": X}
    exec(compile(text, filename, "exec"), names)
    return names


# attributes of a subclass


class Counting(NNsight):
    """A wrapper with attributes of every kind."""

    count = 0
    __slots__ = ("slotted",)

    def __init__(self, module: nn.Module) -> None:
        self.before = 1
        super().__init__(module)
        self.count = 3
        self.after = [2]
        self.slotted = 4
        self.start = self.first

    @property
    def hidden(self) -> torch.Tensor:
        return self.first.output

    @hidden.setter
    def hidden(self, value: torch.Tensor) -> None:
        self.first.output = value


def test_attributes_of_a_subclass_are_its_own(net):
    known = {*net.__dict__}
    model = Counting(net)
    assert (model.before, model.count, model.after, model.slotted) == (1, 3, [2], 4)
    model.count += 1
    model.after = []
    assert (model.count, model.after) == (4, [])
    assert model.start is model.first
    assert {*net.__dict__} == known
    del model.count
    assert model.count == 0


def test_a_setter_of_a_subclass_writes_a_value(net):
    model = Counting(net)
    with model.trace(X):
        model.hidden = torch.zeros(1, 3)
        out = model.output.save()
    assert torch.equal(out, net.second(torch.zeros(1, 3)))
    assert "hidden" not in net.__dict__


def test_attributes_of_a_subclass_are_those_of_its_edited_copies(net):
    model = Counting(net)
    with model.edit() as edited:
        edited.first.output = torch.zeros(1, 3)
    assert (edited.before, edited.count, edited.slotted) == (1, 3, 4)
    assert edited.start is edited.first
    with edited.trace(X):
        out = edited.start.output.save()
    assert torch.equal(out, torch.zeros(1, 3))


def test_other_attributes_are_the_modules(net):
    model = Counting(net)
    model.extra = 5
    model.first.bias = None
    assert net.extra == 5
    assert net.first.bias is None


def test_an_attribute_that_is_set_to_something_else_later_reads_a_value(net):
    model = NNsight(net)
    net.helper = torch.ones(1)
    found = []
    for helper in (torch.ones(1), torch.ones(1), Values(model=model), Values(model=model)):
        net.helper = helper
        with model.trace(X):
            if type(net.helper) is Values:
                found.append(model.helper.get("model").save())
            else:
                found.append((model.helper + 1).save())
    assert torch.equal(found[3], net.first(X))


def test_a_layer_that_is_exchanged_for_one_of_a_users_reads_a_value(net):
    model = NNsight(net)

    class Reading(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + model.first.output

    found = []
    for second in (net.second, net.second, Reading()):
        net.second = second
        net.forward = lambda x, first=net.first: first(x)
        with model.trace(X):
            found.append(model.second(X).save())
    assert torch.equal(found[2], X + net.first(X))


def test_what_a_property_raises_is_shown():
    class Failing(NNsight):
        @property
        def hidden(self) -> torch.Tensor:
            return self.first.output.no_such_thing

    model = Failing(Reads())
    with pytest.raises(AttributeError, match="no_such_thing"):
        with model.trace(X):
            model.hidden  # noqa: B018


# what is impossible


class Unseen(nn.Module):
    """Returns a tensor at first, and later an object that reads a module that may have passed."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(3, 3)
        self.hold = Hold()
        self.take = Take()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shared(self.take(self.hold(self.shared(x))))


def test_a_module_that_may_have_passed_unseen_is_refused_and_never_another_visit(monkeypatch):
    net = Unseen()
    model = NNsight(net)

    def read(self: Held, other: float) -> torch.Tensor:
        return model.shared.output + other

    monkeypatch.setattr(Held, "__add__", read)
    # a program of its own, since it is carried from the refusal on
    text = "def enter():\n    with model.trace(X):\n        (model.hold.output + 1).save()\n"
    enter = run(text, model=model)["enter"]
    monkeypatch.setattr(Hold, "plainly", True)
    for _ in range(3):
        enter()
    monkeypatch.setattr(Hold, "plainly", False)
    with pytest.raises(CarriedCallError, match=r"shared .* not watched .*; name shared in"):
        enter()
    # the first visit has passed: what is refused above is no later one, and now says so
    with pytest.raises(OutOfOrderError, match=r"shared\.output has already passed"):
        enter()


def test_a_subclass_cannot_redefine_a_port():
    with pytest.raises(TypeError, match=r"'output' of Wrong is a port of every wrapper; .*another"):

        class Wrong(NNsight):
            @property
            def output(self) -> int:
                return 3


def test_a_name_of_a_plain_value_may_stand_for_an_object_that_asks_the_next_time() -> None:
    model = NNsight(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    x = torch.ones(1, 2)

    class Asking:
        def __rmul__(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden + model[1].output

    def run(factor: object) -> torch.Tensor:
        with model.trace(x):
            found = (model[0].output * factor).save()
        return found

    hidden = model._module[0](x)
    for _ in range(3):
        assert torch.equal(run(2), hidden * 2)
        assert torch.equal(run(Asking()), hidden + model._module[1](hidden))
