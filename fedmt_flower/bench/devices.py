"""The same combinations on several kinds of GPU (Table V)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from fedmt_flower.bench.allocation_table import interval
from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.combination_table import FEDMT, Row, flagged, markdown, name_of, rows
from fedmt_flower.bench.combinations import sweep
from fedmt_flower.bench.mixes import BATCH, PLAIN
from fedmt_flower.bench.result import Bar, Json, Result
from fedmt_flower.bench.spread import Spread, spread

CLAIM = "what sharing gains over turns is much the same on one kind of GPU and on another"

PAPER: Final[Mapping[tuple[str, ...], tuple[float, float]]] = {
    ("AX", "V16", "R18"): (2.07, 2.12),
    ("D121", "V16", "R34"): (2.22, 2.32),
    ("R50", "V16", "M3"): (2.25, 2.21),
    ("R101", "D121", "M3"): (2.30, 2.27),
    ("R34", "R50", "R101"): (2.10, 2.15),
}
"""FedMT's raw throughput over the temporal one, on an RTX 3080 and on a 3090 (Table V)."""
_APART: Final = 0.10


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with."""
    return {
        "combinations": [list(models) for models in PAPER][: 1 if quick else None],
        "steps": [PLAIN],
        "batch": 8 if quick else BATCH,
        "repeats": 2 if quick else 5,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Measure every combination on this device."""
    complete = sweep(bench)
    known = bench.settings["combinations"], bench.settings["steps"]
    bench.facts["above solo"] = list(flagged(bench.recorder.samples, *known))
    bench.bars += judge(rows(bench.recorder.samples, *known))
    return complete


def report(result: Result) -> str:
    """This device's table, in Markdown."""
    paper = {name_of(models): " and ".join(f"{f:.2f}×" for f in found) for models, found in PAPER.items()}
    return markdown(_rows(result), paper, result.settings["batch"])


def judge(table: Sequence[Row]) -> Iterator[Bar]:
    """The higher of the paper's two factors, for each combination."""
    for row in table:
        if row.models in PAPER and FEDMT in row.schemes:
            goal = max(PAPER[row.models])
            yield Bar.at_least(f"{row.name}: raw of fedmt over in turn", goal, row.factor())


def compare(results: Sequence[Result]) -> tuple[str, list[Bar]]:
    """The factors of two devices side by side, and whether they are near each other."""
    one, two = ({row.name: row for row in _rows(result)} for result in results)
    kinds = [result.machine.kind.upper() for result in results]
    lines = [
        f"| combination | {' | '.join(kinds)} | the second over the first | apart by | the paper's two |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    bars = []
    for models, paper in PAPER.items():
        name = name_of(models)
        if not all(name in found and FEDMT in found[name].schemes for found in (one, two)):
            continue
        first, second = one[name].factor(), two[name].factor()
        ratio = _ratio(one[name], two[name])
        own = " and ".join(f"{factor:.2f}×" for factor in paper)
        lines.append(
            f"| {name} | {interval(first, 2)}× | {interval(second, 2)}× | {interval(ratio, 2)} | "
            f"{abs(ratio.mean - 1.0):.1%} | {own} |"
        )
        low, high = ratio.ci95
        bars.append(
            Bar(
                name=f"{name}: {kinds[1]}'s factor over {kinds[0]}'s, within {_APART:.0%}",
                goal=1.0,
                value=ratio.mean,
                ci95=ratio.ci95,
                met=low >= 1.0 - _APART and high <= 1.0 + _APART,
            )
        )
    return "\n".join(lines), bars


def _ratio(one: Row, two: Row) -> Spread:
    """The second's factor over the first's; repeats of two machines are paired as they come."""
    pairs = zip(two.schemes[FEDMT].factor.values(), one.schemes[FEDMT].factor.values(), strict=False)
    return spread(later / earlier for later, earlier in pairs)


def _rows(result: Result) -> list[Row]:
    return rows(result.samples, result.settings["combinations"], result.settings["steps"])
