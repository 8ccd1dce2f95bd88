"""Blocks that are handed to a backend, and functions that are run in place of the forward."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

from nnsight_dsl import LanguageModel, NNsight, NotRunningError, traceable
from nnsight_dsl.tracing.backends import Backend
from nnsight_dsl.tracing.tracer import Tracer
from tests import models
from tests.models import GPT2, SHORT, assert_near, assert_same, bare, encoded

X = torch.tensor([[1.0, 2.0, 3.0, 4.0]])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4)
        self.last = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x)))


class Looped(NNsight):
    @traceable
    def run(self, x: torch.Tensor, times: int = 2) -> torch.Tensor:
        for _ in range(times):
            x = self._module(x)
        return x


@pytest.fixture
def net() -> Net:
    return Net().eval()


class Kept(Backend):
    """Keeps what it is called with, and then runs the block."""

    def __call__(self, tracer: Any) -> None:
        self.tracer, self.code = tracer, tracer.info.code
        self.frame = tracer.info.frame
        super().__call__(tracer)


# backends


def test_a_backend_is_called_with_the_block_and_runs_it(net: Net) -> None:
    model = NNsight(net)
    backend = Kept()
    with model.trace(X, backend=backend) as tracer:
        hidden = model.first.output.save()
        dropped = model.last.output
    assert_same(hidden, net.first(X))
    assert tracer.backend is backend
    assert backend.tracer is tracer
    assert backend.code.co_filename == __file__
    assert backend.frame is sys._getframe()
    assert tracer.info is None
    with pytest.raises(NameError):
        dropped


def test_a_backend_that_does_not_run_the_block_leaves_no_names(net: Net) -> None:
    calls: list[Any] = []
    handle = net.register_forward_hook(lambda *_: calls.append(1))
    with handle:
        with NNsight(net).trace(X, backend=calls.append) as tracer:
            hidden = tracer.result.save()
    assert calls == [tracer]
    with pytest.raises(NameError):
        hidden


def test_an_error_of_a_block_reaches_its_backend_and_its_line(net: Net) -> None:
    seen = []

    def backend(tracer: Any) -> None:
        try:
            tracer.execute(tracer.info.code)
        except ZeroDivisionError as error:
            seen.append(error)
            raise

    model = NNsight(net)
    with pytest.raises(ZeroDivisionError) as caught:
        with model.trace(X, backend=backend):
            model.first.output
            1 / 0
    assert seen == [caught.value]
    assert caught.traceback[-1].frame.code.path.name == "test_backends.py"
    with pytest.raises(KeyError, match="its own"):
        with model.trace(X, backend=raising):
            model.first.output


def raising(tracer: Any) -> None:
    raise KeyError("its own")


def test_invokes_and_a_session_have_a_backend(net: Net) -> None:
    model = LanguageModel(bare(GPT2), tokenizer=models.tokenizer())
    with model.trace(backend=Kept()) as tracer:
        with tracer.invoke(SHORT):
            one = model.lm_head.output.save()
        with tracer.invoke(SHORT):
            two = model.lm_head.output.save()
    assert_near(one, bare(GPT2)(**encoded(SHORT)).logits)
    assert_near(two, one)
    with model.session():
        with model.trace(SHORT, backend=Kept()):
            hidden = model.transformer.h[0].output
        with model.generate(SHORT, max_new_tokens=2, backend=Kept()) as tracer:
            ids = tracer.result.save()
        shape = hidden.shape.save()
    assert shape == (1, 2, 16)
    assert ids.shape == (1, 4)


def test_what_cannot_be_a_backend_is_refused(net: Net) -> None:
    model = NNsight(net)
    with pytest.raises(TypeError, match="give a callable"):
        model.trace(X, backend=3)
    with pytest.raises(TypeError, match="to a trace that has a block"):
        model.trace(X, backend=Backend(), trace=False)
    with model.trace(X) as tracer:
        pass
    with pytest.raises(NotRunningError, match="while the backend= of that trace"):
        tracer.execute((lambda: 1).__code__)

    def backend(tracer: Any) -> None:
        tracer.execute((lambda: 1).__code__)

    with pytest.raises(ValueError, match=r"another code than tracer\.info\.code"):
        with model.trace(X, backend=backend):
            model.first.output


# classes of tracers


def test_a_subclass_of_the_tracer_is_made(net: Net) -> None:
    calls = []

    class Mine(Tracer):
        def execute(self, code: Any) -> None:
            calls.append(code.co_filename)
            super().execute(code)

    model = NNsight(net)
    with model.trace(X, tracer_cls=Mine) as tracer:
        hidden = model.first.output.save()
    assert isinstance(tracer, Mine)
    assert calls == [__file__]
    assert_same(hidden, net.first(X))
    with pytest.raises(TypeError, match="derive it from that"):
        model.trace(X, tracer_cls=dict)


# functions


def test_a_function_is_run_in_place_of_the_forward(net: Net) -> None:
    def twice(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return net(net(x) * scale)

    model = NNsight(net)
    with model.trace(X, fn=twice, scale=2.0) as tracer:
        hidden = [].save()
        for _ in tracer.iter[:2]:
            hidden.append(model.first.output)
        result = tracer.result.save()
    assert_same(hidden[0], net.first(X))
    assert_same(hidden[1], net.first(net(X) * 2.0))
    assert_same(result, twice(X, 2.0))
    assert_same(model.trace(X, fn=twice, trace=False), twice(X))
    with model.trace(fn=lambda: net(X)):
        none_given = model.last.output.save()
    assert_same(none_given, net(X))


def test_a_method_is_run_by_its_name(net: Net) -> None:
    model = Looped(net)
    with model.trace(X, fn="run", times=3) as tracer:
        three = tracer.result.save()
    assert_same(three, net(net(net(X))))
    # one of the module's
    net.halved = lambda x: net(x) / 2  # type: ignore[assignment]
    with model.trace(X, fn="halved") as tracer:
        half = tracer.result.save()
    assert_same(half, net(X) / 2)


def test_a_traceable_method_opens_a_block(net: Net) -> None:
    model = Looped(net)
    with model.run(X) as tracer:
        model.first.output[:] = 0
        result = tracer.result.save()
    zeros = net.last(torch.zeros(1, 4))
    assert_same(result, net(zeros))
    with torch.no_grad():
        assert_same(model.run(X, times=1), net(X))
        with model.edit(inplace=True):
            model.first.output[:] = 0
        assert_same(model.run(X, times=1), zeros)
        with model.trace(X):
            inside = model.run(X, times=1).save()
    assert_same(inside, net(X))


def test_a_function_of_a_language_model_has_what_its_forward_has() -> None:
    model = LanguageModel(bare(GPT2), tokenizer=models.tokenizer())

    def last(input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return bare(GPT2)(input_ids, **kwargs).logits[:, -1]

    with model.trace(fn=last) as tracer:
        with tracer.invoke(SHORT):
            short = tracer.result.save()
        with tracer.invoke(models.LONG):
            model.transformer.h[0].output[:] = 0
    assert_near(short, bare(GPT2)(**encoded(SHORT)).logits[:, -1])


def test_what_a_function_cannot_be_is_refused(net: Net) -> None:
    model = LanguageModel(bare(GPT2), tokenizer=models.tokenizer())
    with pytest.raises(TypeError, match="takes a function or the name of a method"):
        model.trace(SHORT, fn=3)
    with pytest.raises(TypeError, match="takes a function or the name of a method"):
        model.generate(SHORT, fn=print)
    for word in ({"scan": True}, {"plan": True}, {"stop": "auto"}):
        with pytest.raises(ValueError, match="leave one of them out"):
            model.trace(SHORT, fn=print, **word)
