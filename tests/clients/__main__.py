"""Run the tests of clients with this package and with nnsight itself.

    python -m tests.clients FOLDER

`make clients` calls it, with the folder of an environment in which the clients are installed, and
each version of nnsight in a folder beside it: `nnsight-0.6.3`, `nnsight-0.8.1` and so on. What runs
with nnsight finds it in front of its path; what runs with this package does not find it at all,
and is switched by the option of pytest alone. The models are those of `checkpoints.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from tests.clients.checkpoints import CHECKPOINTS, write_checkpoints

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("0.6.0", "0.6.3", "0.8.1")
"""The versions that `nnsight.__version__` names in the runs of nnterp."""
DECODERS = [*CHECKPOINTS]


@dataclass(frozen=True, slots=True)
class Client:
    """A package, the arguments of pytest that run its tests, and the dialects it is written for."""

    name: str
    arguments: tuple[str, ...]
    dialects: tuple[str, ...]
    peers: tuple[str, ...]


def _clients() -> Iterator[Client]:
    nnterp = find_spec("nnterp")
    assert nnterp is not None and nnterp.origin is not None
    tests = str(Path(nnterp.origin).parent / "tests")
    yield Client("nnterp", (tests, "--model-names", *DECODERS), ("0.6", "0.8"), ("0.6.3", "0.8.1"))
    programs = str(Path(__file__).parent / "interpreto_programs.py")
    yield Client("interpreto", (programs,), ("0.6", "0.8"), ("0.7.0", "0.8.1"))


def main() -> None:
    """Write the models, run everything, and print a table."""
    from rich.console import Console
    from rich.table import Table

    folder = Path(sys.argv[1]).resolve()
    write_checkpoints(folder / "hub")
    _declare_available()
    table = Table("client", "with", "passed", "failed", "skipped")
    failures: list[str] = []
    for client in _clients():
        for label, options, path in _ways(client, folder):
            counts, failed = _outcomes(client, folder, label, options, path)
            cells = [str(counts[outcome]) for outcome in ("passed", "failed", "skipped")]
            table.add_row(f"{client.name} {version(client.name)}", label, *cells)
            failures += [f"{client.name}, {label}: {test}" for test in failed]
    console = Console(width=120)
    console.print("\n".join(failures), markup=False, highlight=False)
    console.print(table)


def _ways(client: Client, folder: Path) -> Iterator[tuple[str, list[str], str]]:
    """Yield a label, the options of pytest and what the path begins with."""
    for dialect in client.dialects:
        yield f"nnsight_dsl as {dialect}", [f"--as-nnsight={dialect}"], str(ROOT)
    for peer in client.peers:
        yield f"nnsight {peer}", ["-p", "no:nnsight_dsl"], str(folder / f"nnsight-{peer}")


def _outcomes(
    client: Client, folder: Path, label: str, options: list[str], path: str
) -> tuple[Counter[str], list[str]]:
    """Run the tests of a client, and return how many had each outcome, and which failed."""
    report = folder / "reports" / f"{client.name}-{label.replace(' ', '-')}.xml"
    report.parent.mkdir(exist_ok=True)
    report.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(folder / "pytest.ini")]
    command += [f"--junitxml={report}", "-p", "no:cacheprovider"]
    log = report.with_suffix(".log")
    with log.open("w") as output:
        subprocess.run(
            [*command, *options, *client.arguments],
            cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    if not report.exists():
        return Counter(failed=1), [f"nothing ran; {log} says why"]
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    outcomes = [_outcome(case) for case in cases]
    failed = [
        f"{case.get('name')} ({_reason(case)})"
        for case, outcome in zip(cases, outcomes, strict=True)
        if outcome == "failed"
    ]
    return Counter(outcomes), failed


def _outcome(case: ElementTree.Element) -> str:
    kinds = {child.tag for child in case}
    if kinds & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in kinds else "passed"


def _reason(case: ElementTree.Element) -> str:
    found = next(child for child in case if child.tag in ("failure", "error"))
    return found.get("message", "").partition("\n")[0][:160]


def _declare_available() -> None:
    """Tell nnterp which models there are: it would ask the hub for a list of them."""
    spec = find_spec("nnterp")
    assert spec is not None and spec.origin is not None
    data = Path(spec.origin).parent / "data"
    data.mkdir(exist_ok=True)
    (data / "__init__.py").touch()
    available = {"available_nn_models": DECODERS}
    status = {version("transformers"): dict.fromkeys(VERSIONS, available)}
    (data / "test_loading_status.json").write_text(json.dumps(status))


if __name__ == "__main__":
    main()
