"""One task's share of a round, as a worker sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from fedmt_flower.device.contract import Weights
from fedmt_flower.domain.coordination import LearningRate
from fedmt_flower.domain.plan import TaskPlan
from fedmt_flower.domain.profile import StepKind
from fedmt_flower.domain.round import Assignment, Handover, Mode, RoundOrder, Status, TaskReport
from fedmt_flower.domain.task import Scalar
from fedmt_flower.domain.timeline import Phase, Span

ROUND_KEYS: Final = frozenset({"round", "server_round", "server-round"})
"""Parameters of a job that tell its round: all others may stay the same from round to round."""
DEFAULT_BATCH: Final = 32
"""Samples of a batch where neither a task nor its functions name a number."""
_BATCH: Final = "batch_size"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a worker is to do with the weights it is handed.

    `parameters` are the task's own, overridden by the round's and, where the plan sets a batch size, by that
    `batch_size`; the one that they named before is `own_batch_size`. `learning_rate` says how the learning
    rate follows from the one to the other.
    """

    site: str
    round: int
    seed: int
    mode: Mode
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    batch_size: int | None = None
    own_batch_size: Scalar | None = None
    learning_rate: LearningRate = LearningRate.OFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A phase of a job, in seconds of the monotonic clock that all processes of a host share."""

    phase: Phase
    start: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """What came of a job; fields as in `fedmt_flower.domain.round.TaskReport`.

    `weights` is None unless the job trained.
    """

    weights: Weights | None
    samples: int
    train_examples: int
    evaluate_examples: int
    train_metrics: Mapping[str, float]
    evaluate_metrics: Mapping[str, float]
    stretches: tuple[Stretch, ...]
    memory_bytes: int = 0
    step: StepKind = StepKind.EAGER
    why_eager: str = ""


def job_of(order: RoundOrder, assignment: Assignment, plan: TaskPlan) -> Job:
    """What `assignment` asks for in a round of `order`, at the batch size that `plan` sets."""
    parameters = {**assignment.task.parameters, **assignment.parameters}
    own = [key for key in parameters if key.replace("-", "_") == _BATCH]
    batch = {} if plan.batch_size is None else dict.fromkeys([*own, _BATCH], plan.batch_size)
    return Job(
        site=order.site,
        round=order.round,
        seed=order.seed,
        mode=assignment.mode,
        parameters={**parameters, **batch},
        batch_size=plan.batch_size,
        own_batch_size=parameters[own[-1]] if own else None,
        learning_rate=order.coordination.batching.learning_rate,
    )


def report_of(
    task: str, result: JobResult, level: int, pid: int, handovers: tuple[Handover, ...] = ()
) -> TaskReport:
    """The report of a job that was done, at last by the process `pid` on a seat of `level`."""
    return TaskReport(
        task=task,
        status=Status.DONE,
        samples=result.samples,
        train_examples=result.train_examples,
        evaluate_examples=result.evaluate_examples,
        train_metrics=result.train_metrics,
        evaluate_metrics=result.evaluate_metrics,
        level=level,
        pid=pid,
        compute_s=sum(s.end - s.start for s in result.stretches if s.phase is Phase.COMPUTE),
        memory_bytes=result.memory_bytes,
        step=result.step,
        why_eager=result.why_eager,
        handovers=handovers,
    )


def spans_of(task: str, result: JobResult, arrival: float) -> tuple[Span, ...]:
    """What the job did and when, counted from the round's `arrival` on the monotonic clock."""
    return tuple(
        Span(task=task, phase=s.phase, start_s=s.start - arrival, end_s=s.end - arrival)
        for s in result.stretches
    )
