"""A block that is entered again means what it means when it is entered for the first time.

From the second entry on, a block that runs alone takes a short way, by a driver that its runs
share. Here it is entered several times, with something happening to the model in between, and each
time beside it the same text, compiled anew and on a new wrapper of the same modules.
"""

from __future__ import annotations

import gc
import linecache
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count
from textwrap import indent
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from nnsight_dsl import CONFIG, NNsight
from nnsight_dsl.blocks.import_hook import compile_module
from nnsight_dsl.runtime.driving.driver import Driver
from nnsight_dsl.runtime.tapping.kept_taps import Fixtures
from tests.waiting import PATIENCE

X = torch.linspace(-1, 1, 6).reshape(2, 3)
LAYERS = 3
_numbers = count()
_wrappers: list[NNsight] = []


class Double(nn.Module):
    """A layer with a layer inside, that calls it twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(self.inner(x))


class Net(nn.Module):
    """Layers one after the other, of which one has a layer inside."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3), Double(), nn.Linear(3, 3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture(autouse=True)
def without_lint(monkeypatch: pytest.MonkeyPatch) -> None:
    # what it finds is raised before the run, and only at the first entry
    monkeypatch.setattr(CONFIG.APP, "LINT", "off")


def new_net() -> Net:
    torch.manual_seed(0)
    return Net()


# what a block does

PLACES = ("layers[0]", "layers[1].inner", "layers[1]", "layers[2]")
STATEMENTS = (
    "{name} = {place}.output.save()",
    "{name} = {place}.output.sum().save()",
    "{name} = {place}.output",
    "{place}.output = {place}.output * 2",
    "{place}.output = {place}.output.double()",
    "{place}.output = {place}.output[:1]",
    "{place}.output[:, 0] = 3",
    "{place}.output = torch.nn.Parameter({place}.output)",
    "{name} = {place}.input.save()",
    "{place}.input = {place}.input + 1",
    "{place}.skip({place}.input * 3)",
    "{name} = [{place}.output for _ in range(2)].save()",
    "if {place}.output.sum() > 0: {name} = 1",
    "{name} = unbound",
    "raise KeyError('{name}')",
    "tracer.stop()",
    "tracer.next()",
    "{name} = model.output.save()",
    "{name} = [[one.output for one in layers]].save()",
    "{name} = tracer.result.save()",
)
_USUAL = 4


@st.composite
def blocks(draw: Any) -> str:
    """Draw the statements of a block, mostly usual ones and mostly in order."""
    at, lines = 0, []
    for number in range(draw(st.integers(0, 5))):
        if draw(st.integers(0, 5)):
            at = min(at + draw(st.integers(0, 2)), len(PLACES) - 1)
            place = PLACES[at]
        else:
            place = draw(st.sampled_from(PLACES))
        most = _USUAL if draw(st.integers(0, 2)) else len(STATEMENTS)
        statement = STATEMENTS[draw(st.integers(0, most - 1))]
        lines.append(statement.format(name=f"v{number}", place=place))
    return "\n".join(lines) or "pass"


# what happens between two entries


def _fail(*_: object) -> None:
    raise ZeroDivisionError("a hook")


@contextmanager
def _exchanged(net: Net) -> Iterator[None]:
    before, net.layers[0] = net.layers[0], nn.Linear(3, 3)
    try:
        yield
    finally:
        net.layers[0] = before


@contextmanager
def _exchanged_before(net: Net) -> Iterator[None]:
    before, net.layers[0] = net.layers[0], nn.Identity()
    for model in _wrappers:
        # a look at it is enough to make the wrapper mirror the other one
        assert model.layers[0].training
    net.layers[0] = before
    yield


@contextmanager
def _exchanged_in_the_run(net: Net) -> Iterator[None]:
    before = net.layers[2]

    def exchange(*_: object) -> None:
        net.layers[2] = nn.Identity()

    try:
        with net.layers[0].register_forward_pre_hook(exchange):
            yield
    finally:
        net.layers[2] = before


EVENTS: dict[str, Callable[[Net], AbstractContextManager[Any]]] = {
    "nothing": lambda net: nullcontext(),
    "a hook": lambda net: net.layers[0].register_forward_hook(lambda m, a, out: out * 3),
    "a hook before": lambda net: net.layers[2].register_forward_pre_hook(lambda m, a: (a[0] * 3,)),
    "a failing hook": lambda net: net.layers[2].register_forward_pre_hook(_fail),
    "a hook of all modules": lambda net: nn.modules.module.register_module_forward_hook(
        lambda m, a, out: out + 1 if isinstance(m, Double) else None
    ),
    "another layer": _exchanged,
    "a layer that was exchanged and is back": _exchanged_before,
    "another layer in the run": _exchanged_in_the_run,
    "no autograd": lambda net: torch.no_grad(),
    "inference": lambda net: torch.inference_mode(),
}


