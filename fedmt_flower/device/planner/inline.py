"""The plans of rounds whose tasks run in the calling process, in turn."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, TypeVar

from fedmt_flower.device.contract import Weights
from fedmt_flower.device.ipc.frames import Appraise, Appraised, Failed
from fedmt_flower.device.planner.appraisal import (
    Examined,
    Steps,
    examine,
    expect,
    facts_of,
    job_to_measure,
)
from fedmt_flower.device.planner.course import Course, unpredicted
from fedmt_flower.device.planner.models import ANALYTIC
from fedmt_flower.device.training.runtime import TaskRuntime
from fedmt_flower.device.worker.measuring import Answer, Measurer, Order
from fedmt_flower.domain.allocation import Allocation, Policy
from fedmt_flower.domain.plan import DevicePlan
from fedmt_flower.domain.profile import DeviceFeatures
from fedmt_flower.domain.round import Assignment, RoundOrder, RoundReport
from fedmt_flower.domain.task import TaskKind
from fedmt_flower.errors import TaskError
from fedmt_flower.planning.framing import DeviceFacts, TaskFacts, needs_prediction, offered_batches

log = logging.getLogger(__name__)

_IN_TURN: Final = Allocation(policy=Policy.TEMPORAL)
_HERE: Final = DeviceFacts(
    features=DeviceFeatures(name="inline", units=1, peak=1.0, bandwidth=1.0), levels=(100.0,)
)
"""In turn, no rate depends on what the device is."""

T = TypeVar("T")


class InlinePlanner:
    """As `fedmt_flower.device.planner.planner.Planner`, of batch sizes and start orders alone."""

    def __init__(self) -> None:
        self._courses: dict[str, Course] = {}
        self._examined: dict[str, Examined] = {}
        self._known: tuple[TaskFacts, ...] = ()

    def plan(
        self, order: RoundOrder, runtimes: Mapping[str, TaskRuntime], weights: Mapping[str, Weights]
    ) -> DevicePlan:
        """How `order` is run; ConfigError if what it asks for cannot be planned."""
        self._known = ()
        if order.allocation.policy is Policy.FEDMT:
            order = replace(order, allocation=_IN_TURN)
        training = [assignment for assignment in order.assignments if assignment.mode.trains]
        if not training or not needs_prediction(_IN_TURN, order.coordination):
            return DevicePlan(plan=unpredicted(order))
        order = replace(order, allocation=_IN_TURN)
        course = self._courses.setdefault(order.run, Course())
        known = []
        for assignment in training:
            name = assignment.task.name
            size = sum(array.nbytes for array in weights[name].values())
            try:
                facts = self._look(order, assignment, runtimes[name], size, course.experience.solo.get(name))
            except TaskError as error:
                log.warning("round %d of site %s is not predicted. %s", order.round, order.site, error)
                return DevicePlan(plan=unpredicted(order))
            if facts is not None:
                known.append(facts)
        self._known = tuple(known)
        if len(known) < len(training):
            return DevicePlan(plan=unpredicted(order))
        case = course.case(order, _HERE, known, ANALYTIC)
        plan = course.with_the_others(order, case.device_plan(case.solve()))
        course.begin(order, known, plan)
        return plan

    def observe(self, order: RoundOrder, report: RoundReport) -> None:
        """Learn from how `order` went."""
        if order.run in self._courses:
            self._courses[order.run].learn(report, self._known)

    def _look(
        self,
        order: RoundOrder,
        assignment: Assignment,
        runtime: TaskRuntime,
        size: int,
        solo: float | None,
    ) -> TaskFacts | None:
        """What is known of a task; None if it has to be seen in a round first."""
        task, job = assignment.task, job_to_measure(order, assignment)
        measurer = Measurer(runtime)
        appraised = expect(Appraised, _ask(measurer, Appraise(job=job)))
        offered = offered_batches(
            order.coordination.batching, task.name, appraised.batch, appraised.examples, appraised.adapts
        )
        key = repr((order.run, replace(task, parameters={}), appraised.batch, offered))
        if key not in self._examined:
            # In turn, what a task costs changes nobody's rate: only its speed has to be known.
            found = Examined(flops=1.0, traffic=1.0)
            if task.kind is TaskKind.STEPPED:
                on_gpu = runtime.device.type == "cuda"
                alone = examine(job, appraised.batch, offered, gpu=on_gpu, device=False)
                found = _carry(measurer, alone)
            self._examined[key] = found
        seen = self._examined[key]
        solo = seen.speeds.get(appraised.batch, solo)
        return None if solo is None else facts_of(task, size, appraised, seen, solo)


def _carry(measurer: Measurer, steps: Steps[T]) -> T:
    """Carry `steps` to `measurer`."""
    try:
        order = next(steps)
        while True:
            try:
                answer = _ask(measurer, order)
            except TaskError as error:
                order = steps.throw(error)
            else:
                order = steps.send(answer)
    except StopIteration as end:
        found: T = end.value
        return found


def _ask(measurer: Measurer, order: Order) -> Answer:
    answer = measurer.answer(order)
    if isinstance(answer, Failed):
        raise TaskError(answer.error)
    return answer
