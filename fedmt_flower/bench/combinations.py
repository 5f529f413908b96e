"""Combinations of tasks under the schemes of Tables IV and V, with plain or fast steps: their rates."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence, Set
from typing import Final

from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.combination_table import FEDMT, TOGETHER, alone_cell, name_of, pools_cell
from fedmt_flower.bench.mixes import SCHEMES, by_step, probes, solo, synthetic_tasks
from fedmt_flower.bench.planned import chosen, features
from fedmt_flower.bench.rates import WINDOW, Cells, take_rates
from fedmt_flower.bench.result import Json
from fedmt_flower.device.profile.measurement import Probe
from fedmt_flower.device.profile.profiler import Profiler
from fedmt_flower.domain.allocation import Objective

_OBJECTIVE: Final = Objective.RAW
"""What the paper's tables compare: images a second."""


def sweep(bench: Bench) -> bool:
    """Measure the combinations of the settings with each kind of step; whether all is there then."""
    with bench.profiler(window=WINDOW) as profiler:
        return bench.in_parts(profiler, bench.settings["steps"], _Sweep)


def packed(needs: Mapping[str, Set[str]], most: int) -> list[list[str]]:
    """The names in their order, in groups that need at most `most` different things (one may need more).

    Parameters
    ----------
    needs
        What each name needs; a group needs it once.
    """
    groups: list[list[str]] = []
    held: set[str] = set()
    for name, needed in needs.items():
        if not groups or len(held | needed) > most:
            groups.append([])
            held = set()
        groups[-1].append(name)
        held |= needed
    return groups


class _Sweep:
    """One kind of step."""

    def __init__(self, bench: Bench, profiler: Profiler, kind: str) -> None:
        self._bench, self._profiler, self._kind = bench, profiler, kind
        self._combinations = {name_of(models): models for models in bench.settings["combinations"]}
        models = tuple(dict.fromkeys(model for some in self._combinations.values() for model in some))
        tasks = synthetic_tasks(models, bench.settings)
        self._tasks = dict(zip(models, by_step(tasks, bench.options.backend)[kind], strict=True))

    def run(self, until: float) -> bool:
        """Take what is missing, until that moment; whether nothing is missing then.

        A device has room for so many workers: combinations come in as few pools as that allows, each with
        its own solo runs.
        """
        recorder, complete = self._bench.recorder, True
        if recorder.left_s <= 0:
            return False
        features(self._bench, self._profiler, tuple(self._tasks.values()))
        placed = {name: self._placed(name) for name in self._combinations}
        pools = recorder.take(pools_cell(self._kind), lambda: self._pools(placed))["pools"]
        cells = [self._cells(position, pool, placed) for position, pool in enumerate(pools)]
        for position, own in enumerate(cells):
            self._profiler.workers.dismiss(keep=[probe for together in own.values() for probe in together])
            part, now = len(own) / sum(map(len, cells[position:])), time.monotonic()
            complete &= take_rates(self._bench, self._profiler, own, now + part * (until - now))
        return complete

    def _placed(self, name: str) -> dict[str, tuple[Probe, ...]]:
        """The seats of one combination's tasks under every scheme."""
        tasks = tuple(self._tasks[model] for model in self._combinations[name])
        found: dict[str, tuple[Probe, ...]] = {
            scheme: probes(self._profiler, tasks, SCHEMES[scheme]) for scheme in TOGETHER if scheme in SCHEMES
        }
        equal = {task.name: 1 for task in tasks}
        cell = f"{self._kind} | {name} | plan"
        found[FEDMT] = chosen(self._bench, self._profiler, cell, tasks, equal, _OBJECTIVE)
        return found

    def _pools(self, placed: Mapping[str, Mapping[str, Sequence[Probe]]]) -> dict[str, Json]:
        needs = {
            name: {probe.key for together in (*schemes.values(), self._alone(name)) for probe in together}
            for name, schemes in placed.items()
        }
        return {"pools": packed(needs, self._profiler.workers.room)}

    def _cells(
        self, position: int, pool: Sequence[str], placed: Mapping[str, Mapping[str, Sequence[Probe]]]
    ) -> Cells:
        """What one pool measures: its tasks alone, and its combinations under every scheme."""
        alone = {
            alone_cell(self._kind, position, probe.task.name): (probe,)
            for name in pool
            for probe in self._alone(name)
        }
        return alone | {
            f"{self._kind} | {name} | {scheme}": together
            for name in pool
            for scheme, together in placed[name].items()
        }

    def _alone(self, name: str) -> tuple[Probe, ...]:
        return tuple(solo(self._profiler, self._tasks[model]) for model in self._combinations[name])
