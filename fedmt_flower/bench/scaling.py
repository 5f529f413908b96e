"""Throughput as tasks are added (Table IV)."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.combination_table import FEDMT, TOGETHER, Row, flagged, markdown, name_of, rows
from fedmt_flower.bench.combinations import sweep
from fedmt_flower.bench.mixes import BATCH, FAST, PLAIN
from fedmt_flower.bench.result import Bar, Json, Result
from fedmt_flower.bench.spread import Spread, spread
from fedmt_flower.plots.curves import Curve, curves_png

CLAIM = "the more tasks share the device, the more they gain over turns"

PAPER: Final[Mapping[tuple[str, ...], float]] = {
    ("V16", "R34"): 1.60,
    ("R18", "R34"): 1.55,
    ("R34", "R50"): 1.66,
    ("R50", "R101"): 1.44,
    ("V16", "R18", "M3", "D121"): 2.75,
    ("M3", "R34", "R50", "R101"): 2.74,
    ("V16", "R18", "R34", "R50", "D121"): 2.84,
}
"""FedMT's raw throughput over the temporal one, on a Titan V (Table IV)."""
EIGHT: Final = ("V16", "R18", "R34", "R50", "R101", "M3", "D121", "S2")
_GROWTH: Final = ((2, 4), (2, 5))
"""Numbers of tasks between which the factor and P_f are to grow (the five do not include the four)."""


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with."""
    combinations = [list(models) for models in (*PAPER, EIGHT)]
    return {
        "combinations": combinations[:1] if quick else combinations,
        "steps": [PLAIN, FAST],
        "batch": 8 if quick else BATCH,
        "repeats": 2 if quick else 3,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Measure every combination, with plain steps and then with fast ones; draw the curves."""
    complete = sweep(bench)
    known = bench.settings["combinations"], bench.settings["steps"]
    table = rows(bench.recorder.samples, *known)
    bench.facts["above solo"] = list(flagged(bench.recorder.samples, *known))
    bench.bars += judge(table)
    if table:
        bench.picture(_picture(table))
    return complete


def report(result: Result) -> str:
    """A table for each kind of step, in Markdown."""
    table = rows(result.samples, result.settings["combinations"], result.settings["steps"])
    paper = {name_of(models): f"{factor:.2f}×" for models, factor in PAPER.items()}
    return markdown(table, paper, result.settings["batch"])


def judge(table: Sequence[Row]) -> Iterator[Bar]:
    """The paper's factors with plain steps, and how they and P_f grow with the number of tasks."""
    plain = [row for row in table if row.kind == PLAIN and FEDMT in row.schemes]
    for row in plain:
        if row.models in PAPER:
            bar = f"{row.name}: raw of fedmt over in turn, plain steps"
            yield Bar.at_least(bar, PAPER[row.models], row.factor())
    for fewer, more in _GROWTH:
        for what in ("factor", "fairness"):
            less, full = (_by_repeat(plain, n, FEDMT, what) for n in (fewer, more))
            if both := [full[r] / less[r] for r in less if r in full]:
                called = "P_f" if what == "fairness" else "raw of fedmt over in turn"
                bar = f"{called}, {more} tasks over {fewer} (means of their combinations), plain steps"
                yield Bar.at_least(bar, 1.0, spread(both))


def _by_repeat(table: Sequence[Row], n: int, scheme: str, what: str) -> dict[int, float]:
    """The mean of the combinations of `n` tasks, for each repeat that all of them have."""
    found = [
        getattr(row.schemes[scheme], what) for row in table if len(row.models) == n and scheme in row.schemes
    ]
    common = set.intersection(*map(set, found)) if found else set()
    return {r: statistics.fmean(own[r] for own in found) for r in sorted(common)}


def _picture(table: Sequence[Row]) -> bytes:
    def curve(kind: str, scheme: str, what: str) -> Curve:
        own = [row for row in table if row.kind == kind]
        sizes = sorted({len(row.models) for row in own})
        points: dict[int, Spread] = {
            n: spread(found.values()) for n in sizes if (found := _by_repeat(own, n, scheme, what))
        }
        return Curve(
            label=f"{scheme}, {kind} steps",
            x=list(points),
            y=[point.mean for point in points.values()],
            half=[point.half_width for point in points.values()],
        )

    wanted = [*((PLAIN, scheme) for scheme in TOGETHER), (FAST, FEDMT)]
    panels = {
        "raw throughput over that in turn": [curve(*which, "factor") for which in wanted],
        "fairness throughput P_f (Eq. 2)": [curve(*which, "fairness") for which in wanted],
    }
    return curves_png(panels, x_label="tasks")
