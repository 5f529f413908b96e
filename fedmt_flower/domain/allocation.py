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


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """A policy, and the budgets that the static one needs.

    Parameters
    ----------
    policy
        The policy.
    budgets
        Only with `static`: Rᵢ in per cent, one for all tasks or one for each in the round's order. Empty
        means 100/(0.5 n) each (at most 100), the equal share that NVIDIA's guide names.
    """

    policy: Policy
    budgets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.budgets and self.policy is not Policy.STATIC:
            raise ConfigError(
                f"allocation {self.policy}: takes no budgets, got {list(self.budgets)}; use static"
            )
        problems: list[str] = []
        for position, budget in enumerate(self.budgets):
            try:
                check_budget(f"task {position + 1}", budget)
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(*problems)
