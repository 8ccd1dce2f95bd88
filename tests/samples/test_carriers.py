"""Minimised failures of carried calls: an error of torch's own on a stack of its own.

Each such error records its C stack. Where that ends at the beginning of a greenlet, what is read
next is whatever lies there, and at times the process ends: so the record must not come that far.
"""

import torch
from torch import nn

from nnsight_dsl import NNsight
from nnsight_dsl.runtime.machines.carrying import new_carrier

FRAMES = 64
"""As many as torch records."""


def stack():
    return torch._C._get_cpp_backtrace(0, FRAMES)


def test_a_record_of_the_stack_ends_before_the_beginning_of_the_carrier():
    assert "greenlet" not in new_carrier(torch._C._get_cpp_backtrace).switch(0, FRAMES)
    # the place that is looked for is there
    assert "greenlet" in new_carrier(torch._C._get_cpp_backtrace).switch(0, 3 * FRAMES)


def test_a_carried_call_and_what_it_calls():
    model = NNsight(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    stacks = []

    def norm(layer):
        value = layer.output.norm()
        stacks.append(stack())
        return value

    with model.trace(torch.ones(2, 4)):
        stacks.append(stack())
        largest = max(model, key=norm).save()
        stacks.append(stack())
    assert [("greenlet" in one) for one in stacks] == [False] * 4
    assert largest in list(model)


def test_what_a_carrier_is_given_and_what_it_hands_back():
    assert new_carrier(lambda a, b: a - b).switch(5, 3) == 2
    waiting = new_carrier(lambda a: waiting.parent.switch(a) * 2)
    assert (waiting.switch(4), waiting.switch(21), waiting.dead) == (4, 42, True)

    def stops(error):
        raise error

    for error in (StopIteration(3), KeyError("k"), KeyboardInterrupt()):
        try:
            new_carrier(stops).switch(error)
        except BaseException as raised:
            assert raised is error
