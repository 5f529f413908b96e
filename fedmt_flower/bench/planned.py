"""What a benchmark knows of its tasks when it plans for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial

import msgspec

from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.mixes import seated, solo, volumes_of
from fedmt_flower.bench.models import choose
from fedmt_flower.bench.result import Json
from fedmt_flower.device.planner.models import Chosen
from fedmt_flower.device.profile.measurement import Probe
from fedmt_flower.device.profile.profiler import Profiler
from fedmt_flower.device.profile.survey import PERCENTAGES, QUARTER, device_steps, levels_of
from fedmt_flower.domain.allocation import Objective
from fedmt_flower.domain.profile import DeviceFeatures, TaskFeatures
from fedmt_flower.domain.task import Task
from fedmt_flower.errors import EngineError
from fedmt_flower.planning.budgets import CAUTION, BudgetProblem
from fedmt_flower.planning.features import quarter_share
from fedmt_flower.planning.search import solve


def levels(profiler: Profiler, task: Task) -> tuple[float, ...]:
    """The budgets in per cent that plans choose from for `task`, the device's own steps."""
    return levels_of(profiler.backend, task) or device_steps(profiler.backend, PERCENTAGES)


def features(
    bench: Bench,
    profiler: Profiler,
    tasks: Sequence[Task],
    batches: Sequence[Sequence[int]] | None = None,
) -> tuple[DeviceFeatures, Mapping[str, TaskFeatures]]:
    """The device and the tasks as the throughput model sees them, measured once in a benchmark's record.

    A profile is not believed in this: how fast a task is alone is its host's too, which launches its kernels.

    Parameters
    ----------
    batches
        The sizes between which a plan may choose for each of `tasks`; None is each task's own alone. The
        model knows nothing of how a task's speed follows its batch size but what was measured here.
    """
    choices = batches or ((),) * len(tasks)
    measured = _measured(
        bench,
        profiler,
        {
            task.name: (task, [size for size in sizes if size != _own(task)])
            for task, sizes in zip(tasks, choices, strict=True)
        },
    )
    device = msgspec.convert(next(iter(measured.values()))["device"], DeviceFeatures)
    return device, {name: msgspec.convert(values["task"], TaskFeatures) for name, values in measured.items()}


def problem_of(
    bench: Bench,
    profiler: Profiler,
    tasks: Sequence[Task],
    volumes: Mapping[str, int],
    objective: Objective = Objective.MAKESPAN,
) -> tuple[Chosen, BudgetProblem]:
    """Eq. 5 for `tasks` at their own batch sizes and `volumes` in samples, and the model to solve it by."""
    device, known = features(bench, profiler, tasks)
    return choose(bench.options, device), BudgetProblem(
        device=device,
        tasks=tuple(known[task.name] for task in tasks),
        batches=tuple((_own(task),) for task in tasks),
        levels=tuple(levels(profiler, task) for task in tasks),
        objective=objective,
        samples=tuple(volumes[task.name] for task in tasks),
        caution=CAUTION,
    )


def volumes_in_turn(
    bench: Bench,
    profiler: Profiler,
    tasks: Sequence[Task],
    parts: Sequence[int],
    seconds: float | None = None,
) -> dict[str, int]:
    """Dᵢ in whole batches, in the ratio of `parts`: a round in turn takes about `seconds`.

    None takes the `round_s` of the settings.
    """
    _, known = features(bench, profiler, tasks)
    rates = [known[task.name].solo_rate for task in tasks]
    length = float(bench.settings["round_s"]) if seconds is None else seconds
    found = volumes_of(length, rates, parts, int(bench.settings["batch"]))
    return {task.name: volume for task, volume in zip(tasks, found, strict=True)}


def chosen(
    bench: Bench,
    profiler: Profiler,
    cell: str,
    tasks: tuple[Task, ...],
    volumes: Mapping[str, int],
    objective: Objective,
) -> tuple[Probe, ...]:
    """`tasks` with the budgets that the model chooses for `objective`: once in a record, as its `cell`."""

    def plan() -> dict[str, Json]:
        model, problem = problem_of(bench, profiler, tasks, volumes, objective)
        return {"model": model.basis, "budgets": list(solve(problem, model.model).budgets)}

    planned = bench.recorder.take(cell, plan)
    bench.facts["model"] = planned["model"]
    return seated(profiler, tasks, planned["budgets"])


def _measured(
    bench: Bench, profiler: Profiler, tasks: Mapping[str, tuple[Task, Sequence[int]]]
) -> dict[str, dict[str, Json]]:
    """What each task is alone: with the whole device, there at other batch sizes too, and with a quarter."""
    quarter = device_steps(profiler.backend, [QUARTER])[0]
    cells = {name: f"features | {name}" for name in tasks}
    probes = {
        name: [
            solo(profiler, task),
            profiler.probe(task, quarter),
            *(solo(profiler, task.with_parameters(batch_size=size)) for size in others),
        ]
        for name, (task, others) in tasks.items()
    }
    # All at once: workers start side by side.
    new = [name for name, cell in cells.items() if bench.recorder.find(cell) is None]
    profiler.workers.prepare([probe for name in new for probe in probes[name]])

    def measure(name: str) -> dict[str, Json]:
        task, others = tasks[name]
        said = profiler.describe(probes[name][0])
        if said.device is None:
            raise EngineError(f"task {name}: its worker told nothing of its device")
        rate, slower, *rates = (profiler.measure([probe]).rates[0] for probe in probes[name])
        taken = TaskFeatures(
            task=name,
            model=_model(task),
            flops=said.flops,
            traffic=said.traffic,
            solo_rate=rate,
            reference_batch=_own(task),
            step=said.step,
            quarter_share=quarter_share(slower / rate, quarter),
            batch_rates=tuple(zip(others, rates, strict=True)),
        )
        return {"device": asdict(said.device), "task": asdict(taken)}

    return {name: bench.recorder.take(cells[name], partial(measure, name)) for name in tasks}


def _own(task: Task) -> int:
    return int(task.parameters["batch_size"])


def _model(task: Task) -> str:
    """What samples call a task's model."""
    return task.model.rpartition(":")[2]
