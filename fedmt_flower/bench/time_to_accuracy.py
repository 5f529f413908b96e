"""What sharing the device does to the time until models are accurate, and to how accurate they become."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from fedmt_flower.bench.allocation_table import interval
from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.engine_rounds import chosen_budgets, makespan
from fedmt_flower.bench.mixes import SCHEMES, fast_step
from fedmt_flower.bench.result import Bar, Json, Result, Sample
from fedmt_flower.bench.spread import spread
from fedmt_flower.device.contract import RoundResult, Weights
from fedmt_flower.device.engine.client import EngineClient
from fedmt_flower.device.training.initial import initial_weights
from fedmt_flower.domain.allocation import Allocation
from fedmt_flower.domain.coordination import Batching, BatchRules, Coordination, LearningRate
from fedmt_flower.domain.round import Assignment, Mode, RoundOrder, Status
from fedmt_flower.domain.task import Task
from fedmt_flower.errors import EngineError

CLAIM = "models that share the device become as accurate as in turn, and sooner"

_MODELS: Final = {"R18": "resnet18", "M3": "mobilenet_v3_large", "S2": "shufflenet_v2"}
_VOLUMES: Final = {"R18": 1 / 3, "M3": 2 / 3, "S2": 1.0}
"""Parts of a site's data, so that adapted batch sizes differ."""
_SITES: Final = 2
_TEMPORAL: Final = "temporal"
_STATIC: Final = "best static"
_EQUAL: Final = ("isolated", "sharing", "static 60", "static 80")
_FAST: Final = "fedmt, fast steps"
_WARM_ROUNDS: Final = 2
"""After the first, budgets follow what it has shown, in new seats."""
_ADAPTED: Final = {
    "fedmt": BatchRules(),
    "fedmt, adapted batches": BatchRules(policy=Batching.PROPORTIONAL),
    "fedmt, adapted batches, √ learning rates": BatchRules(
        policy=Batching.PROPORTIONAL, learning_rate=LearningRate.SQRT
    ),
    "fedmt, batches up to twice their own, linear learning rates": BatchRules(
        policy=Batching.PROPORTIONAL, choices=(32, 64, 128, 256), learning_rate=LearningRate.LINEAR
    ),
    "fedmt, batches up to their own": BatchRules(policy=Batching.PROPORTIONAL, choices=(32, 64, 128)),
}
"""Larger batches take fewer steps in as many rounds: how much of that learning rates and limits mend."""


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with."""
    schemes = [_TEMPORAL, _STATIC, *_ADAPTED, _FAST]
    return {
        "models": ["lenet"] * 3 if quick else list(_MODELS.values()),
        "schemes": [_TEMPORAL, "fedmt"] if quick else schemes,
        "volume": 0.005 if quick else 0.25,
        "rounds": 1 if quick else 6,
        "seeds": 1 if quick else 3,
        "batch": 32 if quick else 128,
        "lr": 0.02,
        "sites": _SITES,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Train from the start under every scheme with every seed."""
    recorder, seeds = bench.recorder, int(bench.settings["seeds"])
    schemes = list(bench.settings["schemes"])
    with tempfile.TemporaryDirectory(prefix="fedmt-") as directory, bench.engine() as engine:
        federation = _Federation(bench, engine)
        chosen, warm = chosen_budgets(bench, Path(directory)), set[str]()
        rounds = int(bench.settings["rounds"])

        def take(cell: str, seed: int) -> dict[str, Json]:
            allocation = SCHEMES.get(federation.best_static() if cell == _STATIC else cell, chosen)
            rules = Coordination(batching=_ADAPTED.get(cell, BatchRules()))
            fast = cell == _FAST
            if cell not in warm and not bench.options.quick:
                federation.train(allocation, rules, 0, rounds=_WARM_ROUNDS, fast=fast)
                warm.add(cell)
            return federation.train(allocation, rules, seed, rounds=rounds, fast=fast)

        for cell, seed in recorder.interleave(schemes, seeds):
            if cell not in bench.failed:
                with bench.part(cell):
                    recorder.add(cell, seed, take(cell, seed))
    bench.bars += _judge(recorder.samples, schemes)
    return recorder.has_all(schemes, seeds)


