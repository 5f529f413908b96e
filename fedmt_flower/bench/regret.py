"""How near the chosen batch sizes and budgets come to the best of many that were tried (§ VI-H)."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.mixes import BATCH, solo, synthetic_tasks
from fedmt_flower.bench.models import choose
from fedmt_flower.bench.planned import features
from fedmt_flower.bench.rates import WINDOW
from fedmt_flower.bench.recorder import shuffled
from fedmt_flower.bench.regret_table import Trial, judge, markdown, trials
from fedmt_flower.bench.result import Json, Result
from fedmt_flower.device.profile.measurement import Probe, Window
from fedmt_flower.device.profile.profiler import Profiler
from fedmt_flower.device.profile.survey import device_steps
from fedmt_flower.domain.allocation import Objective
from fedmt_flower.domain.profile import CoRunSample
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.budgets import CAUTION, BudgetProblem
from fedmt_flower.planning.search import solve
from fedmt_flower.plots.fronts import Cloud, fronts_png

CLAIM = "what the model chooses is as good as the best of many schedules that were tried"

_FREE: Final = (32, 64, 128, 256)
_PERCENTAGES: Final = tuple(float(percentage) for percentage in range(20, 101, 5))
_PLACES: Final = {2: 12, 3: 6, 4: 5}
"""Warm workers of each task by the number of tasks: their combinations are the schedules."""
_OBJECTIVES: Final = (Objective.RAW, Objective.FAIRNESS)
_LOOK: Final = Window(settle_s=0.05, length_s=0.2, longest_s=2.0)
"""How a schedule is first tried; the best of them are measured again, and longer."""
_TRYING: Final = 0.6
"""Part of a setting's time in which schedules are tried; the rest is for ours beside the best of them."""
_ENOUGH: Final = 0.6
"""Part of the schedules that will do where the time for trying them is up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Tasks with the batch sizes that they may have, and what a model fitted for it must not have seen.

    `unseen` names models: those of the whole mix leave out the samples of just that mix, one model leaves
    out all samples with it.
    """

    models: tuple[str, ...]
    batches: tuple[tuple[int, ...], ...]
    unseen: tuple[str, ...] = ()

    def keeps(self, sample: CoRunSample) -> bool:
        """Whether a model that plans for the setting may be fitted to `sample`."""
        names = {task.task for task in sample.tasks}
        return names.isdisjoint(self.unseen) if len(self.unseen) == 1 else names != set(self.unseen)


SETTINGS: Final = {
    "III.1": Setting(models=("R50", "V16"), batches=((128,), (32,)), unseen=("R50", "V16")),
    "III.2": Setting(models=("R50", "V16", "M3", "D121"), batches=((128,),) * 4),
    "III.3": Setting(models=("R50", "M3"), batches=((128,), (512,)), unseen=("R50", "M3")),
    "III.4": Setting(models=("R50", "V16", "M3", "D121"), batches=((32,),) * 4),
    "heavy": Setting(models=("D121", "V16", "R101"), batches=(_FREE,) * 3, unseen=("D121", "V16", "R101")),
    "light": Setting(models=("R18", "M3", "S2"), batches=(_FREE,) * 3, unseen=("R18", "M3", "S2")),
    "hybrid": Setting(models=("R50", "V16", "M3"), batches=(_FREE,) * 3, unseen=("M3",)),
    "shallow": Setting(models=("R34", "AX", "S2"), batches=(_FREE,) * 3, unseen=("R34",)),
}
"""Table III's four, with its batch sizes, and four whose batch sizes are free."""

