"""`make interrupts`: 3,000 interrupts at random places, and what they leave behind."""

from __future__ import annotations

import argparse
import sys
import warnings

from tests.interrupts.campaign import campaign


def main() -> int:
    """Run a campaign and print what it finds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", action="store_true", help="take every place, not some")
    parser.add_argument("kinds", nargs="*")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    tries = findings = 0
    for _, finding in campaign(given.count, given.seed, given.kinds, every=given.every):
        tries += 1
        if finding is not None:
            findings += 1
            print(finding, flush=True)
    print(f"{tries} interrupts, {findings} left something behind")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
