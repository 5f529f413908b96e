"""A run's rounds on a made-up GPU: what its planner learns from how they went (§ V-B)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedmt_flower.bench.specimen import BUDGETS, DEVICE, ZOO, Contention
from fedmt_flower.device.planner.course import Course
from fedmt_flower.device.planner.models import Chosen
from fedmt_flower.domain.allocation import Allocation, Policy
from fedmt_flower.domain.coordination import Batching, BatchRules, Coordination
from fedmt_flower.domain.network import Overlap, Volume
from fedmt_flower.domain.plan import DevicePlan
from fedmt_flower.domain.profile import TaskFeatures
from fedmt_flower.domain.round import Assignment, Mode, RoundOrder, RoundReport, Status, TaskReport
from fedmt_flower.domain.task import Task
from fedmt_flower.domain.timeline import Phase
from fedmt_flower.planning.framing import DeviceFacts, TaskFacts
from fedmt_flower.planning.reallocation import RoundSetup, hold
from fedmt_flower.planning.simulator import Jobs, simulate, timeline

TRUTH = Contention()
MODEL = Chosen(model=TRUTH, basis="the truth", devices=(DEVICE.name,))
FACTS = DeviceFacts(features=DEVICE, levels=BUDGETS)
NAMES = ("r18", "v16", "m3")


def order_of(policy: Policy, batching: Batching) -> RoundOrder:
    tasks = (Task(name=name, model="m:f", data="d:f") for name in NAMES)
    return RoundOrder(
        run="run",
        round=1,
        site="site",
        assignments=tuple(Assignment(task=task, mode=Mode.TRAIN) for task in tasks),
        allocation=Allocation(policy=policy, reallocate=False),
        coordination=Coordination(batching=BatchRules(policy=batching)),
    )


def facts_of(volumes: dict[str, int], wrong: dict[str, float]) -> list[TaskFacts]:
    """What is believed of the tasks: some solo rates are `wrong` by a factor."""
    return [
        TaskFacts(
            features=replace(ZOO[name], solo_rate=ZOO[name].solo_rate * wrong.get(name, 1.0)),
            volume=Volume(task=name, samples=volumes[name]),
            examples=volumes[name],
        )
        for name in NAMES
    ]


def played(planned: DevicePlan, volumes: dict[str, int]) -> RoundReport:
    """The round as it truly goes."""
    places = planned.plan.tasks
    features: tuple[TaskFeatures, ...] = tuple(ZOO[place.task] for place in places)
    jobs = Jobs.over([Volume(task=place.task, samples=volumes[place.task]) for place in places], None)
    setup = RoundSetup(
        model=TRUTH,
        device=DEVICE,
        tasks=features,
        jobs=jobs,
        batches=np.array(
            [[float(p.batch_size or t.reference_batch)] for p, t in zip(places, features, strict=True)]
        ),
        levels=(BUDGETS,) * len(places),
    )
    table = hold(setup, np.array([[place.budget] for place in places])).table
    n = len(places)
    spans = timeline(
        jobs, simulate(jobs, table, np.arange(n), np.zeros(n, dtype=np.intp), overlap=Overlap.OFF)
    )
    return RoundReport(
        site="site",
        round=1,
        plan=planned.plan,
        tasks=tuple(
            TaskReport(
                task=span.task,
                status=Status.DONE,
                samples=volumes[span.task],
                compute_s=span.end_s - span.start_s,
            )
            for span in spans
        ),
        timeline=spans,
        backend="mps",
        waited_s=0.0,
        wall_s=max(span.end_s for span in spans),
        forecast=planned.forecast,
    )


def one_round(course: Course, order: RoundOrder, facts: list[TaskFacts]) -> RoundReport:
    case = course.case(order, FACTS, facts, MODEL)
    planned = case.device_plan(case.solve())
    course.begin(order, facts, planned)
    report = played(planned, {one.features.task: one.volume.samples for one in facts})
    course.learn(report, facts)
    return report


def ends(report: RoundReport) -> list[float]:
    return [span.end_s for span in report.timeline if span.phase is Phase.COMPUTE]


def test_a_first_rate_that_is_thrice_too_high_is_made_good_within_three_rounds() -> None:
    """The ends of the tasks come closer, and the round gets shorter."""
    facts = facts_of({"r18": 60_000, "v16": 60_000, "m3": 30_000}, {"v16": 3.0})
    course, order = Course(), order_of(Policy.FEDMT, Batching.FIXED)
    rounds = [ends(one_round(course, order, facts)) for _ in range(4)]
    spreads = [max(one) - min(one) for one in rounds]
    assert spreads[3] < 0.5 * spreads[0]
    assert spreads == sorted(spreads, reverse=True)
    assert max(rounds[3]) < 0.8 * max(rounds[0])


def batches_of(course: Course, jumping: int) -> dict[str, int]:
    facts = facts_of({"r18": jumping, "v16": 20_000, "m3": 20_000}, {})
    report = one_round(course, order_of(Policy.SHARING, Batching.PROPORTIONAL), facts)
    return {place.task: place.batch_size or ZOO[place.task].reference_batch for place in report.plan.tasks}


def test_batch_sizes_do_not_swing_with_a_volume_that_jumps_fivefold_each_round() -> None:
    """Without a memory their ratio goes with the volume; with one it moves by one size at most."""

    def swing(before: dict[str, int], after: dict[str, int]) -> float:
        change = (after["r18"] / after["v16"]) / (before["r18"] / before["v16"])
        return max(change, 1 / change)

    jumps = [10_000, 50_000] * 5
    anew = [batches_of(Course(), jump) for jump in jumps[:2]]
    assert swing(*anew) >= 4
    course = Course()
    seen = [batches_of(course, jump) for jump in jumps]
    assert max(map(swing, seen, seen[1:])) <= 2
