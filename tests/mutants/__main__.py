"""`make mutants`: faults put into copies of the tree, and whether a test notices each.

python -m tests.mutants                    # all
python -m tests.mutants barrier gradient   # those whose rule has one of these words
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.mutants.faults import FAULTS, Fault

ROOT = Path(__file__).parents[2]


def copy_tree(target: Path) -> None:
    """Copy the files that git knows, and those that it does not ignore, links as links."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True,
    ).stdout.decode()  # fmt: skip
    for name in filter(None, listed.split("\0")):
        source, copy = ROOT / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            copy.symlink_to(os.readlink(source))
        elif source.is_file():
            copy.write_bytes(source.read_bytes())


def tested(tree: Path, tests: Iterable[str]) -> tuple[int, str]:
    """Run tests in a tree; return pytest's exit status and the last line that says why."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
        cwd=tree, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return done.returncode, lines[-1] if lines else (done.stdout + done.stderr)[-500:]


def noticed_by(fault: Fault, tree: Path) -> str | None:
    """Return the test that notices a fault, None if there is none."""
    path = tree / fault.file
    text = path.read_text(encoding="utf-8")
    if text.count(fault.old) != 1:
        raise ValueError(f"{fault.rule!r}: its text is there {text.count(fault.old)} times")
    path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
    try:
        status, said = tested(tree, fault.tests)
    finally:
        path.write_text(text, encoding="utf-8")
    if status == 0:
        return None
    if status != 1:
        raise RuntimeError(f"{fault.rule!r}: the tests did not run: {said}")
    return said.partition(" - ")[0]


def main() -> int:
    """Run, and return 1 if a fault is not noticed."""
    words = sys.argv[1:]
    faults = [one for one in FAULTS if not words or any(word in one.rule for word in words)]
    unnoticed = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_tree(tree)
        status, said = tested(tree, sorted({test for one in faults for test in one.tests}))
        if status:
            print(f"the tests fail without a fault: {said}")
            return 1
        for number, fault in enumerate(faults, start=1):
            test = noticed_by(fault, tree)
            unnoticed += test is None
            print(f"{number:2} {fault.rule}: {test or 'UNNOTICED'}", flush=True)
    print(f"{len(faults)} faults, {unnoticed} unnoticed")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
