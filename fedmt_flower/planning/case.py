"""A round to plan, with the knowledge to plan it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fedmt_flower.domain.plan import DevicePlan, Sharing
from fedmt_flower.planning.correction import CorrectedModel
from fedmt_flower.planning.experience import Experience
from fedmt_flower.planning.framing import TaskFacts
from fedmt_flower.planning.planner import PlannedRound, PlanRequest, plan_device_round
from fedmt_flower.planning.throughput import ThroughputModel
from fedmt_flower.planning.trivial import EqualSlowdownModel
from fedmt_flower.planning.whole_units import WholeUnits

NEAR: Final = 0.05
"""By how much, in logarithms, what is known may have moved since a plan that is still used."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """A round to plan, and what is known.

    Parameters
    ----------
    request
        The problem.
    model, basis
        What predicts how tasks share a device under budgets, and in a few words what that rests on.
    tasks
        The tasks of the request.
    experience
        What earlier rounds have shown.
    """

    request: PlanRequest
    model: ThroughputModel
    basis: str
    tasks: Sequence[TaskFacts]
    experience: Experience

    @property
    def predictor(self) -> ThroughputModel:
        """The model with which the round is planned."""
        capped = self.request.sharing is Sharing.CAPPED
        model: ThroughputModel = WholeUnits(model=self.model) if capped else EqualSlowdownModel()
        return CorrectedModel(model=model, correction=self.experience.correction)

    def solve(self) -> PlannedRound:
        """Plan the round.

        Raises
        ------
        ConfigError
            If nothing that the request allows keeps its limits.
        """
        planned = plan_device_round(self.request, self.predictor)
        return replace(planned, forecast=replace(planned.forecast, basis=self._basis()))

    def at(self, budgets: Mapping[str, float]) -> Case:
        """The case of the same round with each task's budget given, in per cent."""
        problem = self.request.problem
        given = replace(
            problem,
            levels=tuple((budgets[task.task],) for task in problem.tasks),
            virtual_resource=(0.0, math.inf),
        )
        return replace(self, request=replace(self.request, problem=given, reallocates=False))

    def device_plan(self, planned: PlannedRound) -> DevicePlan:
        """`planned` for the device, which is told only the batch sizes that differ from a task's own."""
        own = {facts.features.task: facts.features.reference_batch for facts in self.tasks}
        places = tuple(
            replace(place, batch_size=None) if place.batch_size == own[place.task] else place
            for place in planned.plan.tasks
        )
        return DevicePlan(
            plan=replace(planned.plan, tasks=places), forecast=planned.forecast, budgets=planned.budgets
        )

    def serves(self, other: Case) -> bool:
        """Whether a plan of this case is as good for `other`."""
        return (
            self.model is other.model
            and replace(self.request, loads={}) == replace(other.request, loads={})
            and _near(self.request.loads, other.request.loads)
            and self.experience.is_near(other.experience, NEAR)
        )

    def _basis(self) -> str:
        match self.request.sharing:
            case Sharing.IN_TURN:
                basis = "solo rates"
            case Sharing.TIME_SLICED:
                basis = "equal slowdown"
            case Sharing.CAPPED:
                basis = self.basis
        rounds = self.experience.rounds
        if whole := [facts.features.task for facts in self.tasks if not facts.stepped]:
            basis = f"{basis}, {' and '.join(whole)} timed by whole rounds"
        return f"{basis}, corrected by {rounds} round{'s' * (rounds != 1)}" if rounds else basis


def _near(mine: Mapping[str, float], theirs: Mapping[str, float]) -> bool:
    return mine.keys() == theirs.keys() and all(
        abs(math.log(mine[task] / theirs[task])) <= NEAR for task in mine
    )
