"""Joules of rounds, from made-up ones."""

from __future__ import annotations

import pytest
from records import made_up

from fedmt_flower.bench import energy
from fedmt_flower.bench.mixes import volumes_of
from fedmt_flower.bench.result import Sample

JOULES = {
    "temporal": (1000.0, 2.5),
    "best equal budgets": (900.0, 1.5),
    "fedmt": (800.0, 1.5),
    "temporal, fast steps": (500.0, 1.0),
    "fedmt, fast steps": (400.0, 0.8),
}


def samples(part: float = 1.0, counted: bool = True) -> list[Sample]:
    """Three repeats, each of a warmer card; fedmt's rounds take `part` of the joules above."""
    return [
        Sample(
            cell=f"heavy | {row}",
            repeat=repeat,
            values={
                "makespan_s": seconds,
                "energy_j": joules * (1 + 0.2 * repeat) * (part if row == "fedmt" else 1)
                if counted
                else None,
                "samples": {"D121": 1024},
            },
        )
        for repeat in range(3)
        for row, (joules, seconds) in JOULES.items()
    ]


@pytest.mark.parametrize(("part", "met"), [(1.0, False), (0.9, True)])
def test_joules_are_compared_repeat_by_repeat(part: float, met: bool) -> None:
    ours, fast = energy.judge(samples(part), ["heavy", "light"])
    assert ours.value == pytest.approx(1.0 - 0.8 * part)
    assert ours.met == met
    assert fast.value == pytest.approx(0.6)
    assert fast.met


def test_what_counts_no_joules_is_not_judged() -> None:
    taken = samples(counted=False)
    assert list(energy.judge(taken, ["heavy"])) == []
    assert "| fedmt | 1.50 | – | – | – |" in table(taken)


def test_a_row_tells_watts_and_what_is_saved() -> None:
    lines = table(samples()).splitlines()
    (fedmt,) = [line for line in lines if line.startswith("| fedmt |")]
    # 960 J in 1.5 s on average; 20 % less than in turn, each time.
    assert fedmt.startswith("| fedmt | 1.50 | 960 ± ")
    assert "| 640 ± " in fedmt
    assert fedmt.endswith(" | 20 % |")


def test_a_round_in_turn_takes_about_its_time() -> None:
    volumes = volumes_of(2.0, [1000.0, 4000.0], [1, 2], 100)
    assert volumes == (1300, 2600)
    assert volumes_of(0.001, [1000.0, 4000.0], [1, 2], 100) == (100, 200)


def table(taken: list[Sample]) -> str:
    return energy.report(made_up("energy", energy.settings(quick=False), taken))
