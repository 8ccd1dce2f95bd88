"""A run that is interrupted leaves the model and torch as they were, and so is the next run right.

`make interrupts` tries ten times as many places.
"""

from __future__ import annotations

import pytest

from tests.interrupts.campaign import campaign
from tests.interrupts.kinds import KINDS

TRIES = 300


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_anywhere_leaves_nothing_behind(kind: str) -> None:
    share = TRIES // len(KINDS)
    found = [str(one) for _, one in campaign(share, seed=14, kinds=[kind]) if one is not None]
    assert found == []