def report(result: Result) -> str:
    """Final accuracies, and the time until every model had what every run reached, in Markdown."""
    schemes, models = result.settings["schemes"], list(_MODELS)
    found = {scheme: [s.values for s in result.of(scheme)] for scheme in schemes if result.of(scheme)}
    targets = _targets(found)
    wanted = ", ".join(f"{model} {target:.3f}" for model, target in targets.items())
    lines = [
        f"Fashion-MNIST, {result.settings['sites']} sites in turn, {result.settings['rounds']} rounds, "
        f"volumes 1:2:3. Accuracy that every run reached: {wanted}.",
        "",
        f"| scheme | {' | '.join(f'{model}, final accuracy' for model in models)} | seconds a round | "
        "seconds until all models had it |",
        f"|---|{'---:|' * (len(models) + 2)}",
    ]
    for scheme, runs in found.items():
        accuracies = [interval(spread(r["accuracy"][model][-1] for r in runs), 4) for model in models]
        seconds = interval(spread(statistics.fmean(r["round_s"]) for r in runs), 2)
        reached = interval(spread(_reached(r, targets) for r in runs), 1)
        lines.append(f"| {scheme} | {' | '.join(accuracies)} | {seconds} | {reached} |")
    if static := next((s.values for s in result.samples if s.cell == "best static budgets"), None):
        lines += ["", f"Best static: {static['best']}."]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Federation:
    """Sites of one engine whose updates are averaged by their samples, as FedAvg does."""

    bench: Bench
    engine: EngineClient

    def train(
        self, allocation: Allocation, rules: Coordination, seed: int, *, rounds: int, fast: bool
    ) -> dict[str, Json]:
        """Accuracy of every model before the first and after every round, and the rounds' seconds."""
        tasks = self._tasks(fast=fast)
        weights: Mapping[str, Weights] = {task.name: initial_weights(task, seed) for task in tasks}
        accuracy: dict[str, list[float]] = {task.name: [] for task in tasks}
        seconds, batches = [], {}
        for number in range(1, rounds + 2):
            final = number > rounds
            results = [
                self._round(tasks, weights, allocation, rules, (seed, number, site), final=final)
                for site in range(_SITES)
            ]
            for task in tasks:
                scores = [result.report.task(task.name).evaluate_metrics["accuracy"] for result in results]
                accuracy[task.name].append(round(statistics.fmean(scores), 5))
            if not final:
                weights = {task.name: _mean(results, task.name) for task in tasks}
                # The sites have devices of their own: a round lasts as long as the slower one.
                seconds.append(round(max(makespan(result.report) for result in results), 3))
                batches = {place.task: place.batch_size for place in results[0].report.plan.tasks}
        return {"accuracy": accuracy, "round_s": seconds, "batches": batches}

    def best_static(self) -> str:
        """The equal budgets with the shortest round, found once in a record."""

        def find() -> dict[str, Json]:
            tasks = self._tasks(fast=False)
            weights = {task.name: initial_weights(task, 0) for task in tasks}
            spans = {}
            for scheme in _EQUAL:
                for number in (1, 2):  # the first has workers get warm
                    place = (0, number, 0)
                    result = self._round(tasks, weights, SCHEMES[scheme], Coordination(), place, final=False)
                    spans[scheme] = makespan(result.report)
            return {"best": min(spans, key=lambda scheme: spans[scheme]), "seconds": spans}

        return str(self.bench.recorder.take("best static budgets", find)["best"])

    def _tasks(self, *, fast: bool) -> tuple[Task, ...]:
        known = self.bench.settings
        step = fast_step(self.bench.options.backend) if fast else {"step": "eager"}
        return tuple(
            Task(
                name=name,
                model=f"fedmt_flower.tasks.models:{model}",
                data="fedmt_flower.tasks.data:fashion_mnist",
                parameters={
                    "in_channels": 1,
                    "batch_size": int(known["batch"]),
                    "lr": float(known["lr"]),
                    "momentum": 0.9,
                    "weight_decay": 5e-4,
                    "volume": _VOLUMES[name] * float(known["volume"]),
                    **step,
                },
            )
            for name, model in zip(_MODELS, known["models"], strict=True)
        )

    def _round(
        self,
        tasks: Sequence[Task],
        weights: Mapping[str, Weights],
        allocation: Allocation,
        rules: Coordination,
        place: tuple[int, int, int],
        *,
        final: bool,
    ) -> RoundResult:
        seed, number, site = place
        mode = Mode.EVALUATE if final else Mode.TRAIN_AND_EVALUATE
        parameters = {"partition-id": site, "num-partitions": _SITES}
        order = RoundOrder(
            run=_run_of(tasks, rules),
            round=number,
            site=f"site-{site}",
            assignments=tuple(Assignment(task=t, mode=mode, parameters=parameters) for t in tasks),
            allocation=allocation,
            coordination=rules,
            seed=seed,
            deadline_s=300.0,
        )
        result = self.engine.run_round(order, weights)
        if failures := [task.error for task in result.report.tasks if task.status is Status.FAILED]:
            raise EngineError(failures[0])
        return result


