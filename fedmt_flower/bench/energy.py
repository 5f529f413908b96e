"""Joules of whole rounds, by the card's own counter: in turn, under equal budgets, under chosen ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from fedmt_flower.bench.allocation_table import EQUAL, SETTINGS, interval
from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.mixes import (
    BATCH,
    FAST,
    PLAIN,
    SCHEMES,
    by_step,
    probes,
    solo,
    synthetic_tasks,
)
from fedmt_flower.bench.planned import chosen, volumes_in_turn
from fedmt_flower.bench.result import Bar, Json, Result, Sample
from fedmt_flower.bench.shares import Repeats, repeats
from fedmt_flower.bench.spread import spread
from fedmt_flower.device.profile.measurement import Probe
from fedmt_flower.device.profile.profiler import Profiler
from fedmt_flower.domain.allocation import Objective

CLAIM = "a round of tasks that share the device takes fewer joules than the same round in turn"

_TEMPORAL: Final = "in turn"
_STATIC: Final = "best equal"
_FEDMT: Final = "fedmt"
_ROWS: Final = {
    "temporal": (PLAIN, _TEMPORAL),
    "best equal budgets": (PLAIN, _STATIC),
    "fedmt": (PLAIN, _FEDMT),
    "temporal, fast steps": (FAST, _TEMPORAL),
    "fedmt, fast steps": (FAST, _FEDMT),
}
"""What is compared: the kind of step and the scheme."""
_LESS: Final = 0.25


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with."""
    return {
        "settings": list(SETTINGS)[: 1 if quick else None],
        "batch": 8 if quick else BATCH,
        # Seconds of the plain round in turn: the counter moves some ten times a second.
        "round_s": 0.05 if quick else 2.5,
        "repeats": 2 if quick else 4,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Measure one setting after the other, since all their workers would not fit the memory."""
    names = list(bench.settings["settings"])
    with bench.profiler(hertz=50.0) as profiler:
        complete = bench.in_parts(profiler, names, _Setting)
    bench.bars += judge(bench.recorder.samples, names)
    return complete


def report(result: Result) -> str:
    """A table for each setting, in Markdown."""
    tables = []
    for name in result.settings["settings"]:
        taken = _taken(result.samples, name)
        if not taken["temporal"]:
            continue
        volumes = next(iter(taken["temporal"].values()))["samples"]
        lines = [
            f"**{name}: {' + '.join(SETTINGS[name])}**, batch {result.settings['batch']}, "
            f"{next(iter(volumes.values()))} samples of each task a round",
            "",
            "| scheme | round (s) | energy (J) | mean power (W) | less than temporal |",
            "|---|---:|---:|---:|---:|",
        ]
        tables.append("\n".join([*lines, *(_line(row, taken) for row in _ROWS if taken[row])]))
    return "\n\n".join(tables)


def judge(samples: Sequence[Sample], names: Sequence[str]) -> Iterator[Bar]:
    """By which part rounds take fewer joules than the plain one in turn; nothing where none were counted."""
    for name in names:
        taken = _taken(samples, name)
        for row in ("fedmt", "fedmt, fast steps"):
            if less := _less(row, taken):
                bar = f"{name}: part of the joules of the temporal round that {row} does not take"
                yield Bar.at_least(bar, _LESS, spread(less.values()))


class _Setting:
    """One setting's rounds."""

    def __init__(self, bench: Bench, profiler: Profiler, name: str) -> None:
        self._bench, self._profiler, self._name = bench, profiler, name
        self._tasks = by_step(synthetic_tasks(SETTINGS[name], bench.settings), bench.options.backend)

    def run(self, until: float) -> bool:
        """Take what is missing, until that moment; whether nothing is missing then."""
        recorder, times = self._bench.recorder, int(self._bench.settings["repeats"])
        cells = {f"{self._name} | {row}": which for row, which in _ROWS.items()}
        if recorder.has_all(list(cells), times):
            return True
        if recorder.left_s <= 0:
            return False
        plain = self._tasks[PLAIN]
        # Equal volumes, such that the plain round in turn takes about its time.
        volume = volumes_in_turn(self._bench, self._profiler, plain, [1] * len(plain))[plain[0].name]
        placed = {kind: self._placed(kind, volume) for kind in self._tasks}
        best = recorder.take(f"{self._name} | {_STATIC}", lambda: self._best(placed[PLAIN], volume))["scheme"]
        placed[PLAIN][_STATIC] = placed[PLAIN][best]
        wanted = {cell: placed[kind][scheme] for cell, (kind, scheme) in cells.items()}
        self._profiler.workers.prepare_only([probe for together in wanted.values() for probe in together])
        for cell, repeat in recorder.interleave(list(cells), times, until):
            values, spoiled = self._round(wanted[cell], volume, in_turn=cells[cell][1] == _TEMPORAL)
            recorder.add(cell, repeat, values, spoiled)
        return recorder.has_all(list(cells), times)

    def _placed(self, kind: str, volume: int) -> dict[str, tuple[Probe, ...]]:
        """The seats of every scheme."""
        tasks = self._tasks[kind]
        found = {_TEMPORAL: tuple(solo(self._profiler, task) for task in tasks)}
        if kind == PLAIN:
            found |= {scheme: probes(self._profiler, tasks, SCHEMES[scheme]) for scheme in EQUAL}
        volumes = {task.name: volume for task in tasks}
        cell = f"{self._name} | plan | {kind}"
        found[_FEDMT] = chosen(self._bench, self._profiler, cell, tasks, volumes, Objective.MAKESPAN)
        return found

    def _best(self, placed: Mapping[str, tuple[Probe, ...]], volume: int) -> dict[str, Json]:
        """The equal budgets whose round takes the fewest joules; the shortest where none are counted."""
        self._profiler.workers.prepare([probe for scheme in EQUAL for probe in placed[scheme]])
        tried = {scheme: self._round(placed[scheme], volume)[0] for scheme in EQUAL}

        def cost(scheme: str) -> tuple[float, float]:
            return tried[scheme]["energy_j"] or 0.0, tried[scheme]["makespan_s"]

        return {"scheme": min(EQUAL, key=cost), "tried": tried}

    def _round(
        self, together: Sequence[Probe], volume: int, *, in_turn: bool = False
    ) -> tuple[dict[str, Json], tuple[str, ...]]:
        """One round run to the end, and what spoiled attempts at it."""
        taken = self._profiler.cover([(probe, volume) for probe in together], in_turn=in_turn)
        energy = taken.usage.energy_j
        values: dict[str, Json] = {
            "makespan_s": round(taken.seconds, 4),
            "energy_j": None if energy is None else round(energy, 2),
            "clock_mhz": taken.usage.clock_mhz,
            "slowdowns": sorted(taken.usage.slowdowns),
            "levels": {probe.task.name: probe.seat.level for probe in together},
            "samples": {probe.task.name: volume for probe in together},
        }
        return values, taken.spoiled


def _taken(samples: Sequence[Sample], name: str) -> dict[str, Repeats]:
    return {row: repeats(samples, f"{name} | {row}") for row in _ROWS}


def _less(row: str, taken: Mapping[str, Repeats]) -> dict[int, float] | None:
    """By which part of the temporal round's joules `row` takes fewer, by repeat; None where none counted."""
    base = {r: v["energy_j"] for r, v in taken["temporal"].items() if v["energy_j"] is not None}
    parts = {r: 1.0 - v["energy_j"] / base[r] for r, v in taken[row].items() if r in base and v["energy_j"]}
    return parts or None


def _line(row: str, taken: Mapping[str, Repeats]) -> str:
    values = taken[row].values()
    counted = [v for v in values if v["energy_j"] is not None]
    less = _less(row, taken)
    cells = [
        row,
        interval(spread(v["makespan_s"] for v in values), 2),
        interval(spread(v["energy_j"] for v in counted) if counted else None, 0),
        interval(spread(v["energy_j"] / v["makespan_s"] for v in counted) if counted else None, 0),
        "–" if less is None else f"{interval(spread(100.0 * part for part in less.values()), 0)} %",
    ]
    return f"| {' | '.join(cells)} |"
