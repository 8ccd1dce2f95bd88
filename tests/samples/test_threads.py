"""Blocks that threads enter at the same time, each case as small as it gets."""

import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from nnsight_dsl import NNsight


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