Place = tuple[int, float]
"""A batch size (samples) and a budget (%)."""
Schedule = tuple[Place, ...]


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with."""
    names = ["III.1"] if quick else list(SETTINGS)
    return {
        "settings": {
            name: {
                "models": list(SETTINGS[name].models),
                "batches": [list(batches) for batches in _batches(name, quick)],
                "unseen": list(SETTINGS[name].unseen),
            }
            for name in names
        },
        "batch": 8 if quick else BATCH,
        "schedules": 5 if quick else 125,
        "top": 2 if quick else 5,
        "repeats": 2 if quick else 5,
        # Whether what this kind of device has shown is left out too.
        "elsewhere": False,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Try every setting's schedules, one setting after the other; then ours beside the best of them."""
    names = list(bench.settings["settings"])
    if not (bench.options.profiles or bench.options.quick):
        raise ConfigError(
            f"{bench.name}: got no --profile, expected those of fedmt profile: each setting's model is "
            "fitted without the samples that it must not have seen"
        )
    with bench.profiler(window=WINDOW) as profiler:
        complete = bench.in_parts(profiler, names, _Study)
    found = list(trials(bench.recorder.samples, names))
    if found:
        bench.picture(_picture(found))
    bench.bars += judge(found)
    return complete


def report(result: Result) -> str:
    """A row for each setting, in Markdown."""
    return markdown(result)


