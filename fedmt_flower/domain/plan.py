"""What a device decides about a round before it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from fedmt_flower.domain.forecast import Forecast
from fedmt_flower.errors import ConfigError


class Sharing(StrEnum):
    """How the tasks of a round share their device."""

    IN_TURN = "in turn"
    """One task at a time, with the whole device: the paper's *temporal* baseline."""
    TIME_SLICED = "time-sliced"
    """All at once, no budgets; the driver (or the operating system) slices time between them."""
    CAPPED = "capped"
    """All at once, each under its own budget Rᵢ."""


def check_budget(task: str, budget: float) -> float:
    """Return `budget` if it is a virtual-resource budget Rᵢ in (0, 100] %, else raise ConfigError."""
    if not math.isfinite(budget) or not 0 < budget <= 100:
        raise ConfigError(
            f"budget of {task}: got {budget:g} %, expected a share of the device above 0 and at most 100 %"
        )
    return float(budget)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPlan:
    """One task's place in a round.

    Parameters
    ----------
    task
        The task's name.
    budget
        Virtual-resource budget Rᵢ in per cent, (0, 100] (§ III-B).
    batch_size
        Bᵢ in samples; None leaves the task's own.
    """

    task: str
    budget: float
    batch_size: int | None = None

    def __post_init__(self) -> None:
        check_budget(self.task, self.budget)
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch size of {self.task}: got {self.batch_size}, expected at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """A round on one site: `tasks` in their start order π, and how they share the device."""

    tasks: tuple[TaskPlan, ...]
    sharing: Sharing

    @property
    def virtual_resource(self) -> float:
        """R_v = Σ Rᵢ in per cent (§ III-B)."""
        return sum(plan.budget for plan in self.tasks)


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """What a device does in a round, and what that promises.

    Parameters
    ----------
    plan
        The tasks in start order, with their batch sizes and their budgets while all compute.
    forecast
        What is predicted of the round; None where nothing had to be predicted to plan it.
    budgets
        Rᵢ in per cent by the set of tasks that compute, where budgets change when the set does; else empty.
    """

    plan: RoundPlan
    forecast: Forecast | None = None
    budgets: Mapping[frozenset[str], Mapping[str, float]] = field(default_factory=dict)
