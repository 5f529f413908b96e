"""What a device learns from the rounds that it has run (§ III-B)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from fedmt_flower.domain.plan import RoundPlan, Sharing
from fedmt_flower.domain.profile import TaskFeatures
from fedmt_flower.domain.round import RoundReport
from fedmt_flower.domain.timeline import Phase
from fedmt_flower.planning.correction import Correction, Moderation, Observation
from fedmt_flower.planning.features import saturation


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """What rounds have shown.

    Parameters
    ----------
    correction
        Factors on predicted rates.
    moderation
        The limit on R_v.
    solo
        P_bᵢ in samples/s of tasks that cannot be measured alone, as their first round suggests it.
    rounds
        Rounds that had a forecast to compare with.
    """

    correction: Correction = field(default_factory=Correction)
    moderation: Moderation = field(default_factory=Moderation)
    solo: Mapping[str, float] = field(default_factory=dict)
    rounds: int = 0

    def after(self, report: RoundReport) -> Experience:
        """What is known once a round has run; one without a forecast teaches solo rates."""
        if report.forecast is None:
            found = {task: rate for task, rate in solo_rates(report).items() if task not in self.solo}
            return replace(self, solo={**self.solo, **found})
        seen = observations(report)
        if not seen:
            return self
        known = [one for one in seen if (one.task, one.budget) in self.correction.factors]
        correction = self.correction.observed(seen)
        return Experience(
            correction=correction,
            moderation=self.moderation.observed(known, len(report.plan.tasks), correction.device),
            solo=self.solo,
            rounds=self.rounds + 1,
        )

    def is_near(self, other: Experience, tolerance: float) -> bool:
        """Whether a plan made with the one serves with the other: no factor differs by more than that."""
        return (
            self.moderation.limit == other.moderation.limit
            and self.solo == other.solo
            and self.correction.is_near(other.correction, tolerance)
        )


def observations(report: RoundReport) -> tuple[Observation, ...]:
    """Observed over predicted rates of a round, each over the task's whole computation."""
    if report.forecast is None:
        return ()
    spans = {span.task: span for span in report.forecast.timeline if span.phase is Phase.COMPUTE}
    reported = {task.task: task for task in report.tasks}
    seen = []
    for place in report.plan.tasks:
        task, span = reported.get(place.task), spans.get(place.task)
        if task is not None and span is not None and task.rate > 0:
            predicted = task.samples / (span.end_s - span.start_s)
            seen.append(Observation(task=place.task, budget=place.budget, ratio=task.rate / predicted))
    return tuple(seen)


def solo_rates(report: RoundReport) -> dict[str, float]:
    """P_bᵢ in samples/s that the rates of a round suggest, by the analytic estimate of what sharing took."""
    names = [place.task for place in report.plan.tasks]
    shares = dict(zip(names, expected_shares(report.plan), strict=True))
    return {task.task: task.rate / shares[task.task] for task in report.tasks if task.rate > 0}


def expected_shares(plan: RoundPlan) -> list[float]:
    """Pᵢ/P_bᵢ to expect of tasks of which nothing is known, while all of a round compute."""
    match plan.sharing:
        case Sharing.IN_TURN:
            return [1.0] * len(plan.tasks)
        case Sharing.TIME_SLICED:
            return [1.0 / len(plan.tasks)] * len(plan.tasks)
        case Sharing.CAPPED:
            unknown = tuple(
                TaskFeatures(task=place.task, model="", flops=1.0, traffic=1.0, solo_rate=1.0)
                for place in plan.tasks
            )
            budgets = np.array([[place.budget / 100.0] for place in plan.tasks])
            share, demand = saturation(unknown, budgets)
            return [float(one) for one in (share / max(1.0, float(demand.sum()))).ravel()]


def finish_times(report: RoundReport, tasks: Iterable[str]) -> dict[str, float]:
    """When each task had computed, in seconds since the first one began to."""
    computed = [span for span in report.timeline if span.phase is Phase.COMPUTE]
    if not computed or report.plan.sharing is Sharing.IN_TURN:
        return {}
    begun = min(span.start_s for span in computed)
    wanted = set(tasks)
    ends: dict[str, float] = {}
    for span in computed:
        if span.task in wanted:
            ends[span.task] = max(ends.get(span.task, 0.0), span.end_s - begun)
    return ends
