"""Plain and fast training steps, in turn and shared: the two by two of speed."""

from __future__ import annotations

from collections.abc import Mapping

from fedmt_flower.bench.allocation_table import EQUAL, SETTINGS
from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.mixes import BATCH, PLAIN, SCHEMES, by_step, probes, solo, synthetic_tasks
from fedmt_flower.bench.planned import chosen, features, volumes_in_turn
from fedmt_flower.bench.rates import WINDOW, seats_of
from fedmt_flower.bench.recorder import shuffled
from fedmt_flower.bench.result import Json, Result
from fedmt_flower.bench.step_table import CHOSEN, judge, markdown
from fedmt_flower.device.profile.measurement import Probe
from fedmt_flower.device.profile.profiler import Profiler

CLAIM = "fast steps and sharing multiply: together they are several times the eager rate in turn"


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with."""
    return {
        "settings": list(SETTINGS)[: 1 if quick else None],
        "batch": 8 if quick else BATCH,
        "equal": ["sharing"] if quick else ["static 60", "100/(0.5 n)", "sharing"],
        # Seconds of the plain round in turn.
        "round_s": 0.05 if quick else 2.4,
        "repeats": 2 if quick else 4,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Measure one setting after the other, since all their workers would not fit the memory."""
    with bench.profiler(window=WINDOW) as profiler:
        complete = bench.in_parts(profiler, bench.settings["settings"], _Setting)
    bench.bars += judge(bench.recorder.samples, bench.settings["settings"])
    return complete


def report(result: Result) -> str:
    """Two tables for each setting, in Markdown."""
    return markdown(result)


class _Setting:
    """One setting, with either step."""

    def __init__(self, bench: Bench, profiler: Profiler, name: str) -> None:
        self._bench, self._profiler, self._name = bench, profiler, name
        self._tasks = by_step(synthetic_tasks(SETTINGS[name], bench.settings), bench.options.backend)

    def run(self, until: float) -> bool:
        """Take the repeats that are missing, until that moment; whether all are there then."""
        recorder, repeats = self._bench.recorder, int(self._bench.settings["repeats"])
        if recorder.has_all([self._name], repeats):
            return True
        if recorder.left_s <= 0:
            return False
        plain = self._tasks[PLAIN]
        # Equal volumes, such that the plain round in turn takes about its time.
        volume = volumes_in_turn(self._bench, self._profiler, plain, [1] * len(plain))[plain[0].name]
        placed = {kind: self._placed(kind, volume) for kind in self._tasks}
        shared = [p for some in placed.values() for seats in some.values() for p in seats]
        alone = [solo(self._profiler, task) for tasks in self._tasks.values() for task in tasks]
        self._profiler.workers.prepare_only([*shared, *alone])
        recorder.take(f"{self._name} | limit", self._limit)
        for cell, repeat in recorder.interleave([self._name], repeats, until):
            self._take(cell, repeat, placed, volume)
        return recorder.has_all([self._name], repeats)

    def _placed(self, kind: str, volume: int) -> dict[str, tuple[Probe, ...]]:
        """The seats of every scheme: equal budgets, and those chosen for each objective."""
        tasks = self._tasks[kind]
        found = {name: probes(self._profiler, tasks, SCHEMES[name]) for name in self._bench.settings["equal"]}
        for name, objective in CHOSEN.items():
            cell = f"{self._name} | plan | {kind} | {objective}"
            volumes = {task.name: volume for task in tasks}
            found[name] = chosen(self._bench, self._profiler, cell, tasks, volumes, objective)
        return found

    def _limit(self) -> dict[str, Json]:
        """FLOPs of a sample of each task, and the device's peak in the precision of either step."""
        peaks = self._bench.recorder.take("peaks", self._peaks)
        return {
            kind: {
                "flops": [task.flops for task in features(self._bench, self._profiler, tasks)[1].values()],
                "peak": peaks[kind],
            }
            for kind, tasks in self._tasks.items()
        }

    def _peaks(self) -> dict[str, Json]:
        return {
            kind: self._profiler.describe(solo(self._profiler, tasks[0]), peak=True).peak
            for kind, tasks in self._tasks.items()
        }

    def _take(
        self,
        cell: str,
        repeat: int,
        placed: Mapping[str, Mapping[str, tuple[Probe, ...]]],
        volume: int,
    ) -> None:
        """One repeat of everything, in a new order: one sample, never a part of it on another machine."""
        together: dict[tuple[str, str, str], tuple[Probe, ...]] = {}
        for kind, tasks in self._tasks.items():
            alone = tuple(solo(self._profiler, task) for task in tasks)
            together |= {("solo", kind, probe.task.name): (probe,) for probe in alone}
            together |= {("rates", kind, name): seats for name, seats in placed[kind].items()}
            together["round", kind, "in turn"] = alone
            for name in placed[kind].keys() & {*EQUAL, "fedmt"}:
                together["round", kind, name] = placed[kind][name]
        values: dict[str, Json] = {"volume": volume}
        flags: list[str] = []
        # Sorted, since sets are walked in another order by each process.
        for which in shuffled(sorted(together), f"{cell} {repeat}", lambda w: (w[1], seats_of(together[w]))):
            what, _, name = which
            key = " | ".join(which)
            if what == "round":
                run = [(probe, volume) for probe in together[which]]
                span = self._profiler.cover(run, in_turn=name == "in turn")
                values[key], spoiled = round(span.seconds, 4), span.spoiled
            else:
                taken = self._profiler.measure(together[which])
                values[key], spoiled = [round(rate, 1) for rate in taken.rates], taken.spoiled
            flags += [f"{key}: {line}" for line in spoiled]
        self._bench.recorder.add(cell, repeat, values, flags)
