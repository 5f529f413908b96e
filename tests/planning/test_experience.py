"""What rounds teach: factors, solo rates, and a virtual resource that an outside load lowers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest

from fedmt_flower.domain.allocation import Allocation, Policy
from fedmt_flower.domain.coordination import Coordination
from fedmt_flower.domain.network import Volume
from fedmt_flower.domain.plan import RoundPlan, Sharing, TaskPlan
from fedmt_flower.domain.profile import DeviceFeatures, TaskFeatures
from fedmt_flower.domain.round import RoundReport, Status, TaskReport
from fedmt_flower.domain.timeline import Phase, Span
from fedmt_flower.planning.budgets import BudgetProblem
from fedmt_flower.planning.case import Case
from fedmt_flower.planning.correction import Correction, Moderation
from fedmt_flower.planning.experience import Experience, expected_shares, finish_times, observations
from fedmt_flower.planning.framing import DeviceFacts, TaskFacts, frame
from fedmt_flower.planning.throughput import ThroughputModel

LEVELS = (20.0, 40.0, 60.0, 80.0, 100.0)
VOLUMES = {"v16": 24000, "r18": 36000, "m3": 12000}


def facts(zoo: Mapping[str, TaskFeatures], volumes: Mapping[str, int]) -> tuple[TaskFacts, ...]:
    return tuple(
        TaskFacts(features=zoo[name], volume=Volume(task=name, samples=samples), examples=samples)
        for name, samples in volumes.items()
    )


@pytest.fixture
def tasks(zoo: dict[str, TaskFeatures]) -> tuple[TaskFacts, ...]:
    return facts(zoo, VOLUMES)


def run(case: Case, speed: float) -> RoundReport:
    """The round of a case on a device that is `speed` times as fast as the case's model says by itself."""
    planned = case.solve()
    truth = replace(case, experience=Experience())
    table = replace(truth, request=replace(case.request, problem=_held(case, planned.plan))).solve()
    spans = {s.task: s for s in table.forecast.timeline if s.phase is Phase.COMPUTE}
    return RoundReport(
        site="s",
        round=1,
        plan=planned.plan,
        tasks=tuple(
            TaskReport(
                task=volume.task,
                status=Status.DONE,
                samples=volume.samples,
                compute_s=(spans[volume.task].end_s - spans[volume.task].start_s) / speed,
            )
            for volume in case.request.volumes
        ),
        timeline=(),
        backend="mps",
        waited_s=0.0,
        wall_s=1.0,
        forecast=planned.forecast,
    )


def _held(case: Case, plan: RoundPlan) -> BudgetProblem:
    budgets = {place.task: (place.budget,) for place in plan.tasks}
    problem = case.request.problem
    return replace(
        problem, levels=tuple(budgets[task.task] for task in problem.tasks), virtual_resource=(0, 1e9)
    )


def rounds(
    device: DeviceFacts, tasks: tuple[TaskFacts, ...], truth: ThroughputModel, speeds: Iterable[float]
) -> tuple[list[RoundReport], Experience]:
    """Rounds on a device as fast as `speeds` says of each, and what their plans have learnt in the end."""
    experience, reports = Experience(), []
    for speed in speeds:
        request = frame(
            Allocation(policy=Policy.FEDMT, reallocate=False),
            Coordination(),
            device,
            tasks,
            loads={},
            virtual_resource=experience.moderation.limit,
        )
        case = Case(request=request, model=truth, basis="truth", tasks=tasks, experience=experience)
        reports.append(run(case, speed))
        experience = experience.after(reports[-1])
    return reports, experience


def test_an_outside_load_lowers_the_virtual_resource_until_it_has_gone(
    device: DeviceFeatures, tasks: tuple[TaskFacts, ...], truth: ThroughputModel
) -> None:
    speeds = (1.0, 1.0, 0.4, 0.4, 0.4, *[1.0] * 14)
    reports, experience = rounds(DeviceFacts(features=device, levels=LEVELS), tasks, truth, speeds)
    resources = [report.plan.virtual_resource for report in reports]
    alone = resources[0]
    assert resources[:3] == [alone] * 3
    assert min(resources[3:6]) <= 0.86 * alone
    assert experience.moderation.limit == float("inf")
    assert resources[-1] >= 0.95 * alone
    assert max(abs(one.ratio - 1.0) for one in observations(reports[-1])) < 0.1