def compiled(body: str, *, is_imported: bool = False) -> Callable[[NNsight, Net], Any]:
    """Compile a function that enters a block, and returns the names that it binds.

    Args:
        body: the statements of the block.
        is_imported: whether the block is lowered beforehand, as in a module under the import hook.
    """
    lines = f"layers = model.layers\nwith model.trace(x) as tracer:\n{indent(body, '    ')}"
    text = f"def user(model, x):\n{indent(lines, '    ')}\n    return dict(locals())\n"
    return function_of(text, is_imported=is_imported)


def function_of(text: str, *, is_imported: bool = False) -> Callable[..., Any]:
    """Compile the function `user` that a text defines, so that its source is found."""
    filename = f"<entered again {next(_numbers)}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    names: dict[str, Any] = {"torch": torch}
    code = compile_module(text, filename) if is_imported else compile(text, filename, "exec")
    exec(code, names)
    user: Callable[..., Any] = names["user"]
    return user


def outcome(user: Callable[..., Any], model: NNsight) -> tuple[Any, ...]:
    try:
        found = user(model, X.clone())
    except Exception as error:
        entry = traceback.extract_tb(error.__traceback__)[-1]
        line = entry.lineno if entry.filename.startswith("<entered") else None
        return type(error), str(error), line
    return tuple(
        (name, _kept(value)) for name, value in sorted(found.items()) if name.startswith("v")
    )


def _kept(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.tolist()
    return [_kept(one) for one in value] if isinstance(value, list) else value


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(blocks(), st.lists(st.sampled_from(sorted(EVENTS)), min_size=3, max_size=5), st.booleans())
def test_a_block_that_is_entered_again_means_the_same(
    body: str, events: list[str], is_imported: bool
) -> None:
    net = new_net()
    model, again = NNsight(net), compiled(body, is_imported=is_imported)
    _wrappers[:] = [model]
    for event in events:
        with EVENTS[event](net):
            first = outcome(compiled(body), NNsight(net))
            assert outcome(again, model) == first, (body, event)
        assert all(type(one) is one.__class__ for one in net.modules())


def test_runs_that_are_like_the_run_before_make_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    model = NNsight(new_net())
    user = compiled("h = layers[0].output.save()\nlayers[2].output = layers[2].output * 2")
    made: list[Driver] = []
    init = Driver.__init__

    def noted(self: Driver, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        init(self, *args, **kwargs)

    monkeypatch.setattr(Driver, "__init__", noted)
    for _ in range(5):
        user(model, X)
    # the first run finds out how the block fits the model, the second makes what the others share
    assert len(made) == 2


def test_nothing_of_a_run_is_held_after_it() -> None:
    model = NNsight(new_net())
    user = compiled("h = layers[0].output.save()\nlayers[2].output = layers[2].output * 2")
    for _ in range(3):
        found = user(model, X.clone())
        held = weakref.ref(found["h"]), weakref.ref(found["tracer"]), weakref.ref(found["x"])
        del found
        assert [one() for one in held] == [None, None, None]


def test_a_run_after_one_that_was_interrupted_is_as_the_first() -> None:
    net = new_net()
    model, user = NNsight(net), compiled("h = layers[2].output.save()")
    expected = [user(model, X)["h"] for _ in range(2)]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with net.layers[1].register_forward_pre_hook(interrupt), pytest.raises(KeyboardInterrupt):
        user(model, X)
    assert torch.equal(user(model, X)["h"], expected[0])
    assert all(type(one) is one.__class__ for one in net.modules())


def test_a_name_that_is_not_bound_any_more_is_not_bound_in_the_block() -> None:
    text = (
        "def user(model, x, is_bound):\n"
        "    scale = 2\n"
        "    if not is_bound:\n"
        "        del scale\n"
        "    with model.trace(x):\n"
        "        h = (model.layers[0].output * scale).save()\n"
        "    return h\n"
    )
    user = function_of(text)
    net = new_net()
    model = NNsight(net)
    for _ in range(3):
        assert torch.equal(user(model, X, True), net.layers[0](X) * 2)
        with pytest.raises(NameError, match="scale"):
            user(model, X, False)


def test_a_module_that_changes_its_class_in_a_later_run_is_read_in_the_next() -> None:
    class Becoming(nn.Linear):
        """Takes another class in its third call, as lazy modules do in their first."""

        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls == 3:
                self.__class__ = nn.Linear  # type: ignore[assignment]
            return nn.Linear.forward(self, x)

    net = new_net()
    net.layers[0] = Becoming(3, 3)
    model, user = NNsight(net), compiled("h = layers[0].output.save()")
    for _ in range(5):
        found = user(model, X)["h"]
        assert torch.equal(found, nn.functional.linear(X, net.layers[0].weight, net.layers[0].bias))
    assert type(net.layers[0]) is nn.Linear


def test_a_layer_that_the_model_exchanges_while_it_runs_is_read_in_its_place() -> None:
    net = new_net()
    model = NNsight(net)
    user = compiled("h = layers[0].output.save()\nlast = layers[2].output.save()")
    for _ in range(3):
        user(model, X)
    with _exchanged_in_the_run(net):
        assert torch.equal(user(model, X)["last"], net.layers[1](net.layers[0](X)))


def test_what_another_thread_calls_while_the_taps_are_put_is_not_of_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = new_net()
    model, user = NNsight(net), compiled("h = layers[0].output.save()")
    expected = [user(model, X)["h"] for _ in range(3)][-1]
    begun, called = threading.Event(), threading.Event()
    put = Fixtures.put

    def slowly(self: Fixtures, driver: Driver) -> bool:
        found = put(self, driver)
        begun.set()
        called.wait(PATIENCE)
        return found

    monkeypatch.setattr(Fixtures, "put", slowly)
    found: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: found.append(user(model, X)["h"]))
    thread.start()
    begun.wait(PATIENCE)
    net(X * 2)  # in the thread that the block has run in before
    called.set()
    thread.join(PATIENCE)
    assert torch.equal(found[0], expected)


def test_a_block_runs_in_another_thread_after_a_module_has_changed_its_class() -> None:
    net = new_net()
    model, user = NNsight(net), compiled("h = layers[0].output.save()")
    for _ in range(3):
        user(model, X)
    nn.utils.parametrizations.weight_norm(net.layers[0])
    found: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: found.append(user(model, X)["h"]))
    thread.start()
    thread.join(PATIENCE)
    assert torch.equal(found[0], net.layers[0](X))


