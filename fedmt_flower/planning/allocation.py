"""The budgets Rᵢ of a round whose policy needs no prediction."""

from __future__ import annotations

from fedmt_flower.domain.allocation import Allocation, Policy
from fedmt_flower.domain.plan import RoundPlan, Sharing, TaskPlan
from fedmt_flower.errors import ConfigError

_SHARING = {Policy.TEMPORAL: Sharing.IN_TURN, Policy.TIMESLICE: Sharing.TIME_SLICED}


def plan_round(allocation: Allocation, tasks: tuple[str, ...]) -> RoundPlan:
    """Plan a round of `tasks`, started in the order given, under `allocation`.

    Raises
    ------
    ConfigError
        If a static allocation lists neither one budget nor one for each task, or the policy is `fedmt`,
        whose budgets a throughput model chooses (`planning.planner`).
    """
    budgets = _budgets(allocation, len(tasks))
    return RoundPlan(
        tasks=tuple(TaskPlan(task=task, budget=r) for task, r in zip(tasks, budgets, strict=True)),
        sharing=_SHARING.get(allocation.policy, Sharing.CAPPED),
    )


def _budgets(allocation: Allocation, n: int) -> tuple[float, ...]:
    match allocation.policy:
        case Policy.ISOLATED:
            return (100.0 / n,) * n
        case Policy.STATIC if not allocation.budgets:
            return (min(100.0, 100.0 / (0.5 * n)),) * n
        case Policy.STATIC if len(allocation.budgets) == 1:
            return allocation.budgets * n
        case Policy.STATIC if len(allocation.budgets) != n:
            raise ConfigError(
                f"allocation static: got {len(allocation.budgets)} budgets for {n} tasks, "
                "expected one for all or one for each"
            )
        case Policy.STATIC:
            return allocation.budgets
        case Policy.TEMPORAL | Policy.TIMESLICE | Policy.SHARING:
            return (100.0,) * n
        case Policy.FEDMT:
            raise ConfigError("allocation fedmt: its budgets need a throughput model and measured tasks")
