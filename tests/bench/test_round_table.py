"""Whole rounds are judged by what was run in one repeat."""

from __future__ import annotations

import pytest

from fedmt_flower.bench.allocation_table import EQUAL
from fedmt_flower.bench.result import Sample
from fedmt_flower.bench.round_table import FEDMT, YIELDING, judge, noise, rounds


def sample(repeat: int, ours: float, best: float) -> Sample:
    spans = dict.fromkeys(EQUAL, 1.1) | {"sharing": 1.0, "temporal": 2.0 * ours, "timeslice": 1.5}
    spans |= {FEDMT: ours, YIELDING: ours, "found 20-60-100": best}
    return Sample(cell="heavy | 1:1:1", repeat=repeat, values={"makespan_s": spans})


def plan() -> Sample:
    values = {"budgets": [20.0, 60.0, 100.0], "makespan_s": 0.8, "model": "a model"}
    return Sample(cell="heavy | 1:1:1 | plan", repeat=0, values=values)


def test_gains_are_parts_of_the_exhaustive_best() -> None:
    samples = [plan(), *(sample(repeat, 0.82, 0.8) for repeat in range(3))]
    (one,) = rounds(samples, ["heavy"], ["1:1:1"])
    assert (one.equal, one.best) == ("sharing", "found 20-60-100")
    longer, faster, gained = judge(samples, ["heavy"], ["1:1:1"])
    assert (longer.value, longer.met) == (0, True)
    assert faster.value == pytest.approx(2.0)
    assert faster.met
    assert gained.value == pytest.approx(0.18 / 0.2)
    assert gained.met


def test_a_longer_round_counts_only_beyond_the_noise() -> None:
    spread = [plan(), *(sample(repeat, ours, 0.9) for repeat, ours in enumerate((0.9, 1.05, 1.2)))]
    assert noise(list(rounds(spread, ["heavy"], ["1:1:1"]))) > 0.05
    assert judge(spread, ["heavy"], ["1:1:1"])[0].met
    worse = [plan(), *(sample(repeat, 1.05, 0.9) for repeat in range(3))]
    assert not judge(worse, ["heavy"], ["1:1:1"])[0].met


def test_what_was_not_run_is_not_judged() -> None:
    assert judge([plan()], ["heavy"], ["1:1:1"]) == []