def test_a_run_of_another_kind_between_two_leaves_the_next_as_it_was() -> None:
    text = (
        "def user(model, x, port, **options):\n"
        "    layer = model.layers[0]\n"
        "    with model.trace(x, **options):\n"
        "        h = (layer.input if port == 'input' else layer.output).save()\n"
        "    return h\n"
    )
    user = function_of(text)
    net = new_net()
    model = NNsight(net)
    for options in ({}, {}, {"log": True}, {}, {"validate": True}, {}):
        assert torch.equal(user(model, X, "input", **options), X)
        assert torch.equal(user(model, X, "output"), net.layers[0](X))


@pytest.mark.parametrize("kind", ["input", "another class"])
def test_nothing_of_an_unusual_run_is_held_after_it(kind: str) -> None:
    net = new_net()
    model = NNsight(net)
    port = "input" if kind == "input" else "output"
    user = compiled(f"h = layers[0].{port}.clone().save()")
    gc.collect()
    gc.disable()
    try:
        for number in range(4):
            if kind == "another class" and number == 2:
                net.layers[0].__class__ = type("Other", (nn.Linear,), {})
            found = user(model, X.clone().requires_grad_())
            held = weakref.ref(found["h"]), weakref.ref(found["x"])
            del found
            assert [one() for one in held] == [None, None], number
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_is_written() -> None:
    class Nested(nn.Module):
        """Returns a nested tensor, which has no shape."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nested.nested_tensor([x, x[:1]], layout=torch.strided)

    module = nn.Sequential(Nested(), nn.Identity())
    text = (
        "def user(model, x):\n"
        "    with model.trace(x):\n"
        "        hidden = model[0].output\n"
        "        model[0].output = hidden * 2\n"
        "        result = model.output.save()\n"
        "    return locals()\n"
    )
    user = function_of(text)
    model = NNsight(module)
    for _ in range(3):
        found = user(model, X)["result"]
        for row, expected in zip(found.unbind(), module(X).unbind(), strict=True):
            assert torch.equal(row, expected * 2)
