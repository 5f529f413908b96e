"""One task's share of a round, as a worker sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedmt_flower.device.contract import Weights
from fedmt_flower.domain.round import Mode, Phase
from fedmt_flower.domain.task import Scalar


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a worker is to do with the weights it is handed.

    `parameters` are the task's own, overridden by the round's; `batch_size`, when the plan sets one, by
    the plan's.
    """

    site: str
    round: int
    seed: int
    mode: Mode
    parameters: Mapping[str, Scalar] = field(default_factory=dict)


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
