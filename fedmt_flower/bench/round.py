"""Whole rounds, run to the end of every task's volume, under budgets that a model chose (§ VI-B)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Final

from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.mixes import BATCH, SCHEMES, probes, seated, synthetic_tasks
from fedmt_flower.bench.planned import problem_of, volumes_in_turn
from fedmt_flower.bench.recorder import shuffled
from fedmt_flower.bench.result import Json, Result
from fedmt_flower.bench.round_table import BEST, FEDMT, TEMPORAL, YIELDING, judge, markdown
from fedmt_flower.device.profile.measurement import Probe
from fedmt_flower.device.profile.profiler import Profiler
from fedmt_flower.planning.search import solve

CLAIM = "budgets chosen by a model make whole rounds as short as the best equal budgets, or shorter"

MIXES: Final = {
    "heavy": ("D121", "V16", "R101"),
    "light": ("R18", "M3", "S2"),
    "hybrid": ("R50", "V16", "M3"),
    "deep and light": ("R101", "D121", "M3"),
}
"""The paper's three settings (§ VI-B), and one of its Table V."""
VOLUMES: Final = {"1:1:1": (1, 1, 1), "1:2:3": (1, 2, 3), "3:2:1": (3, 2, 1), "1:2:6": (1, 2, 6)}
"""Ratios of Dᵢ, in the order of a mix's tasks."""

_COARSE: Final = (20.0, 60.0, 100.0)
_FINE: Final = (20.0, 40.0, 60.0, 80.0, 100.0)
"""Budgets of the exhaustive search: all combinations of the coarse ones, then neighbours among the fine."""
_REFINED: Final = 1
"""Combinations whose neighbours are tried."""


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with."""
    return {
        "mixes": {name: list(models) for name, models in list(MIXES.items())[: 1 if quick else None]},
        "volumes": list(VOLUMES)[-1:] if quick else list(VOLUMES),
        "batch": 8 if quick else BATCH,
        "repeats": 2 if quick else 3,
        # Seconds of a round in turn. The exhaustive search runs shorter ones, of the same volumes' ratio, and
        # the best of it are run whole beside the others.
        "round_s": 0.05 if quick else 2.0,
        "searched_s": 0.03 if quick else 0.5,
        "finalists": 1 if quick else 3,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Run every round of one mix after the other, since all their workers would not fit the memory."""
    mixes = list(bench.settings["mixes"])
    with bench.profiler() as profiler:
        complete = bench.in_parts(profiler, mixes, _Mix)
    bench.bars += judge(bench.recorder.samples, mixes, bench.settings["volumes"])
    return complete


def report(result: Result) -> str:
    """A table of rounds for each mix, in Markdown."""
    return markdown(result)


