"""Weights and rounds in the engine, bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.mixes import BATCH, synthetic_task
from fedmt_flower.bench.result import Bar, Json, Result
from fedmt_flower.device.contract import Weights
from fedmt_flower.device.engine.client import EngineClient
from fedmt_flower.device.training.initial import initial_weights
from fedmt_flower.domain.allocation import Allocation, Policy
from fedmt_flower.domain.round import Assignment, Mode, RoundOrder, Status
from fedmt_flower.domain.task import Task

CLAIM = "what is handed over arrives bit for bit, and a round gives the same bits again"

MODELS = ("R18", "M3", "S2", "V16", "R50")
_REFERENCE = 60.0
_COMPARED = {
    "the same round again": "the same workers, the same budgets",
    "new workers": "another engine, the same budgets",
    "alone": "one task at a time, the same budget",
    "other budgets": "30 % instead of 60 %: other kernels may be chosen for fewer SMs",
    "full budgets": "100 % instead of 60 %",
}


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with."""
    return {
        "models": list(MODELS)[: 2 if quick else None],
        "batch": 8 if quick else BATCH,
        "steps": 8,
        "seed": 7,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Hand weights over, then run one round in several ways and compare the bits that come of it."""
    bench.recorder.clear()
    models, batch = bench.settings["models"], int(bench.settings["batch"])
    tasks = tuple(_task(model, batch, bench) for model in models)
    weights = {task.name: initial_weights(task, int(bench.settings["seed"])) for task in tasks}
    with bench.engine() as engine:
        kept = tuple(replace(task, train="fedmt_flower.bench.user_code:keep") for task in tasks)
        came_back = _round(bench, engine, kept, weights, _REFERENCE)
        bench.recorder.add("handed over", 0, {"equal": _equal(weights, came_back)})
        reference = _round(bench, engine, tasks, weights, _REFERENCE)
        unchanged = _equal(weights, reference)
        moved = {name: name in reference and not unchanged[name] for name in weights}
        bench.recorder.add("trained", 0, {"equal": moved})
        _compare(bench, "the same round again", reference, _round(bench, engine, tasks, weights, _REFERENCE))
        alone: dict[str, Weights] = {}
        for task in tasks:
            alone |= _round(bench, engine, (task,), {task.name: weights[task.name]}, _REFERENCE)
        _compare(bench, "alone", reference, alone)
        _compare(bench, "other budgets", reference, _round(bench, engine, tasks, weights, _REFERENCE / 2))
        _compare(bench, "full budgets", reference, _round(bench, engine, tasks, weights, 100.0))
    with bench.engine() as engine:
        _compare(bench, "new workers", reference, _round(bench, engine, tasks, weights, _REFERENCE))
    for cell in ("handed over", "trained", "the same round again", "new workers", "alone"):
        (sample,) = [s for s in bench.recorder.samples if s.cell == cell]
        right = sum(sample.values["equal"].values())
        bench.bars.append(Bar.counted(f"{cell}: models as expected", len(tasks), right, right == len(tasks)))
    return True


def report(result: Result) -> str:
    """Which models gave the same bits, a row for each way, in Markdown."""
    models = result.settings["models"]
    lines = [f"| compared with a co-run at 60 % | {' | '.join(models)} |", f"|---|{':---:|' * len(models)}"]
    for cell, meaning in _COMPARED.items():
        for sample in result.of(cell):
            marks = ["same bits" if sample.values["equal"][m] else "differ" for m in models]
            lines.append(f"| {cell}: {meaning} | {' | '.join(marks)} |")
    return "\n".join(lines)


def digest(weights: Weights) -> str:
    """A fingerprint of names, types, shapes and bits."""
    seen = hashlib.sha256()
    for name, array in weights.items():
        seen.update(f"{name} {array.dtype} {array.shape}".encode())
        seen.update(array.tobytes())
    return seen.hexdigest()


def _task(model: str, batch: int, bench: Bench) -> Task:
    task = synthetic_task(model, batch, bench.options.quick)
    samples = batch * int(bench.settings["steps"])
    return task.with_parameters(samples=samples, deterministic=True)


def _round(
    bench: Bench, engine: EngineClient, tasks: Sequence[Task], weights: Mapping[str, Weights], budget: float
) -> dict[str, Weights]:
    order = RoundOrder(
        run="equality",
        round=1,
        site="bench",
        assignments=tuple(Assignment(task=task, mode=Mode.TRAIN) for task in tasks),
        allocation=Allocation(policy=Policy.STATIC, budgets=(budget,)),
        seed=7,
        deadline_s=120.0,
    )
    result = engine.run_round(order, weights)
    failures = [report.error for report in result.report.tasks if report.status is Status.FAILED]
    bench.facts["failures"] = [*bench.facts.get("failures", []), *failures]
    return dict(result.weights)


def _compare(bench: Bench, cell: str, reference: dict[str, Weights], got: dict[str, Weights]) -> None:
    bench.recorder.add(cell, 0, {"equal": _equal(reference, got)})


def _equal(expected: dict[str, Weights], got: dict[str, Weights]) -> dict[str, Json]:
    """By model; one whose round failed is not equal."""
    return {
        name: name in expected and name in got and digest(expected[name]) == digest(got[name])
        for name in expected | got
    }
