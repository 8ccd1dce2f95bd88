"""What a run of the benchmarks says of its figures."""

from __future__ import annotations

import json

import pytest

from benchmarks import report
from benchmarks.results import Figure, Row, Target, median_figure, ratio_figure


def row(value: float, spread: float, at_most: float = 1.0) -> Row:
    figures = {"ours / hooks": Figure(value, spread)}
    return Row("a question", "a case", figures, targets=[Target("ours / hooks", at_most)])


@pytest.mark.parametrize(
    ("value", "spread", "verdict", "is_certain"),
    [
        (0.9, 0.0, "met", False),
        (1.0, 0.0, "met", False),
        (1.1, 0.2, "missed", False),
        (1.3, 0.2, "missed", True),
    ],
)
def test_a_target_is_missed_for_certain_beyond_the_spread(value, spread, verdict, is_certain):
    one = row(value, spread)
    assert one.verdict(one.targets[0]) == verdict
    assert one.is_missed_for_certain() is is_certain


def test_what_was_not_measured_misses_nothing():
    one = Row("a question", "a case", {}, targets=[Target("ours", 1.0)])
    assert one.verdict(one.targets[0]) == "not measured"
    assert not one.is_missed_for_certain()


def test_a_figure_is_the_median_and_times_that_differ_spread():
    assert median_figure([5.0, 1.0, 3.0]).value == 3.0
    assert median_figure([4.0] * 9).spread == 0.0
    assert median_figure([1.0, 9.0] * 10).spread > 1.0


def test_a_ratio_is_one_of_medians():
    assert ratio_figure([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]).value == 2.0


def test_a_run_draws_the_same_spread_again():
    times = [float(i % 7) for i in range(30)]
    assert median_figure(times) == median_figure(times)


def test_a_page_has_each_row_with_its_verdict_and_a_dash_with_its_reason():
    rows = [row(0.5, 0.1), Row("a question", "another", {}, reasons={"peer": "cannot"})]
    page = report.page(rows, "a machine", None)
    assert "Measured with a machine." in page
    assert "| a case | 0.50 ± 0.10 | – | ours / hooks ≤ 1: met |" in page
    assert "| another | – | – |  |" in page
    assert "- peer, another: cannot" in page


def test_the_figures_are_written_as_json():
    found = json.loads(report.as_json([row(1.3, 0.2)], "a machine"))
    assert found["machine"] == "a machine"
    (one,) = found["rows"]
    assert one["figures"] == {"ours / hooks": {"median": 1.3, "spread": 0.2}}
    assert one["targets"] == [{"figure": "ours / hooks", "at_most": 1.0, "verdict": "missed"}]
