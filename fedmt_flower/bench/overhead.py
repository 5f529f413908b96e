"""What a round costs besides its training, through the client and the engine; and a cold start."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fedmt_flower.bench.allocation_table import interval
from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.engine_rounds import chosen_budgets, computed
from fedmt_flower.bench.mixes import BATCH, SCHEMES, synthetic_task
from fedmt_flower.bench.result import Bar, Json, Result, Sample
from fedmt_flower.bench.spread import spread
from fedmt_flower.device.training.initial import initial_weights
from fedmt_flower.domain.allocation import Allocation
from fedmt_flower.domain.device import DeviceSettings
from fedmt_flower.domain.round import Mode, Status
from fedmt_flower.domain.timeline import Phase
from fedmt_flower.errors import EngineError
from fedmt_flower.federation.reception import Answered, Reception

CLAIM = "a round costs little besides its training, and an engine is soon at work"

MODELS: Final = ("D121", "V16", "R101")
_COLD, _ROUND = "cold start", "round"
_PART: Final = 0.03
_COLD_S: Final = 5.0
_PARTS: Final = {
    "client_s": "client to engine",
    "waiting_s": "plan and worker",
    "prepare_s": "state in",
    "evaluate_s": "evaluation",
    "compute_s": "training",
    "moved_s": "of it between two workers",
    "answer_s": "state out, to the answer",
}
"""Where a round's time goes on the way of the task that ends last."""


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with."""
    return {
        "models": list(MODELS),
        "batch": 8 if quick else BATCH,
        # Batches of an epoch; so many epochs are trained that a round takes about its time.
        "batches": 8,
        "round_s": 0.3 if quick else 10.0,
        "repeats": 1 if quick else 5,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Play whole rounds in one engine; then start engines from nothing."""
    recorder, repeats = bench.recorder, int(bench.settings["repeats"])
    ways = {_ROUND: _play_rounds, _COLD: _start_engines}
    for cell, until in recorder.shares(list(ways)):
        if recorder.left_s > 0 and not recorder.has_all([cell], repeats):
            ways[cell](bench, until)
    bench.bars += judge(recorder.samples)
    return recorder.has_all(list(ways), repeats)


def report(result: Result) -> str:
    """Where the time of a round goes, and of a cold start, in Markdown."""
    tables = []
    if taken := _values(result.samples, _ROUND):
        columns = ["round (s)", *(f"{words} (ms)" for words in _PARTS.values()), "besides training"]
        cells = [interval(spread(v["seconds"] for v in taken), 2)]
        cells += [interval(spread(1e3 * v[part] for v in taken), 1) for part in _PARTS]
        cells.append(f"{interval(spread(100 * besides(v) / v['seconds'] for v in taken), 2)} %")
        tables.append(_table(f"**{' + '.join(result.settings['models'])}**, a warm round", columns, cells))
    if taken := _values(result.samples, _COLD):
        moments = {
            "import_s": "torch imported (s)",
            "ready_s": "then the engine ready (s)",
            "begun_s": "every task's first step begins (s)",
            "stepped_s": "every task's first step taken (s)",
        }
        cells = [interval(spread(v[key] for v in taken), 2) for key in moments]
        title = "A cold start; what follows the import is counted from there"
        tables.append(_table(title, list(moments.values()), cells))
    return "\n\n".join(tables)


def judge(samples: Sequence[Sample]) -> Iterator[Bar]:
    """The goals of what was measured."""
    if taken := _values(samples, _ROUND):
        bar = (
            "part of a round, from its arrival in the client to its answer, that is no training or evaluation"
        )
        yield Bar.at_most(bar, _PART, spread(besides(v) / v["seconds"] for v in taken))
    if taken := _values(samples, _COLD):
        bar = "seconds from torch imported until every task has taken its first step"
        yield Bar.at_most(bar, _COLD_S, spread(v["stepped_s"] for v in taken))


def besides(values: Mapping[str, Json]) -> float:
    """Seconds of a round in which the task that ends last neither trains nor is evaluated."""
    return float(values["seconds"] - values["compute_s"] - values["evaluate_s"] + values["moved_s"])


