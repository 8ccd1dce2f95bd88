"""What the pages about sweeps and plans show is what happens."""

from __future__ import annotations

import linecache
import re
from pathlib import Path
from typing import Any

import pytest

from nnsight_dsl import LanguageModel

ROOT = Path(__file__).resolve().parents[2]


def samples(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run(sample: str, names: dict[str, Any]) -> None:
    """Run a sample as a script of its own."""
    name = f"<sample {hash(sample)}>"
    linecache.cache[name] = (len(sample), None, sample.splitlines(True), name)
    exec(compile(sample, name, "exec"), names)


def test_the_sample_of_a_sweep_shares_its_prefix(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    (sample,) = samples("sweeps.md")
    run(sample, {"__name__": "sample"})
    assert "<sweep of 6 points, run as shared>" in capsys.readouterr().out


def test_the_table_of_the_page_is_what_the_sample_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = LanguageModel(str(ROOT / "examples" / "models" / "city-facts"))
    names: dict[str, Any] = {"model": model, "__name__": "sample"}
    plan, stop = samples("plans.md")
    run(plan, names)
    printed = capsys.readouterr().out.strip("\n")
    assert printed in (ROOT / "docs" / "plans.md").read_text(encoding="utf-8")
    run(stop, names)
    assert tuple(names["hidden"].shape) == (1, 8, 128)
