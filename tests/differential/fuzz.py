"""Compare random programs with plain hooks for some time: `make fuzz MINUTES=60`.

    python -m tests.differential.fuzz --minutes 60
    python -m tests.differential.fuzz --seed 12345        # one program, as it is and shrunk

A program that differs is printed, made as small as may be, with the seed that it was drawn from.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from functools import partial

# before torch is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main() -> int:
    """Run, and return how many programs differed, as an exit status."""
    from tests.differential.comparison import difference, differs_alike
    from tests.differential.shrinking import described, shrunk
    from tests.differential.writer import drawn

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, help="only this program")
    parser.add_argument(
        "--first", type=int, help="the first seed, drawn from the clock if not given"
    )
    parser.add_argument("--most", type=int, default=20, help="differences after which it ends")
    options = parser.parse_args()

    if options.seed is not None:
        seeds = iter([options.seed])
    else:
        first = options.first if options.first is not None else time.time_ns() // 1000 % 10**12
        seeds = iter(range(first, first + 10**9))
        print(f"the first seed is {first}", flush=True)
    end = time.monotonic() + options.minutes * 60
    counts: Counter[str] = Counter()
    n_different = 0
    for seed in seeds:
        program = drawn(seed)
        counts[program.entry] += 1
        said = difference(program)
        if said is not None:
            n_different += 1
            print(f"seed {seed} differs: {said}\n", flush=True)
            smaller = shrunk(program, partial(differs_alike, said), 60)
            said = difference(smaller) or "not again"
            print(f"{described(smaller, said)}\n{'-' * 80}", flush=True)
        if time.monotonic() > end or n_different >= options.most:
            break
    entries = ", ".join(f"{number} as {entry!r}" for entry, number in sorted(counts.items()))
    print(f"{counts.total()} programs ({entries}): {n_different} differ", flush=True)
    return min(n_different, 1)


if __name__ == "__main__":
    sys.exit(main())
