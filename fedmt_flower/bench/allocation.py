"""The allocation schemes on the paper's three settings (Fig. 9)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from fedmt_flower.bench.allocation_table import (
    SETTINGS,
    VOLUMES,
    above_solo,
    fewest_repeats,
    markdown,
    rate_gain,
    round_gain,
    rows,
)
from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.mixes import BATCH, SCHEMES, probes, solo, synthetic_tasks
from fedmt_flower.bench.planned import chosen, volumes_in_turn
from fedmt_flower.bench.rates import WINDOW, seats_of, take_rate, usage_values
from fedmt_flower.bench.result import Bar, Json, Result
from fedmt_flower.device.profile.measurement import Probe
from fedmt_flower.device.profile.profiler import Profiler
from fedmt_flower.domain.allocation import Objective

CLAIM = "tasks that share the GPU under budgets train faster together than in turn"

REPEATS = 5
CHOSEN: Final = {
    "fedmt": Objective.MAKESPAN,
    "fedmt, raw": Objective.RAW,
    "fedmt, fairness": Objective.FAIRNESS,
}
"""Budgets chosen by a model, by objective: each row is one plan, the first one's for equal volumes."""
_RAW_GAINS: Final = {"heavy": 1.2, "hybrid": 1.1}
"""Raw throughput under the raw objective over that of the best equal budgets (§ VI-B)."""
_JUDGED = "static 60"
"""The paper's moderate sharing (§ VI-B)."""
_ROUND_S = 1.0
"""Seconds that a round takes in turn: its volumes are chosen for that."""


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with."""
    return {
        "settings": {name: list(models) for name, models in SETTINGS.items()},
        "batch": 8 if quick else BATCH,
        "repeats": 2 if quick else REPEATS,
        "volumes": list(VOLUMES),
        "chosen": list(CHOSEN),
        "round_s": 0.05 if quick else _ROUND_S,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Take every sample, one setting after the other, since all their workers would not fit the memory."""
    names = list(SETTINGS)[:1] if bench.options.quick else list(SETTINGS)
    with bench.profiler(window=WINDOW) as profiler:
        complete = bench.in_parts(profiler, names, _Setting)
    bench.facts["above solo"] = [line for name in names for line in above_solo(bench.recorder.samples, name)]
    for name in names:
        for row in rows(bench.recorder.samples, name):
            if row.scheme == _JUDGED:
                bench.bars.append(Bar.at_least(f"{name}: P_f of {_JUDGED}, in turn 1", 1.0, row.fairness))
        for volume in VOLUMES:
            gain = round_gain(bench.recorder.samples, name, volume, _JUDGED)
            if gain is not None:
                bar = f"{name}, round {volume}: times faster with {_JUDGED} than in turn"
                bench.bars.append(Bar.at_least(bar, 1.0, gain))
        fewest = fewest_repeats(bench.recorder.samples, name)
        bench.bars += _chosen_bars(bench, name)
        bench.bars.append(
            Bar.counted(f"{name}: repeats of every row", REPEATS, fewest, met=complete and fewest >= REPEATS)
        )
    return complete


def _chosen_bars(bench: Bench, name: str) -> Iterator[Bar]:
    """How chosen budgets do beside the best equal ones, by the objective for which they were chosen."""
    if name in _RAW_GAINS and (gain := rate_gain(bench.recorder.samples, name, "fedmt, raw", "raw")):
        bar = f"{name}: raw of the raw objective over the best equal budgets'"
        yield Bar.at_least(bar, _RAW_GAINS[name], gain)
    if gain := rate_gain(bench.recorder.samples, name, "fedmt, fairness", "fairness"):
        bar = f"{name}: P_f of the fairness objective over the best equal budgets', within the noise"
        yield Bar(name=bar, goal=1.0, value=gain.mean, ci95=gain.ci95, met=gain.ci95[1] >= 1.0)


def report(result: Result) -> str:
    """The tables of all settings, in Markdown."""
    return markdown(result)


class _Setting:
    """One setting's cells."""

    def __init__(self, bench: Bench, profiler: Profiler, name: str) -> None:
        self._bench = bench
        self._profiler = profiler
        self._name = name
        self._tasks = synthetic_tasks(SETTINGS[name], bench.settings)
        self._placed = {scheme: probes(profiler, self._tasks, SCHEMES[scheme]) for scheme in SCHEMES}

    def run(self, until: float) -> bool:
        equal = {task.name: int(self._bench.settings["batch"]) for task in self._tasks}
        for scheme, objective in CHOSEN.items():
            cell = f"{self._name} | plan | {objective}"
            self._placed[scheme] = chosen(self._bench, self._profiler, cell, self._tasks, equal, objective)
        solos = [f"{self._name} | solo | {task.name}" for task in self._tasks]
        rates = [f"{self._name} | rates | {scheme}" for scheme in self._placed if scheme != "temporal"]
        rounds = [
            f"{self._name} | round {volume} | {scheme}" for scheme in self._placed for volume in VOLUMES
        ]
        cells, repeats = solos + rates + rounds, int(self._bench.settings["repeats"])
        recorder = self._bench.recorder
        if recorder.has_all(cells, repeats):
            return True
        warm = self._profiler.workers.prepare_only(
            [probe for placed in self._placed.values() for probe in placed]
        )
        self._bench.facts.setdefault("numerics", next(iter(warm.values())).numerics if warm else {})
        covered = {volume: self._volumes(volume) for volume in VOLUMES}
        together = {cell: self._together(cell) for cell in cells}
        for cell, repeat in recorder.interleave(cells, repeats, until, alike=lambda c: seats_of(together[c])):
            _, kind, which = cell.split(" | ")
            if kind in ("solo", "rates"):
                take_rate(self._bench, self._profiler, cell, repeat, together[cell])
            else:
                self._take_round(cell, repeat, which, covered[kind.removeprefix("round ")])
        return recorder.has_all(cells, repeats)

    def _together(self, cell: str) -> tuple[Probe, ...]:
        """The tasks of a cell in their seats."""
        _, kind, which = cell.split(" | ")
        if kind != "solo":
            return self._placed[which]
        return tuple(solo(self._profiler, task) for task in self._tasks if task.name == which)

    def _take_round(self, cell: str, repeat: int, scheme: str, samples: Mapping[str, int]) -> None:
        placed = self._placed[scheme]
        in_turn = scheme == "temporal"
        taken = self._profiler.cover([(p, samples[p.task.name]) for p in placed], in_turn=in_turn)
        values: dict[str, Json] = {
            "makespan_s": round(taken.seconds, 4),
            "ends_s": {p.task.name: round(end, 4) for p, end in zip(placed, taken.ends, strict=True)},
            "samples": dict(samples),
        }
        self._bench.recorder.add(cell, repeat, values | usage_values(taken.usage), taken.spoiled)

    def _volumes(self, ratio: str) -> dict[str, int]:
        """Dᵢ in whole batches, such that the round in turn takes about its time; the same on resuming."""
        return self._bench.recorder.take(
            f"{self._name} | volumes | {ratio}",
            lambda: volumes_in_turn(self._bench, self._profiler, self._tasks, VOLUMES[ratio]),
        )
