"""How the tasks of a device are coordinated in a round: batch sizes, transfers and the link (§ V)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from fedmt_flower.domain.network import Link, Overlap
from fedmt_flower.errors import ConfigError


class Batching(StrEnum):
    """How batch sizes are chosen."""

    FIXED = "fixed"
    """Each task's own; where several are valid, those that Eq. 5 likes best."""
    PROPORTIONAL = "proportional"
    """In proportion to the loads (Eq. 6)."""


class LearningRate(StrEnum):
    """How a task's learning rate follows a batch size that differs from the task's own."""

    OFF = "off"
    LINEAR = "linear"
    """η·B/B₀."""
    SQRT = "sqrt"
    """η·√(B/B₀)."""

    def factor(self, batch: int, own: int) -> float:
        """What multiplies the learning rate of a task whose own batch size is `own`, at `batch` samples."""
        match self:
            case LearningRate.OFF:
                return 1.0
            case LearningRate.LINEAR:
                return batch / own
            case LearningRate.SQRT:
                return math.sqrt(batch / own)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRules:
    """Which batch sizes a round may take.

    Parameters
    ----------
    policy
        How they are chosen.
    choices
        Batch sizes in samples that may be chosen for tasks that take one. Empty: with `fixed` each task's
        own, with `proportional` the powers of two from a quarter of it to four times it.
    epsilon
        ε of § V-A: how far above the smallest mismatch a candidate may be, 0 or more.
    learning_rate
        How learning rates follow.
    """

    policy: Batching = Batching.FIXED
    choices: tuple[int, ...] = ()
    epsilon: float = 0.5
    learning_rate: LearningRate = LearningRate.OFF

    def __post_init__(self) -> None:
        problems = [
            f"choices: got {batch}, expected at least 1 sample" for batch in self.choices if batch < 1
        ]
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            problems.append(f"epsilon: got {self.epsilon:g}, expected 0 or more")
        if problems:
            raise ConfigError(*problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapRules:
    """How transfers and computation overlap.

    Parameters
    ----------
    policy
        The policy.
    order
        Names of tasks in their start order; the others come after them. Not with `workload` and `flexible`,
        which have an order of their own.
    delta
        δ of Algorithm 1: `flexible` may change a batch size by up to this fraction of it, in [0, 1).
    """

    policy: Overlap = Overlap.OFF
    order: tuple[str, ...] = ()
    delta: float = 0.2

    def __post_init__(self) -> None:
        problems = []
        if self.order and self.policy in (Overlap.WORKLOAD, Overlap.FLEXIBLE):
            problems.append(f"order: got {list(self.order)}, expected none, since {self.policy} chooses it")
        if len(set(self.order)) < len(self.order):
            problems.append(f"order: got {list(self.order)}, expected every task once")
        if not 0 <= self.delta < 1:
            problems.append(f"delta: got {self.delta:g}, expected 0 or more and below 1")
        if problems:
            raise ConfigError(*problems)

    def arrange(self, tasks: Iterable[str]) -> tuple[str, ...]:
        """`tasks` in the order of the rules; those that it does not name keep theirs, behind the others."""
        place = {task: number for number, task in enumerate(self.order)}
        return tuple(sorted(tasks, key=lambda task: place.get(task, len(place))))


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRules:
    """Which link is emulated.

    Parameters
    ----------
    link
        The device's link; None emulates none.
    force
        Emulate it on a SuperNode too, whose messages have a real network to cross besides.
    """

    link: Link | None = None
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordination:
    """How a device coordinates the tasks of its rounds."""

    batching: BatchRules = field(default_factory=BatchRules)
    overlap: OverlapRules = field(default_factory=OverlapRules)
    network: NetworkRules = field(default_factory=NetworkRules)
