"""The tasks that the paper trains together, and the schemes under which they are measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from fedmt_flower.bench.result import Json
from fedmt_flower.device.profile.measurement import Probe
from fedmt_flower.device.profile.profiler import Profiler
from fedmt_flower.domain.allocation import Allocation, Policy
from fedmt_flower.domain.device import Backend
from fedmt_flower.domain.task import Scalar, Task
from fedmt_flower.planning.allocation import plan_round

PLAIN: Final = "plain"
FAST: Final = "fast"
"""The two kinds of step."""
BATCH = 128
"""The reference batch of P_bᵢ and of the paper's settings (§ VI-A)."""

_MODELS = {
    "AX": "alexnet",
    "D121": "densenet121",
    "V16": "vgg16",
    "R101": "resnet101",
    "R50": "resnet50",
    "R34": "resnet34",
    "R18": "resnet18",
    "M3": "mobilenet_v3_large",
    "S2": "shufflenet_v2",
}

ZOO = tuple(_MODELS)
"""The short names of the models that a shipped throughput model is fitted to."""

SCHEMES = {
    "temporal": Allocation(policy=Policy.TEMPORAL),
    "timeslice": Allocation(policy=Policy.TIMESLICE),
    "isolated": Allocation(policy=Policy.ISOLATED),
    "sharing": Allocation(policy=Policy.SHARING),
    "static 60": Allocation(policy=Policy.STATIC, budgets=(60.0,)),
    "static 80": Allocation(policy=Policy.STATIC, budgets=(80.0,)),
    "100/(0.5 n)": Allocation(policy=Policy.STATIC),
}
"""The schemes by their names in tables; their budgets are the package's own policies'."""


def synthetic_task(name: str, batch: int = BATCH, quick: bool = False, **parameters: Scalar) -> Task:
    """One of the paper's models in its CIFAR form, on synthetic images that stay on the device.

    Parameters
    ----------
    name
        The paper's short name, as ``R18``.
    quick
        Give a small network instead, to try a benchmark where there is no GPU.
    parameters
        Further hyperparameters; without any the step is an ordinary eager one.
    """
    model = "lenet" if quick else _MODELS[name]
    return Task(
        name=name,
        model=f"fedmt_flower.tasks.models:{model}",
        data="fedmt_flower.tasks.data:synthetic",
        parameters={
            "batch_size": batch,
            "samples": 16 * batch,
            "in_channels": 3,
            "lr": 0.01,
            "momentum": 0.9,
            "step": "eager",
            **parameters,
        },
    )


def volumes_of(seconds: float, rates: Sequence[float], parts: Sequence[int], batch: int) -> tuple[int, ...]:
    """Dᵢ in samples, whole batches in the ratio of `parts`: a round in turn takes about `seconds`.

    `rates` are the P_bᵢ in samples/s; there is at least one batch for each part.
    """
    unit = seconds / sum(part / rate for part, rate in zip(parts, rates, strict=True))
    return tuple(batch * part * max(1, round(unit / batch)) for part in parts)


def synthetic_tasks(models: Iterable[str], settings: Mapping[str, Json]) -> tuple[Task, ...]:
    """The tasks of `models`, at the batch size and of the size that a benchmark's settings say."""
    return tuple(synthetic_task(model, int(settings["batch"]), bool(settings["quick"])) for model in models)


def probes(profiler: Profiler, tasks: tuple[Task, ...], allocation: Allocation) -> tuple[Probe, ...]:
    """The tasks in the seats that `allocation` gives them."""
    plan = plan_round(allocation, tuple(task.name for task in tasks))
    return tuple(
        profiler.probe(task, place.budget, plan.sharing)
        for task, place in zip(tasks, plan.tasks, strict=True)
    )


def fast_step(backend: Backend) -> dict[str, Scalar]:
    """Hyperparameters of the fastest step there is: a captured graph, bfloat16, channels last.

    Where there is no GPU nothing is captured, and a benchmark can still be tried.
    """
    step = "graph" if backend is Backend.MPS else "auto"
    return {"step": step, "precision": "bfloat16", "memory_format": "channels_last"}


def by_step(tasks: Sequence[Task], backend: Backend) -> dict[str, tuple[Task, ...]]:
    """The tasks with either step; those with the fast one have names, and so rates, of their own."""
    fast = fast_step(backend)
    hastened = (replace(t.with_parameters(**fast), name=f"{t.name}.fast") for t in tasks)
    return {PLAIN: tuple(tasks), FAST: tuple(hastened)}


def seated(profiler: Profiler, tasks: tuple[Task, ...], budgets: Sequence[float]) -> tuple[Probe, ...]:
    """The tasks, each with its budget in per cent."""
    return tuple(profiler.probe(task, r) for task, r in zip(tasks, budgets, strict=True))


def solo(profiler: Profiler, task: Task) -> Probe:
    """The task alone with the whole device: the reference of its share."""
    return profiler.probe(task, 100.0)
