"""The tables of combinations of tasks (Tables IV and V), made from their samples alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fedmt_flower.bench.allocation_table import interval
from fedmt_flower.bench.mixes import FAST, PLAIN
from fedmt_flower.bench.result import Json, Sample
from fedmt_flower.bench.shares import Repeats, Together, above_solo, repeats, together
from fedmt_flower.bench.spread import Spread, spread

FEDMT: Final = "fedmt"
TOGETHER: Final = ("isolated", "sharing", FEDMT)
"""The schemes beside the temporal one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A combination with one kind of step.

    Parameters
    ----------
    models, kind
        Which.
    solos
        P_bᵢ in samples/s of each task, by repeat.
    busy
        Per cent of the time in which the device ran any kernel while each task was alone, on average; None
        where that was not told. The rest is what others can take without taking it from a task.
    schemes
        What each scheme came to; only those that were measured.
    budgets
        What fedmt chose, in per cent.
    """

    models: tuple[str, ...]
    kind: str
    solos: Mapping[str, Mapping[int, float]]
    busy: float | None
    schemes: Mapping[str, Together]
    budgets: tuple[float, ...]

    @property
    def name(self) -> str:
        """The models, by their short names."""
        return name_of(self.models)

    def temporal(self, repeat: int) -> float:
        """The temporal rate in samples/s, that of equal time: Σ P_bᵢ/n."""
        return statistics.fmean(solo[repeat] for solo in self.solos.values())

    def factor(self, scheme: str = FEDMT) -> Spread:
        """Σ Pᵢ over the temporal rate; KeyError if the scheme was not measured."""
        return spread(self.schemes[scheme].factor.values())

    @property
    def largest(self) -> Spread:
        """The fastest task alone over the temporal rate: what raw throughput rewards."""
        return spread(
            max(solo[r] for solo in self.solos.values()) / self.temporal(r) for r in self._repeats()
        )

    @property
    def in_turn(self) -> Spread:
        """The temporal rate, over its repeats."""
        return spread(map(self.temporal, self._repeats()))

    def _repeats(self) -> list[int]:
        return sorted(set.intersection(*(set(solo) for solo in self.solos.values())))


def name_of(models: Sequence[str]) -> str:
    """A combination's name in cells and tables."""
    return " + ".join(models)


def alone_cell(kind: str, pool: int, task: str) -> str:
    """The cell of a task alone, among the workers of one pool."""
    return f"{kind} | pool {pool} | {task} alone"


def pools_cell(kind: str) -> str:
    """The cell that says which combinations shared a pool of workers, and so their solo runs."""
    return f"{kind} | pools"


def rows(samples: Sequence[Sample], combinations: Sequence[Sequence[str]], kinds: Sequence[str]) -> list[Row]:
    """A row for each combination and kind of step of which anything was measured beside its solo runs."""
    found = []
    for kind in kinds:
        for models in combinations:
            taken, solos = _measured(samples, kind, models)
            schemes = {s: shared for s, own in taken.items() if (shared := together(own, solos))}
            if schemes:
                plan = next(s.values for s in samples if s.cell == f"{kind} | {name_of(models)} | plan")
                rates = {t: {r: v["rates"][t] for r, v in own.items()} for t, own in solos.items()}
                found.append(
                    Row(
                        models=tuple(models),
                        kind=kind,
                        solos=rates,
                        busy=_busy(solos),
                        schemes=schemes,
                        budgets=tuple(plan["budgets"]),
                    )
                )
    return found


def flagged(
    samples: Sequence[Sample], combinations: Sequence[Sequence[str]], kinds: Sequence[str]
) -> Iterator[str]:
    """Co-run rates above the task's solo rate by more than the solo's own spread, a line each."""
    for kind in kinds:
        for models in combinations:
            taken, solos = _measured(samples, kind, models)
            for scheme, own in taken.items():
                yield from above_solo(f"{kind}, {name_of(models)}, {scheme}", own, solos)


def markdown(table: Sequence[Row], paper: Mapping[str, str], batch: Json) -> str:
    """A table for each kind of step; `paper` is what the paper found, by combination."""
    parts = []
    plain = {row.name: row for row in table if row.kind == PLAIN}
    for kind in dict.fromkeys(row.kind for row in table):
        columns = ["combination", "in turn (samples/s)", "device busy then", "largest alone"]
        columns += [f"{scheme}{what}" for scheme in TOGETHER for what in ("", ": P_f", ": smallest share")]
        columns += ["its budgets (%)"]
        columns += ["fedmt over plain in turn"] if kind == FAST else ["the paper's fedmt"]
        lines = [f"**{kind} steps**, batch {batch}; raw throughput over that in turn", ""]
        lines += [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
        for row in table:
            if row.kind == kind:
                cells = [*_cells(row), _last(row, plain, paper)]
                lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _measured(
    samples: Sequence[Sample], kind: str, models: Sequence[str]
) -> tuple[dict[str, Repeats], dict[str, Repeats]]:
    """The repeats of a combination's co-runs by scheme, and of its tasks alone in the same pool."""
    name, suffix = name_of(models), f".{FAST}" if kind == FAST else ""
    pools: list[list[str]] = next((s.values["pools"] for s in samples if s.cell == pools_cell(kind)), [])
    position = next((place for place, pool in enumerate(pools) if name in pool), -1)
    tasks = [f"{model}{suffix}" for model in models]
    solos = {task: repeats(samples, alone_cell(kind, position, task)) for task in tasks}
    taken = {scheme: repeats(samples, f"{kind} | {name} | {scheme}") for scheme in TOGETHER}
    return taken, solos


def _busy(solos: Mapping[str, Repeats]) -> float | None:
    told = [v.get("utilisation") for own in solos.values() for v in own.values()]
    known = [value for value in told if value is not None]
    return statistics.fmean(known) if known else None


def _cells(row: Row) -> list[str]:
    busy = "–" if row.busy is None else f"{row.busy:.0f} %"
    cells = [row.name, interval(row.in_turn, 0), busy, f"{row.largest.mean:.2f}×"]
    for scheme in TOGETHER:
        found = row.schemes.get(scheme)
        if found is None:
            cells += ["–"] * 3
            continue
        cells += [
            f"{interval(row.factor(scheme), 2)}×",
            interval(spread(found.fairness.values()), 2),
            interval(spread(found.smallest.values()), 2),
        ]
    return [*cells, ", ".join(f"{budget:.0f}" for budget in row.budgets)]


def _last(row: Row, plain: Mapping[str, Row], paper: Mapping[str, str]) -> str:
    if row.kind != FAST:
        return paper.get(row.name, "–")
    base, own = plain.get(row.name), row.schemes.get(FEDMT)
    if base is None or own is None:
        return "–"
    temporal = base.in_turn.mean
    return f"{interval(spread(raw / temporal for raw in own.raw.values()), 2)}×"
