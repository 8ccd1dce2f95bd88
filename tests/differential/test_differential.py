"""Random programs mean by the package what they mean by plain hooks, at every entry.

A program is drawn from a number and written out as text. It runs through one of the entry points,
several times, with something happening to the model in between; and it runs by an interpreter that
is made of plain hooks. `make fuzz` compares other programs for an hour.
"""

from collections import Counter
from functools import partial

import pytest

from tests.differential.comparison import difference, differs_alike
from tests.differential.programs import BLOCKS, FUNCTIONS
from tests.differential.shrinking import described, shrunk
from tests.differential.worlds import EVENTS
from tests.differential.writer import drawn

PROGRAMS = 1000
SHARES = 10
EACH = PROGRAMS // SHARES
ENOUGH = 20


@pytest.mark.timeout(900)
@pytest.mark.parametrize("share", range(SHARES))
def test_random_programs_mean_what_plain_hooks_make_of_them(share: int) -> None:
    for seed in range(share * EACH, (share + 1) * EACH):
        program = drawn(seed)
        said = difference(program)
        if said is not None:
            smaller = shrunk(program, partial(differs_alike, said), 60)
            pytest.fail(described(smaller, f"{said}\n# {difference(smaller)}"))


def test_all_entry_points_and_events_are_drawn() -> None:
    drawn_of: Counter[str] = Counter()
    for seed in range(PROGRAMS):
        program = drawn(seed)
        drawn_of.update([program.entry, *set(program.events)])
    assert {
        one: drawn_of[one] for one in (*BLOCKS, *FUNCTIONS, *EVENTS) if drawn_of[one] < 20
    } == {}