def _run_of(tasks: Sequence[Task], rules: Coordination) -> str:
    """What rounds have in common that may learn from each other: kinds of steps, and loads."""
    return f"time-to-accuracy, {tasks[0].parameters['step']} steps, {rules.batching.policy} batches"


def _mean(results: Sequence[RoundResult], task: str) -> Weights:
    """The sites' updates of a task, averaged by the samples that they trained on."""
    samples = np.array([result.report.task(task).samples for result in results], dtype=float)
    return {
        name: np.average([result.weights[task][name] for result in results], axis=0, weights=samples).astype(
            array.dtype
        )
        for name, array in results[0].weights[task].items()
    }


def _targets(found: Mapping[str, Sequence[dict[str, Json]]]) -> dict[str, float]:
    """For each model the accuracy that every run has reached at its best."""
    runs = [run for taken in found.values() for run in taken]
    return {model: min(max(run["accuracy"][model]) for run in runs) for model in _MODELS} if runs else {}


def _reached(run: Mapping[str, Json], targets: Mapping[str, float]) -> float:
    """Seconds until every model had its target's accuracy."""
    rounds = [
        next(number for number, accuracy in enumerate(run["accuracy"][model]) if accuracy >= target)
        for model, target in targets.items()
    ]
    return math.fsum(run["round_s"][: max(rounds)])


def _judge(samples: Sequence[Sample], schemes: Sequence[str]) -> Iterator[Bar]:
    """Final accuracies beside those in turn: the means differ by no more than seeds do."""

    def final(scheme: str, model: str) -> list[float]:
        return [s.values["accuracy"][model][-1] for s in samples if s.cell == scheme]

    for scheme in schemes:
        if scheme == _TEMPORAL or not (final(scheme, "R18") and final(_TEMPORAL, "R18")):
            continue
        excess = {}
        for model in _MODELS:
            ours, theirs = final(scheme, model), final(_TEMPORAL, model)
            seeds = max(max(values) - min(values) for values in (ours, theirs))
            excess[model] = abs(statistics.fmean(ours) - statistics.fmean(theirs)) - seeds
        worst = max(excess, key=lambda model: excess[model])
        name = (
            f"{scheme}: final accuracy off temporal's by more than the seeds' spread, worst model ({worst})"
        )
        yield Bar.counted(name, 0.0, excess[worst], excess[worst] <= 0.0)
