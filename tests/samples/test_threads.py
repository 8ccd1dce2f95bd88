"""Blocks that threads enter at the same time, each case as small as it gets."""

import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from nnsight_dsl import NNsight
from nnsight_dsl.runtime.turns import register_modules


@pytest.fixture
def switching() -> Iterator[None]:
    """Let Python go from thread to thread as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def test_threads_that_skip_the_body_of_one_block_do_not_crash(switching: None) -> None:
    model = NNsight(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    x = torch.ones(1, 3)
    expected = model._module[0](x)
    found = []

    def work() -> None:
        for _ in range(10):
            with model.trace(x):
                hidden = model[0].output.save()
            found.append(torch.equal(hidden, expected))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 80


def test_models_that_come_to_share_layers_one_after_the_other_take_turns_by_one_lock() -> None:
    layers = [nn.Linear(3, 3) for _ in range(4)]
    families = [register_modules(nn.Sequential(one)) for one in layers]
    # whichever of two leads, one family has become part of another by two merges then
    for one, other in ((0, 1), (2, 3), (1, 2)):
        register_modules(nn.Sequential(layers[one], layers[other]))
    assert len({id(family.leader().lock) for family in families}) == 1


def test_a_run_waits_for_one_that_began_before_their_models_came_to_share_a_layer() -> None:
    x = torch.ones(1, 3)
    # which of two families leads is not told from outside
    for _ in range(8):
        order: list[str] = []
        shared, other = nn.Linear(3, 3), nn.Linear(3, 3)
        first, second = NNsight(nn.Sequential(shared)), NNsight(nn.Sequential(other))
        entered, may_go_on = threading.Event(), threading.Event()

        def wait(*_: object) -> None:
            entered.set()
            assert may_go_on.wait(60)

        shared.register_forward_hook(wait)
        first._module.register_forward_hook(lambda *_: order.append("first"))
        other.register_forward_hook(lambda *_: order.append("both"))

        def run(model: NNsight) -> None:
            with model.trace(x):
                out = model[0].output

        running = threading.Thread(target=run, args=(first,))
        running.start()
        assert entered.wait(60)
        waiting = threading.Thread(target=run, args=(NNsight(nn.Sequential(other, shared)),))
        waiting.start()
        waiting.join(0.1)
        may_go_on.set()
        running.join()
        waiting.join()
        assert order == ["first", "both"]