class _Study:
    """One setting."""

    def __init__(self, bench: Bench, profiler: Profiler, name: str) -> None:
        self._bench, self._profiler, self._name = bench, profiler, name
        self._batches = _batches(name, bench.options.quick)
        self._tasks = synthetic_tasks(SETTINGS[name].models, bench.settings)

    def run(self, until: float) -> bool:
        """Take what is missing, until that moment; whether nothing is missing then."""
        recorder, repeats = self._bench.recorder, int(self._bench.settings["repeats"])
        final = f"{self._name} | final"
        if recorder.has_all([final], repeats):
            return True
        if recorder.left_s <= 0:
            return False
        chosen = recorder.take(f"{self._name} | chosen", self._choose)
        tried = {f"{self._name} | {text(schedule)}": schedule for schedule in self._schedules()}
        if not self._try(tried, until):
            return False
        best = recorder.take(f"{self._name} | best", lambda: {"tried": self._best()})["tried"]
        contenders = list(dict.fromkeys(map(parse, [*chosen["ours"].values(), *best])))
        self._profiler.workers.prepare_only(
            [*self._needed(contenders), *(solo(self._profiler, task) for task in self._tasks)]
        )
        for cell, repeat in recorder.interleave([final], repeats, until):
            self._run_all(cell, repeat, contenders)
        return recorder.has_all([final], repeats)

    def _try(self, tried: Mapping[str, Schedule], until: float) -> bool:
        """Take a first look at the schedules; whether so many had one that the best can be told.

        Once these are told no more are tried: they would be compared with those only.
        """
        recorder, window = self._bench.recorder, None if self._bench.options.quick else _LOOK
        cells = list(tried)
        if recorder.find(f"{self._name} | best") is not None or recorder.has_all(cells, 1):
            return True
        self._profiler.workers.prepare_only(self._needed(list(tried.values())))
        now = time.monotonic()
        end = now + _TRYING * (until - now)
        # Those that share their first task's worker one after the other, since one that rested must be woken;
        # in two turns, so that those for which the time does not do are not all of one worker.
        for turn in (cells[::2], cells[1::2]):
            for cell, repeat in recorder.interleave(turn, 1, end, alike=lambda cell: tried[cell][0]):
                taken = self._profiler.measure(self._probes(tried[cell]), window)
                recorder.add(cell, repeat, {"rates": _rounded(taken.rates)}, taken.spoiled)
        seen = sum(recorder.find(cell) is not None for cell in cells)
        return seen >= _ENOUGH * len(cells)

    def _choose(self) -> dict[str, Json]:
        """Our schedule for each objective, by a model that has not seen what the setting says."""
        device, known = features(self._bench, self._profiler, self._tasks, self._batches)

        def keeps(sample: CoRunSample) -> bool:
            if self._bench.settings["elsewhere"]:
                return sample.device.name != device.name
            return SETTINGS[self._name].keeps(sample)

        planning = choose(self._bench.options, device, keeps)
        ours, predicted = {}, {}
        for objective in _OBJECTIVES:
            problem = BudgetProblem(
                device=device,
                tasks=tuple(known[task.name] for task in self._tasks),
                batches=self._batches,
                levels=(self._levels(),) * len(self._tasks),
                objective=objective,
                caution=CAUTION,
            )
            found = solve(problem, planning.model)
            ours[objective] = text(tuple(zip(found.batches, found.budgets, strict=True)))
            predicted[objective] = found.score
        return {
            "model": planning.basis,
            "ours": ours,
            "predicted": predicted,
            "solo": {name: task.solo_rate for name, task in known.items()},
        }

    def _levels(self) -> tuple[float, ...]:
        """The device's own steps, up to a hundredth of a per cent, as a schedule's text has them."""
        return tuple(
            math.ceil(100.0 * step) / 100.0 for step in device_steps(self._profiler.backend, _PERCENTAGES)
        )

    def _schedules(self) -> list[Schedule]:
        """{Bᵢ, Rᵢ} drawn jointly, from a few places of each task; always the same for one setting."""
        generator = np.random.default_rng(list(SETTINGS).index(self._name))
        count = _PLACES[len(self._tasks)]
        own = []
        for batches in self._batches:
            places = list(itertools.product(batches, self._levels()))
            generator.shuffle(places)
            own.append([(int(batch), float(budget)) for batch, budget in places[:count]])
        every = list(itertools.product(*own))
        kept = generator.permutation(len(every))[: int(self._bench.settings["schedules"])]
        return [every[i] for i in sorted(kept)]

    def _best(self) -> list[str]:
        """The best schedules of the first look, for each objective, as text."""
        trial = next(trials(self._bench.recorder.samples, [self._name], finished=False))
        top = int(self._bench.settings["top"])
        return [words for objective in _OBJECTIVES for words in trial.ranked(objective)[:top]]

    def _run_all(self, cell: str, repeat: int, contenders: Sequence[Schedule]) -> None:
        """One repeat of every contender and of every task alone, in a new order.

        Together they are one sample: never a part of them on another day or machine.
        """
        alone = {task.name: (solo(self._profiler, task),) for task in self._tasks}
        runs = {text(schedule): self._probes(schedule) for schedule in contenders} | alone
        order = shuffled(list(runs), f"{cell} {repeat}")
        taken = {name: self._profiler.measure(runs[name]) for name in order}
        values: dict[str, Json] = {
            "rates": {name: _rounded(taken[name].rates) for name in runs if name not in alone},
            "solo": {name: round(taken[name].rates[0], 1) for name in alone},
        }
        flags = [f"{name}: {what}" for name in order for what in taken[name].spoiled]
        self._bench.recorder.add(cell, repeat, values, flags)

    def _needed(self, schedules: Sequence[Schedule]) -> list[Probe]:
        return [probe for schedule in schedules for probe in self._probes(schedule)]

    def _probes(self, schedule: Schedule) -> tuple[Probe, ...]:
        return tuple(
            self._profiler.probe(task.with_parameters(batch_size=batch), budget)
            for task, (batch, budget) in zip(self._tasks, schedule, strict=True)
        )


def text(schedule: Schedule) -> str:
    """A schedule as its cells name it: batch size and budget of each task, ``128@60+32@100``."""
    return "+".join(f"{batch}@{budget:g}" for batch, budget in schedule)


def parse(words: str) -> Schedule:
    """What `text` wrote."""
    pairs = (place.split("@") for place in words.split("+"))
    return tuple((int(batch), float(budget)) for batch, budget in pairs)


def _batches(name: str, quick: bool) -> tuple[tuple[int, ...], ...]:
    return ((4, 8),) * len(SETTINGS[name].models) if quick else SETTINGS[name].batches


def _rounded(rates: Sequence[float]) -> list[float]:
    return [round(rate, 1) for rate in rates]


def _picture(found: Sequence[Trial]) -> bytes:
    clouds = {
        trial.name: Cloud(
            points=[trial.point(words) for words in trial.tried],
            marked={f"ours, {objective}": trial.point(trial.ours[objective]) for objective in _OBJECTIVES},
        )
        for trial in found
    }
    return fronts_png(clouds, x_label="Σ Pᵢ (samples/s)", y_label="P_f (Eq. 2)")