def test_budgets_that_no_plan_takes_any_more_recover_from_a_load_too(
    device: DeviceFeatures, zoo: dict[str, TaskFeatures], truth: ThroughputModel
) -> None:
    """Their own rates are seen no more: d121 had best run at 10 %, and would run at 30 % for ever after."""
    fine = DeviceFacts(features=device, levels=tuple(map(float, range(10, 101, 10))))
    tasks = facts(zoo, {"r101": 24000, "m3": 36000, "d121": 12000})
    reports, _ = rounds(fine, tasks, truth, [*[1.0] * 2, *[0.3] * 8, *[1.0] * 8])
    budgets = [{place.task: place.budget for place in report.plan.tasks} for report in reports]
    assert budgets[0]["d121"] == 10.0
    assert budgets[5] != budgets[0]
    assert budgets[-4:] == [budgets[0]] * 4


def test_a_deviation_seen_for_the_first_time_is_the_models_error_and_no_contention(
    device: DeviceFeatures, tasks: tuple[TaskFacts, ...], truth: ThroughputModel
) -> None:
    request = frame(
        Allocation(policy=Policy.FEDMT),
        Coordination(),
        DeviceFacts(features=device, levels=LEVELS),
        tasks,
        loads={},
    )
    case = Case(request=request, model=truth, basis="truth", tasks=tasks, experience=Experience())
    learnt = Experience().after(run(case, 0.3))
    assert learnt.moderation.limit == float("inf")
    assert {task for task, _ in learnt.correction.factors} == set(VOLUMES)
    assert learnt.correction.device == pytest.approx(0.3**0.5, rel=0.1)
    assert learnt.rounds == 1


@pytest.mark.parametrize(
    ("sharing", "share"), [(Sharing.IN_TURN, 1.0), (Sharing.TIME_SLICED, 1 / 3), (Sharing.CAPPED, 2 / 3)]
)
def test_a_round_without_a_forecast_teaches_solo_rates_once(sharing: Sharing, share: float) -> None:
    plan = RoundPlan(tasks=tuple(TaskPlan(task=name, budget=100.0) for name in "abc"), sharing=sharing)
    assert expected_shares(plan) == pytest.approx([share] * 3)
    report = RoundReport(
        site="s",
        round=1,
        plan=plan,
        tasks=(
            TaskReport(task="a", status=Status.DONE, samples=200, compute_s=2.0),
            TaskReport(task="b", status=Status.DONE, samples=600, compute_s=2.0),
            TaskReport(task="c", status=Status.FAILED, error="gone"),
        ),
        timeline=(),
        backend="cpu",
        waited_s=0.0,
        wall_s=2.0,
    )
    learnt = Experience(solo={"b": 7.0}).after(report)
    assert learnt.solo == pytest.approx({"a": 100 / share, "b": 7.0})
    assert learnt.rounds == 0


def test_experiences_are_near_while_no_factor_moved_by_more_than_the_tolerance() -> None:
    before = Experience(correction=Correction(factors={("a", 60.0): 1.0}))
    near = Experience(correction=Correction(factors={("a", 60.0): 1.04, ("b", 40.0): 0.97}), rounds=3)
    far = Experience(correction=Correction(factors={("a", 60.0): 1.06}))
    assert before.is_near(near, 0.05)
    assert not before.is_near(far, 0.05)
    assert not before.is_near(replace(before, moderation=Moderation(limit=170.0)), 0.05)
    assert not before.is_near(replace(before, solo={"a": 9.0}), 0.05)


def test_finish_times_count_from_the_first_step_and_mean_nothing_in_turn() -> None:
    spans = (
        Span(task="a", phase=Phase.COMPUTE, start_s=2.0, end_s=3.0),
        Span(task="b", phase=Phase.COMPUTE, start_s=2.5, end_s=6.0),
        Span(task="a", phase=Phase.COMPUTE, start_s=3.5, end_s=4.0),
        Span(task="b", phase=Phase.UPLOAD, start_s=6.0, end_s=9.0),
    )
    plan = RoundPlan(tasks=(TaskPlan(task="a", budget=60.0),), sharing=Sharing.CAPPED)
    report = RoundReport(
        site="s", round=1, plan=plan, tasks=(), timeline=spans, backend="cpu", waited_s=0.0, wall_s=9.0
    )
    assert finish_times(report, ["a", "b"]) == {"a": 2.0, "b": 4.0}
    assert finish_times(report, ["a"]) == {"a": 2.0}
    assert finish_times(replace(report, plan=replace(plan, sharing=Sharing.IN_TURN)), ["a"]) == {}
