"""What a task is on its device before it is planned: its cost, and its speed alone.

`examine` and `time_alone` give orders to a worker, one after the other, and are sent its answers; somebody
else carries them. So the engine's workers and a task of the calling process are measured by the same code.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from fedmt_flower.device.ipc.frames import (
    Answers,
    Appraised,
    Describe,
    Described,
    Measure,
    Measured,
    Rehearse,
    Rehearsed,
    Rest,
)
from fedmt_flower.device.ipc.job import Job, job_of
from fedmt_flower.device.ipc.steps import Step
from fedmt_flower.domain.network import Volume
from fedmt_flower.domain.plan import TaskPlan
from fedmt_flower.domain.profile import DeviceFeatures, StepKind, TaskFeatures
from fedmt_flower.domain.round import Assignment, RoundOrder
from fedmt_flower.domain.task import Task, TaskKind
from fedmt_flower.errors import TaskError
from fedmt_flower.planning.features import quarter_share
from fedmt_flower.planning.framing import TaskFacts

log = logging.getLogger(__name__)

ENDLESS: Final = 1_000_000
"""Epochs, so that steps do not end by themselves."""
_WARM_CPU: Final = 2
"""Steps after which a measurement may begin; one may take seconds."""
_WARM_GPU: Final = 4
"""The same on a GPU, where the third may be recorded as a graph."""
_LEAD_S: Final = 0.01
_SETTLE_S: Final = 0.05
_LENGTH_S: Final = 0.25
_LONGEST_S: Final = 2.0
_STEPS: Final = 4

T = TypeVar("T")
Errand = Rehearse | Describe | Measure | Rest
Steps = Generator[Errand, Answers, T]
"""Orders to a worker out, its answers in; a TaskError is raised where the worker could not do it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """A task alone on a device.

    Parameters
    ----------
    flops, traffic
        fᵢ and mᵢ per sample; see `TaskFeatures`.
    device
        The device, if that was asked for.
    step
        How its steps reach the device.
    speeds
        Rates in samples/s by batch size, with the whole device.
    share
        See `TaskFeatures.quarter_share`.
    memory
        Bytes of the device's memory that torch held, by batch size; 0 on CPUs.
    """

    flops: float
    traffic: float
    device: DeviceFeatures | None = None
    step: StepKind = StepKind.EAGER
    speeds: Mapping[int, float] = field(default_factory=dict)
    share: float = 0.5
    memory: Mapping[int, int] = field(default_factory=dict)


def examine(job: Job, own: int, sizes: Iterable[int], *, gpu: bool, device: bool) -> Steps[Examined]:
    """Measure a stepped task: its cost at the batch size `own`, its speed at that and at all `sizes`.

    A size that cannot be trained with, because memory does not suffice, is left out. `gpu` says where the
    worker is, `device` whether to look at the device too.
    """
    speeds: dict[int, float] = {}
    memory: dict[int, int] = {}
    described: Described | None = None
    for size in dict.fromkeys([own, *sizes]):
        try:
            rehearsed = expect(Rehearsed, (yield _rehearsal(job, size, gpu)))
            if described is None:
                described = expect(Described, (yield Describe(device=device)))
            speeds[size] = yield from _speed()
        except TaskError as error:
            if size == own:
                raise
            log.warning("batches of %d are left out: %s", size, error)
            continue
        memory[size] = rehearsed.memory_bytes
    yield Rest(forget=True)
    assert described is not None
    return Examined(
        flops=described.flops,
        traffic=described.traffic,
        device=described.device,
        speeds=speeds,
        memory=memory,
        step=described.step,
    )


def time_alone(job: Job, own: int, *, gpu: bool) -> Steps[float]:
    """Measure a stepped task's rate in samples/s, in whatever seat its worker has."""
    expect(Rehearsed, (yield _rehearsal(job, own, gpu)))
    rate = yield from _speed()
    yield Rest(forget=True)
    return rate


