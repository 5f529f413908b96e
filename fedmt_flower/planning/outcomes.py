"""What a plan gains, and over what: the same round under other limits and policies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from fedmt_flower.domain.plan import Sharing
from fedmt_flower.domain.timeline import Phase
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.budgets import BudgetProblem, common_levels
from fedmt_flower.planning.case import Case
from fedmt_flower.planning.planner import PlannedRound

_POINTS: Final = 12
"""Parts into which a sweep cuts the range of R_v."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a plan of a round promises; every figure is of one and the same plan.

    Parameters
    ----------
    scheme
        What it is called.
    virtual_resource
        R_v = Σ Rᵢ in per cent.
    raw, fairness, smallest_share
        Σ Pᵢ in samples/s, Σ Pᵢ/P_bᵢ (Eq. 2) and the smallest Pᵢ/P_bᵢ, while all tasks compute. In turn they
        are those of equal time: an nth of each solo rate.
    makespan_s
        Seconds of the round.
    """

    scheme: str
    virtual_resource: float
    raw: float
    fairness: float
    smallest_share: float
    makespan_s: float


def outcome(scheme: str, case: Case, planned: PlannedRound) -> Outcome:
    """The outcome of `planned`, a plan of `case`."""
    rates = dict(planned.forecast.rates)
    if case.request.sharing is Sharing.IN_TURN:
        rates = {task: rate / len(rates) for task, rate in rates.items()}
    shares = [rates[facts.features.task] / facts.features.solo_rate for facts in case.tasks]
    return Outcome(
        scheme=scheme,
        virtual_resource=planned.plan.virtual_resource,
        raw=sum(rates.values()),
        fairness=sum(shares),
        smallest_share=min(shares),
        makespan_s=planned.forecast.makespan_s,
    )


def sweep(case: Case) -> Iterator[Outcome]:
    """The best plan of every part of the range of R_v, budgets held for the whole round (Fig. 6)."""
    levels = case.request.problem.levels
    edges = np.linspace(sum(map(min, levels)), sum(map(max, levels)), _POINTS + 1)
    for below, most in zip([0.0, *edges[:-1]], edges, strict=True):
        # A hair more than the lower edge, which belongs to the part below.
        planned = _limited(case, (below * (1 + 1e-9), float(most)))
        if planned is not None:
            yield outcome(f"R_v up to {most:.0f} %", case, planned)


def equal_budgets(case: Case) -> Iterator[Outcome]:
    """The plans in which all tasks have one budget, for the whole round."""
    problem = case.request.problem
    for level in common_levels(problem.levels):
        fixed = replace(problem, levels=((level,),) * len(problem.tasks))
        planned = _limited(_with(case, fixed), problem.virtual_resource)
        if planned is not None:
            yield outcome(f"{level:.0f} % each", case, planned)


def by_remaining(planned: PlannedRound) -> Iterator[tuple[float, Mapping[str, float]]]:
    """When budgets change in the predicted round, in seconds, and to what: the budgets of those computing."""
    spans = [span for span in planned.forecast.timeline if span.phase is Phase.COMPUTE]
    before: Mapping[str, float] = {}
    for moment in sorted({span.start_s for span in spans} | {span.end_s for span in spans}):
        running = frozenset(span.task for span in spans if span.start_s <= moment < span.end_s)
        budgets = planned.budgets.get(running, {})
        if any(before.get(task, budget) != budget for task, budget in budgets.items()):
            yield moment, budgets
        before = {**before, **budgets}


def _limited(case: Case, limits: tuple[float, float]) -> PlannedRound | None:
    """The plan with R_v within `limits` and budgets held; None if there is none."""
    limited = _with(case, replace(case.request.problem, virtual_resource=limits))
    try:
        return limited.solve()
    except ConfigError:
        return None


def _with(case: Case, problem: BudgetProblem) -> Case:
    return replace(case, request=replace(case.request, problem=problem, reallocates=False))
