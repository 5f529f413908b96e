"""A federated run on its device: what its planner knows, round after round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from fedmt_flower.device.planner.models import Chosen
from fedmt_flower.domain.allocation import Allocation, Policy
from fedmt_flower.domain.plan import DevicePlan, RoundPlan
from fedmt_flower.domain.round import RoundOrder, RoundReport
from fedmt_flower.planning.allocation import plan_round
from fedmt_flower.planning.case import Case
from fedmt_flower.planning.damping import Loads
from fedmt_flower.planning.experience import Experience, finish_times
from fedmt_flower.planning.framing import DeviceFacts, TaskFacts, frame

_SITES: Final = 256
"""So many sites' loads are kept; the longest unseen goes first."""


@dataclass(slots=True)
class Course:
    """What one run has shown on one device.

    Rates are the device's, so all its sites teach them; loads are each site's own.
    """

    experience: Experience = field(default_factory=Experience)
    _loads: dict[str, Loads] = field(default_factory=dict)
    _budgets: dict[str, float] = field(default_factory=dict)

    def case(
        self, order: RoundOrder, device: DeviceFacts, tasks: Sequence[TaskFacts], chosen: Chosen
    ) -> Case:
        """The round of `order` as it is to be planned now; ConfigError if it cannot be."""
        volumes = _volumes(tasks)
        loads = self._loads.get(order.site, Loads()).seen(volumes)
        request = frame(
            order.allocation,
            order.coordination,
            device,
            tasks,
            loads={task: loads.of(task) for task in volumes},
            virtual_resource=self.experience.moderation.limit,
        )
        return Case(
            request=request,
            model=chosen.model,
            basis=chosen.basis,
            tasks=tasks,
            experience=self.experience,
        )

    def begin(self, order: RoundOrder, tasks: Sequence[TaskFacts], planned: DevicePlan) -> None:
        """Remember that a round begins."""
        loads = self._loads.pop(order.site, Loads())
        self._loads[order.site] = loads.seen(_volumes(tasks))
        while len(self._loads) > _SITES:
            del self._loads[next(iter(self._loads))]
        self._budgets |= {place.task: place.budget for place in planned.plan.tasks}

    def learn(self, report: RoundReport, tasks: Sequence[TaskFacts]) -> None:
        """Learn from how a round went."""
        self.experience = self.experience.after(report)
        if report.site in self._loads:
            volumes = _volumes(tasks)
            finished = finish_times(report, volumes)
            self._loads[report.site] = self._loads[report.site].finished(volumes, finished)

    def budgets(self, tasks: Iterable[str]) -> dict[str, float]:
        """The last budgets of `tasks` in per cent, 100 where there were none."""
        return {task: self._budgets.get(task, 100.0) for task in tasks}

    def without_training(self, order: RoundOrder) -> RoundPlan:
        """The plan of a round that only evaluates: at the last budgets, at 100 % where there were none."""
        plan = unpredicted(order)
        if order.allocation.policy is not Policy.FEDMT:
            return plan
        budgets = self.budgets(place.task for place in plan.tasks)
        return replace(plan, tasks=tuple(replace(place, budget=budgets[place.task]) for place in plan.tasks))

    def with_the_others(self, order: RoundOrder, planned: DevicePlan) -> DevicePlan:
        """`planned`, with the tasks that only evaluate after those that it has."""
        places = {place.task for place in planned.plan.tasks}
        others = [place for place in self.without_training(order).tasks if place.task not in places]
        return replace(planned, plan=replace(planned.plan, tasks=(*planned.plan.tasks, *others)))


def unpredicted(order: RoundOrder) -> RoundPlan:
    """The plan of a round of which nothing is predicted: for `fedmt`, equal shares of 200 %."""
    allocation = order.allocation
    if allocation.policy is Policy.FEDMT:
        allocation = Allocation(policy=Policy.STATIC)
    plan = plan_round(allocation, tuple(assignment.task.name for assignment in order.assignments))
    places = {place.task: place for place in plan.tasks}
    return replace(plan, tasks=tuple(places[task] for task in order.coordination.overlap.arrange(places)))


def _volumes(tasks: Sequence[TaskFacts]) -> Mapping[str, float]:
    return {facts.features.task: float(facts.volume.samples) for facts in tasks}
