"""Minimal cases of what went wrong once where taps are put on a model."""

import gc
import weakref

import torch
from torch import nn

from nnsight_dsl import NNsight

X = torch.linspace(-1, 1, 8).reshape(2, 4)


def test_a_call_patched_after_the_first_run_is_in_force():
    class Layer(nn.Linear):
        pass

    net = nn.Sequential(Layer(4, 4), nn.Linear(4, 4))
    model = NNsight(net)

    def run():
        with model.trace(X) as tracer:
            hidden = model[0].output
            result = tracer.result.save()
        return result

    plain = run()
    Layer.__call__ = lambda self, x: nn.Module.__call__(self, x) * 2
    assert run().equal(net(X))
    assert not run().equal(plain)
    del Layer.__call__
    assert run().equal(plain)


def test_a_call_patched_before_the_first_run_is_given_back():
    class Layer(nn.Linear):
        pass

    net = nn.Sequential(Layer(4, 4), nn.Linear(4, 4))
    model = NNsight(net)
    plain = net(X)
    Layer.__call__ = lambda self, x: nn.Module.__call__(self, x) * 2
    with model.trace(X) as tracer:
        hidden = model[0].output
        result = tracer.result.save()
    assert not result.equal(plain)
    del Layer.__call__
    with model.trace(X) as tracer:
        hidden = model[0].output
        result = tracer.result.save()
    assert result.equal(plain)


def test_calls_that_go_around_the_class_are_visits():
    class Net(nn.Module):
        def __init__(self, call):
            super().__init__()
            self.part = nn.Linear(4, 4)
            self.__dict__["call"] = call(self.part)

        def forward(self, x):
            return self.call(x) + 1

    for call in (
        lambda part: part.__call__,
        lambda part: lambda x: part._call_impl(x),
        lambda part: lambda x: nn.Module.__call__(part, x),
        lambda part: lambda x: super(nn.Linear, part).__call__(x),
    ):
        net = Net(call)
        model = NNsight(net)
        with model.trace(X):
            seen = model.part.output.save()
            model.part.output = model.part.output * 2
            result = model.output.save()
        assert seen.equal(net.part(X))
        assert result.equal(net.part(X) * 2 + 1)


def test_a_class_is_freed_with_what_was_made_for_its_taps():
    def run():
        class Layer(nn.Linear):
            pass

        model = NNsight(nn.Sequential(Layer(4, 4)))
        for _ in range(2):
            with model.trace(X):
                hidden = model[0].output.save()
        return weakref.ref(Layer)

    layer = run()
    # the module first, then its class, which only a collector frees
    gc.collect()
    gc.collect()
    assert layer() is None