def first_steps(job: Job, size: int, *, gpu: bool, evaluate: bool = True) -> Steps[None]:
    """Have a stepped task take its first steps in its worker's seat, in batches of `size`.

    `evaluate` has it evaluate a batch too, if the job does.
    """
    expect(Rehearsed, (yield _rehearsal(job, size, gpu, evaluate=evaluate)))
    yield Rest(forget=True)


def expect(kind: type[T], answer: object) -> T:
    """`answer`, which should be of that kind; TaskError if it is not."""
    if not isinstance(answer, kind):
        raise TaskError(f"a worker answered with {type(answer).__name__}, expected {kind.__name__}")
    return answer


def _rehearsal(job: Job, size: int, gpu: bool, *, evaluate: bool = False) -> Rehearse:
    ours = {"epochs": ENDLESS, "batch_size": size}
    others = {name: value for name, value in job.parameters.items() if name.replace("-", "_") not in ours}
    parameters = {**others, **ours}
    steps = _WARM_GPU if gpu else _WARM_CPU
    return Rehearse(job=replace(job, parameters=parameters), steps=steps, evaluate=evaluate)


def _speed() -> Steps[float]:
    """The rate over a quarter of a second, or over as long as a few steps take."""
    length = _LENGTH_S
    while True:
        start = time.monotonic() + _LEAD_S
        answer = yield Measure(start=start, end=start + _SETTLE_S + length)
        steps = expect(Measured, answer).steps
        settled = [step for step in steps if step.finished >= start + _SETTLE_S]
        if len(settled) > _STEPS or length >= _LONGEST_S:
            return rate_since(start, settled if len(settled) > 1 else steps)
        length = min(2 * length, _LONGEST_S)


def rate_since(start: float, steps: Sequence[Step]) -> float:
    """Samples/s from the end of the first step to the end of the last; of a single one, since `start`."""
    if not steps:
        raise TaskError("no training step ended in time")
    if len(steps) == 1:
        return steps[0].samples / (steps[0].finished - start)
    return sum(step.samples for step in steps[1:]) / (steps[-1].finished - steps[0].finished)


def with_quarter(seen: Examined, own: int, rate: float, budget: float) -> Examined:
    """`seen`, with the rate at a `budget` of about a quarter and the batch size `own` taken into account.

    Small models are faster with one thread than with two that wait for each other. More budget is never
    held to harm a task, so the faster rate then counts for the whole device too.
    """
    gain = max(1.0, rate / seen.speeds[own])
    share = quarter_share(min(1.0, rate / seen.speeds[own]), budget)
    # Nobody is slower than in proportion: below that it is noise.
    return replace(
        seen,
        share=max(0.25, share),
        speeds={size: gain * speed for size, speed in seen.speeds.items()},
    )


def facts_of(
    task: Task,
    size: int,
    appraised: Appraised,
    seen: Examined,
    solo: float,
    levels: tuple[float, ...] = (),
) -> TaskFacts:
    """What is known of a task that was looked at.

    Parameters
    ----------
    size
        Bytes of its weights.
    appraised, seen
        What it has to do, and what it is alone.
    solo
        Its solo rate at its own batch size, in samples/s.
    levels
        See `TaskFacts.levels`.
    """
    return TaskFacts(
        features=TaskFeatures(
            task=task.name,
            model=task.model.rpartition(":")[2],
            flops=seen.flops,
            traffic=seen.traffic,
            solo_rate=solo,
            reference_batch=appraised.batch,
            step=seen.step,
            quarter_share=seen.share,
            batch_rates=tuple(sorted(seen.speeds.items())),
        ),
        volume=Volume(task=task.name, samples=appraised.samples, download_bytes=size, upload_bytes=size),
        examples=appraised.examples,
        adapts=appraised.adapts,
        stepped=task.kind is TaskKind.STEPPED,
        counted=seen.flops > 1.0,
        memory=seen.memory if any(seen.memory.values()) else {},
        levels=levels,
    )


def job_to_measure(order: RoundOrder, assignment: Assignment) -> Job:
    """What `assignment` asks for at its own batch size."""
    return job_of(order, assignment, TaskPlan(task=assignment.task.name, budget=100.0))
