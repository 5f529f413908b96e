"""Which policy chooses the budgets of a round."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fedmt_flower.domain.plan import check_budget
from fedmt_flower.errors import ConfigError


class Policy(StrEnum):
    """The allocation policies (§ VI-A, § VI-B)."""

    TEMPORAL = "temporal"
    """In turn, each with the whole device."""
    TIMESLICE = "timeslice"
    """All at once without budgets: what several processes get when nobody arranges anything."""
    ISOLATED = "isolated"
    """100/n % each: capped, not dedicated."""
    SHARING = "sharing"
    """100 % each."""
    STATIC = "static"
    """Budgets given beforehand: one for all, or one for each task."""
    FEDMT = "fedmt"
    """Chosen by a model of co-running throughput (Eq. 5)."""


class Objective(StrEnum):
    """What the budgets shall make large."""

    MAKESPAN = "makespan"
    """Samples of the round over the time until the last task has computed."""
    RAW = "raw"
    """Σ Pᵢ, in samples/s."""
    FAIRNESS = "fairness"
    """Σ Pᵢ/P_bᵢ (Eq. 2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """A policy, and what some of them need besides.

    Parameters
    ----------
    policy
        The policy.
    budgets
        Only with `static`: Rᵢ in per cent, one for all tasks or one for each in the round's order. Empty
        means 100/(0.5 n) each (at most 100), the equal share that NVIDIA's guide names.
    objective
        Only with `fedmt`: what the budgets shall make large.
    virtual_resource
        Only with `fedmt`: the most R_v = Σ Rᵢ in per cent, at least 100; None sets no limit.
    model
        Only with `fedmt`: a file that `fedmt fit` wrote, on the device; empty takes the one that comes with
        the package.
    reallocate
        Only with `fedmt`: whether tasks get other budgets when one of them ends its share (§ VI-B).
    """

    policy: Policy
    budgets: tuple[float, ...] = ()
    objective: Objective = Objective.MAKESPAN
    virtual_resource: float | None = None
    model: str = ""
    reallocate: bool = True

    def __post_init__(self) -> None:
        problems: list[str] = []
        if self.budgets and self.policy is not Policy.STATIC:
            problems.append(
                f"budgets: got {list(self.budgets)} with {self.policy}, expected none; static takes them"
            )
        for name, value in (("virtual_resource", self.virtual_resource), ("model", self.model)):
            if value and self.policy is not Policy.FEDMT:
                problems.append(f"{name}: got {value} with {self.policy}, expected none; fedmt takes it")
        if self.virtual_resource is not None and not self.virtual_resource >= 100:
            problems.append(
                f"virtual_resource: got {self.virtual_resource:g} %, expected at least 100, or none"
            )
        for position, budget in enumerate(self.budgets):
            try:
                check_budget(f"task {position + 1}", budget)
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(*problems)
