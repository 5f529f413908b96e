"""The tables and goals of the rounds benchmark, made from its samples alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fedmt_flower.bench.allocation_table import EQUAL, interval
from fedmt_flower.bench.result import Bar, Result, Sample
from fedmt_flower.bench.spread import Spread, spread

TEMPORAL: Final = "temporal"
FEDMT: Final = "fedmt"
YIELDING: Final = "fedmt, others yield"
BEST: Final = "found"
"""What the names of the exhaustive search's best begin with."""
_FASTER: Final = 1.9
_GAINED: Final = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round of one mix: makespans in seconds by contender and repeat, and what was predicted."""

    mix: str
    volumes: str
    seconds: Mapping[str, Sequence[float]]
    budgets: Sequence[float]
    predicted_s: float
    model: str

    @property
    def equal(self) -> str:
        """The equal budgets with the shortest mean makespan."""
        return min(EQUAL, key=self.mean)

    @property
    def best(self) -> str:
        """The shortest of the exhaustive search's best and of the equal budgets, all run again."""
        found = [name for name in self.seconds if name.startswith(BEST)]
        return min([*found, *EQUAL], key=self.mean)

    def mean(self, name: str) -> float:
        """The mean makespan of a contender."""
        return statistics.fmean(self.seconds[name])

    def over(self, slower: str, faster: str) -> Spread:
        """How many times longer `slower` takes than `faster`, repeat by repeat."""
        pairs = zip(self.seconds[slower], self.seconds[faster], strict=True)
        return spread(slow / fast for slow, fast in pairs)


def rounds(samples: Sequence[Sample], mixes: Sequence[str], volumes: Sequence[str]) -> Iterator[Round]:
    """Every round that was run whole."""
    for mix in mixes:
        for ratio in volumes:
            cell = f"{mix} | {ratio}"
            taken = [s.values["makespan_s"] for s in samples if s.cell == cell]
            plan = next((s.values for s in samples if s.cell == f"{cell} | plan"), None)
            if taken and plan is not None:
                yield Round(
                    mix=mix,
                    volumes=ratio,
                    seconds={name: [spans[name] for spans in taken] for name in taken[0]},
                    budgets=plan["budgets"],
                    predicted_s=plan["makespan_s"],
                    model=plan["model"],
                )


def noise(run: Sequence[Round]) -> float:
    """How far two means of one round's makespans differ by chance, 95 % of the time, as a fraction.

    From the repeats of all contenders of all rounds together: a few of one say little.
    """
    every = [values for one in run for values in one.seconds.values() if len(values) > 1]
    if not every:
        return math.inf
    variance = statistics.fmean(
        statistics.variance(values) / statistics.fmean(values) ** 2 for values in every
    )
    return 1.96 * math.sqrt(2.0 * variance / statistics.fmean(map(len, every)))


def judge(samples: Sequence[Sample], mixes: Sequence[str], volumes: Sequence[str]) -> list[Bar]:
    """The goals of § VI-B's rounds; none if no round was run whole."""
    run = list(rounds(samples, mixes, volumes))
    if not run:
        return []
    chance = noise(run)
    longer = [one for one in run if one.mean(FEDMT) > one.mean(one.equal) * (1.0 + chance)]
    least = min(run, key=lambda one: one.over(TEMPORAL, FEDMT).mean)
    repeats = min(len(one.seconds[FEDMT]) for one in run)
    bars = [
        Bar.counted(
            f"of {len(run)} rounds, those longer than with the best equal budgets by more than the noise "
            f"({chance:.1%})",
            0,
            len(longer),
            not longer,
        ),
        Bar.at_least(
            f"least of all rounds ({least.mix}, {least.volumes}): times faster than in turn",
            _FASTER,
            least.over(TEMPORAL, FEDMT),
        ),
    ]
    gains = [(_gain(run, FEDMT, r), _gain(run, "best", r)) for r in range(repeats)]
    if all(best > 0 for _, best in gains):
        bars.append(
            Bar.at_least(
                "mean gain over the best equal budgets, as a part of the exhaustive best's",
                _GAINED,
                spread(ours / best for ours, best in gains),
            )
        )
    return bars


def markdown(result: Result) -> str:
    """A table for each mix; makespans in seconds, intervals are 95 % confidence."""
    settings, tables = result.settings, []
    for mix, models in settings["mixes"].items():
        run = list(rounds(result.samples, [mix], settings["volumes"]))
        if not run:
            continue
        lines = [
            f"**{mix}: {' + '.join(models)}**, batch {settings['batch']}",
            "",
            "| volumes | in turn (s) | time-sliced (s) | 100 each (s) | best equal (s) | fedmt (s) | "
            "predicted (s) | others yield (s) | best found (s) | fedmt over in turn | over best equal | "
            "best found over best equal |",
            "|---|---:|---:|---:|---|---|---:|---:|---|---:|---:|---:|",
        ]
        lines += map(_line, run)
        tables.append("\n".join(lines))
    every = list(rounds(result.samples, list(settings["mixes"]), settings["volumes"]))
    return "\n\n".join([*tables, _verdict(every)]) if every else ""


def _gain(run: Sequence[Round], name: str, repeat: int) -> float:
    """By which part `name` is shorter than the best equal budgets, on average over the rounds."""
    parts = []
    for one in run:
        contender = one.best if name == "best" else name
        parts.append(1.0 - one.seconds[contender][repeat] / one.seconds[one.equal][repeat])
    return statistics.fmean(parts)


def _line(one: Round) -> str:
    budgets = ", ".join(f"{budget:.0f}" for budget in one.budgets)
    best = one.best.removeprefix(f"{BEST} ").replace("-", ", ")
    cells = [
        one.volumes,
        *(interval(spread(one.seconds[name]), 2) for name in (TEMPORAL, "timeslice", "sharing")),
        f"{interval(spread(one.seconds[one.equal]), 2)} ({one.equal})",
        f"{interval(spread(one.seconds[FEDMT]), 2)} ({budgets})",
        f"{one.predicted_s:.2f}",
        interval(spread(one.seconds[YIELDING]), 2),
        f"{interval(spread(one.seconds[one.best]), 2)} ({best})",
        interval(one.over(TEMPORAL, FEDMT), 2),
        interval(one.over(one.equal, FEDMT), 2),
        interval(one.over(one.equal, one.best), 2),
    ]
    return f"| {' | '.join(cells)} |"


def _verdict(run: Sequence[Round]) -> str:
    """When budgets matter, in a sentence."""
    chance = noise(run)
    matter = [one for one in run if one.mean("sharing") > one.mean(FEDMT) * (1.0 + chance)]
    against = [one for one in run if one.mean(FEDMT) > one.mean("sharing") * (1.0 + chance)]
    yielding = statistics.fmean(one.mean(FEDMT) / one.mean(YIELDING) for one in run)
    error = statistics.median(abs(one.predicted_s / one.mean(FEDMT) - 1.0) for one in run)
    return (
        f"Chosen budgets beat 100 % each by more than the noise ({chance:.1%}) in {len(matter)} of "
        f"{len(run)} rounds and lost to it in {len(against)}; in the others 100 % each is as good. With the "
        f"others yielding to the longest task a round is {yielding:.2f} times as fast. The predicted "
        f"makespan is off by {error:.1%} (median; {', '.join(sorted({one.model for one in run}))})."
    )