class _Mix:
    """One mix's rounds."""

    def __init__(self, bench: Bench, profiler: Profiler, name: str) -> None:
        self._bench, self._profiler, self._name = bench, profiler, name
        self._tasks = synthetic_tasks(MIXES[name], bench.settings)

    def run(self, until: float) -> bool:
        """Take what is missing, until that moment; whether nothing is missing then."""
        recorder, ratios = self._bench.recorder, list(self._bench.settings["volumes"])
        if recorder.has_all([f"{self._name} | {ratio}" for ratio in ratios], self._repeats):
            return True
        if recorder.left_s <= 0:
            return False
        # Before the time is shared out: the first round shall not pay for the workers of all.
        self._profiler.workers.prepare([*self._searching(), *itertools.chain(*self._baselines().values())])
        complete = True
        for ratio, end in recorder.shares(ratios, until):
            complete &= self._run_round(f"{self._name} | {ratio}", ratio, end)
        return complete

    @property
    def _repeats(self) -> int:
        return int(self._bench.settings["repeats"])

    def _run_round(self, cell: str, ratio: str, until: float) -> bool:
        """One round's search and repeats, until that moment; whether all were taken."""
        recorder = self._bench.recorder
        if recorder.has_all([cell], self._repeats):
            return True
        if recorder.left_s <= 0:
            return False
        volumes = self._volumes(ratio, "round_s")
        plan = self._plan(cell, volumes)
        if not self._search(cell, self._volumes(ratio, "searched_s"), until):
            return False
        contenders = self._contenders(cell, plan)
        wanted = [probe for placed in contenders.values() for probe in placed]
        self._profiler.workers.dismiss(keep=[*wanted, *self._searching()])  # other volumes had other budgets
        self._profiler.workers.prepare(wanted)
        for _, repeat in recorder.interleave([cell], self._repeats, until):
            self._run_all(cell, repeat, volumes, contenders)
        return recorder.has_all([cell], self._repeats)

    def _volumes(self, ratio: str, seconds: str) -> dict[str, int]:
        """Dᵢ in whole batches: a round in turn takes about as long as the setting named `seconds` says."""
        return volumes_in_turn(
            self._bench,
            self._profiler,
            self._tasks,
            VOLUMES[ratio],
            float(self._bench.settings[seconds]),
        )

    def _baselines(self) -> dict[str, tuple[Probe, ...]]:
        """The tasks in their seats under every scheme that needs no model."""
        return {scheme: probes(self._profiler, self._tasks, SCHEMES[scheme]) for scheme in SCHEMES}

    def _searching(self) -> list[Probe]:
        """The seats of the exhaustive search."""
        return [self._profiler.probe(task, r) for task in self._tasks for r in self._fitting(_FINE)]

    def _plan(self, cell: str, volumes: Mapping[str, int]) -> dict[str, Json]:
        """The budgets that the model chooses, and the task that it expects to end last."""

        def plan() -> dict[str, Json]:
            model, problem = problem_of(self._bench, self._profiler, self._tasks, volumes)
            found = solve(problem, model.model)
            alone = [volumes[task.task] / task.solo_rate for task in problem.tasks]
            return {
                "model": model.basis,
                "budgets": list(found.budgets),
                "makespan_s": sum(volumes.values()) / found.score,
                "longest": list(volumes)[alone.index(max(alone))],
            }

        return self._bench.recorder.take(f"{cell} | plan", plan)

    def _search(self, cell: str, volumes: Mapping[str, int], until: float) -> bool:
        """Run a round of `volumes` under combinations of budgets, once each; whether all were run."""
        coarse = list(itertools.product(self._fitting(_COARSE), repeat=len(self._tasks)))
        self._profiler.workers.prepare(self._searching())
        for refined in (False, True):
            points = self._neighbours(cell) if refined else coarse
            cells = [f"{cell} | {_text(budgets)}" for budgets in points]
            recorder = self._bench.recorder
            for point, repeat in recorder.interleave(cells, 1, until):
                budgets = _budgets(point.rpartition(" | ")[2])
                placed = seated(self._profiler, self._tasks, budgets)
                taken = self._profiler.cover([(p, volumes[p.task.name]) for p in placed])
                recorder.add(point, repeat, {"makespan_s": round(taken.seconds, 4)}, taken.spoiled)
            if not recorder.has_all(cells, 1):
                return False
        return True

    def _fitting(self, budgets: Sequence[float]) -> tuple[float, ...]:
        """Those of `budgets` that are different seats on this device."""
        return tuple(sorted({self._profiler.seat(r).level: r for r in reversed(budgets)}.values()))

    def _searched(self, cell: str) -> dict[tuple[float, ...], float]:
        """The makespans of the combinations that were run, the shortest first."""
        found = {
            _budgets(sample.cell.rpartition(" | ")[2]): sample.values["makespan_s"]
            for sample in self._bench.recorder.samples
            if sample.cell.startswith(f"{cell} | ") and not sample.cell.endswith("plan")
        }
        return dict(sorted(found.items(), key=lambda item: item[1]))

    def _neighbours(self, cell: str) -> list[tuple[float, ...]]:
        """The best of the coarse combinations with one budget moved to the next of the fine ones."""
        fine = self._fitting(_FINE)
        coarse = set(itertools.product(self._fitting(_COARSE), repeat=len(self._tasks)))
        best = [budgets for budgets in self._searched(cell) if budgets in coarse][:_REFINED]
        moved = {
            (*budgets[:i], fine[place], *budgets[i + 1 :])
            for budgets in best
            for i in range(len(budgets))
            for place in (fine.index(budgets[i]) - 1, fine.index(budgets[i]) + 1)
            if 0 <= place < len(fine)
        }
        return sorted(moved - coarse)

    def _contenders(self, cell: str, plan: Mapping[str, Json]) -> dict[str, tuple[Probe, ...]]:
        """What is run whole: the baselines, the plan, the plan with others yielding, the search's best."""
        seat = self._profiler.seat
        found = self._baselines()
        found[FEDMT] = seated(self._profiler, self._tasks, plan["budgets"])
        found[YIELDING] = tuple(
            Probe(task, seat(r, yields=task.name != plan["longest"]))
            for task, r in zip(self._tasks, plan["budgets"], strict=True)
        )
        for budgets in list(self._searched(cell))[: int(self._bench.settings["finalists"])]:
            found[f"{BEST} {_text(budgets)}"] = seated(self._profiler, self._tasks, budgets)
        return found

    def _run_all(
        self,
        cell: str,
        repeat: int,
        volumes: Mapping[str, int],
        contenders: Mapping[str, tuple[Probe, ...]],
    ) -> None:
        """One repeat of every contender, in a new order: never a part of them on another day or machine.

        Contenders whose seats are the same are one round, run once: a plan of equal budgets is neither
        longer nor shorter than those budgets.
        """
        runs: dict[tuple[bool, tuple[str, ...]], list[str]] = {}
        for name, placed in contenders.items():
            seats = tuple(probe.key for probe in placed)
            runs.setdefault((name == TEMPORAL, seats), []).append(name)
        spans: dict[str, float] = {}
        flags: list[str] = []
        for names in shuffled(list(map(tuple, runs.values())), f"{cell} {repeat}"):
            taken = self._profiler.cover(
                [(probe, volumes[probe.task.name]) for probe in contenders[names[0]]],
                in_turn=names[0] == TEMPORAL,
            )
            spans |= dict.fromkeys(names, round(taken.seconds, 4))
            flags += [f"{' = '.join(names)}: {what}" for what in taken.spoiled]
        values: dict[str, Json] = {
            "makespan_s": {name: spans[name] for name in contenders},
            "samples": dict(volumes),
            "levels": {name: [probe.seat.level for probe in placed] for name, placed in contenders.items()},
        }
        self._bench.recorder.add(cell, repeat, values, flags)


def _text(budgets: Sequence[float]) -> str:
    return "-".join(f"{budget:g}" for budget in budgets)


def _budgets(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split("-")))