def parts_of(answered: Answered) -> dict[str, Json]:
    """Where a round's time went, on the way of the task that computed last."""
    found = answered.report
    spans = computed(found)
    last = max(spans, key=lambda task: spans[task][1])
    begin, end = spans[last]

    def took(phase: Phase) -> float:
        return sum(s.end_s - s.start_s for s in found.timeline if (s.task, s.phase) == (last, phase))

    entered = found.arrived - answered.arrived
    prepare, evaluate = took(Phase.PREPARE), took(Phase.EVALUATE)
    return {
        "seconds": answered.seconds,
        "last": last,
        "client_s": entered,
        "waiting_s": begin - prepare - evaluate,
        "prepare_s": prepare,
        "evaluate_s": evaluate,
        "compute_s": end - begin,
        "moved_s": sum(move.lost_s for move in found.task(last).handovers),
        "answer_s": answered.seconds - entered - end,
        "budgets": {plan.task: plan.budget for plan in found.plan.tasks},
    }


class _Rounds:
    """Rounds of one site, in the engine there is."""

    def __init__(self, bench: Bench, allocation: Allocation) -> None:
        self._bench = bench
        batch = int(bench.settings["batch"])
        epoch = batch * int(bench.settings["batches"])
        self._tasks = tuple(
            synthetic_task(model, batch, bench.options.quick, samples=epoch)
            for model in bench.settings["models"]
        )
        weights = {task.name: initial_weights(task, 0) for task in self._tasks}
        device = DeviceSettings(backend=bench.options.backend, index=bench.options.index)
        self._reception = Reception(self._tasks, allocation, device, weights)
        self._epoch, self._number = epoch, 0
        self._epochs = {task.name: 1 for task in self._tasks}

    def warm_up(self) -> None:
        """Have warm workers in place, and choose the epochs, which are the same on resuming."""
        self.play()
        self._epochs = self._bench.recorder.take("epochs", self._choose)
        self.play(part=0.1)

    def play(self, *, part: float = 1.0, mode: Mode = Mode.TRAIN_AND_EVALUATE, **config: Any) -> Answered:
        """One round, of a `part` of its epochs; EngineError if a task failed."""
        self._number += 1
        own = {
            name: {"epochs": max(1, round(part * epochs)), **config} for name, epochs in self._epochs.items()
        }
        answered = self._reception.receive(self._number, mode, own)
        if failures := [t.error for t in answered.report.tasks if t.status is Status.FAILED]:
            raise EngineError(failures[0])
        return answered

    def _choose(self) -> dict[str, Json]:
        """Epochs of each task that take about the round's time, by the rates of a shorter round."""
        seconds = float(self._bench.settings["round_s"])
        for length in (0.1 * seconds, seconds):
            found = self.play().report
            self._epochs = {
                task.task: max(1, round(length * task.rate / self._epoch)) for task in found.tasks
            }
        return dict(self._epochs)


def _play_rounds(bench: Bench, until: float) -> None:
    recorder, repeats = bench.recorder, int(bench.settings["repeats"])
    with tempfile.TemporaryDirectory(prefix="fedmt-") as directory, bench.engine():
        rounds = _Rounds(bench, chosen_budgets(bench, Path(directory)))
        rounds.warm_up()
        for cell, repeat in recorder.interleave([_ROUND], repeats, until):
            recorder.add(cell, repeat, parts_of(rounds.play()))


def _start_engines(bench: Bench, until: float) -> None:
    recorder, repeats = bench.recorder, int(bench.settings["repeats"])
    # Full sharing: no budgets to choose, and nothing to measure for that. Made before the clock starts.
    rounds = _Rounds(bench, SCHEMES["sharing"])
    for cell, repeat in recorder.interleave([_COLD], repeats, until):
        recorder.add(cell, repeat, _cold_start(bench, rounds))


def _cold_start(bench: Bench, rounds: _Rounds) -> dict[str, Json]:
    """An engine from nothing to the first step of every task."""
    started = time.time()
    with bench.engine() as engine:
        ready = time.time()
        began = ready - engine.status().uptime_s
        found = rounds.play(mode=Mode.TRAIN, samples=int(bench.settings["batch"])).report
    spans = computed(found).values()
    return {
        "import_s": began - started,
        "ready_s": ready - began,
        "begun_s": found.arrived - began + max(begin for begin, _ in spans),
        "stepped_s": found.arrived - began + max(end for _, end in spans),
    }


def _values(samples: Sequence[Sample], cell: str) -> list[dict[str, Json]]:
    return [sample.values for sample in samples if sample.cell == cell]


def _table(title: str, columns: Sequence[str], cells: Sequence[str]) -> str:
    return "\n".join(
        [title, "", f"| {' | '.join(columns)} |", f"|{'---:|' * len(columns)}", f"| {' | '.join(cells)} |"]
    )
