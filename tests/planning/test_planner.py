from dataclasses import replace

import numpy as np
import pytest

from fedmt_flower.domain.allocation import Objective
from fedmt_flower.domain.coordination import Batching
from fedmt_flower.domain.network import Link, Overlap, Volume
from fedmt_flower.domain.profile import DeviceFeatures, TaskFeatures
from fedmt_flower.domain.timeline import Phase
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.budgets import BudgetProblem
from fedmt_flower.planning.planner import PlanRequest, pays, plan_device_round
from fedmt_flower.planning.throughput import Array, CoRuns
from fedmt_flower.planning.workload import Workload
from fedmt_flower.planning.xgboost_model import XGBoostModel

SIZES = {"v16": 55, "r18": 45, "m3": 15}
SAMPLES = (12000, 24000, 36000)


@pytest.fixture
def request_(device: DeviceFeatures, zoo: dict[str, TaskFeatures]) -> PlanRequest:
    return PlanRequest(
        problem=BudgetProblem(
            device=device,
            tasks=tuple(zoo[name] for name in SIZES),
            batches=((64, 128, 256),) * 3,
            levels=((20.0, 40.0, 60.0, 80.0, 100.0),) * 3,
            samples=SAMPLES,
        ),
        volumes=tuple(
            Volume(task=name, samples=samples, download_bytes=size * 10**6, upload_bytes=size * 10**6)
            for (name, size), samples in zip(SIZES.items(), SAMPLES, strict=True)
        ),
        link=Link(up_mbps=400, down_mbps=400),
    )


def test_a_plan_names_every_task_once_and_its_timeline_ends_with_the_makespan(
    request_: PlanRequest, fitted: XGBoostModel
) -> None:
    for overlap in Overlap:
        planned = plan_device_round(replace(request_, overlap=overlap), fitted)
        assert sorted(task.task for task in planned.plan.tasks) == sorted(SIZES)
        assert planned.forecast.timeline[-1].end_s <= planned.forecast.makespan_s
        assert max(s.end_s for s in planned.forecast.timeline) == pytest.approx(planned.forecast.makespan_s)
        assert planned.forecast.lower_bound_s <= planned.forecast.makespan_s
        assert planned.forecast.constant_s >= planned.forecast.makespan_s * 0.999
        downloads = [span.task for span in planned.forecast.timeline if span.phase is Phase.DOWNLOAD]
        assert downloads == [task.task for task in planned.plan.tasks]


def test_overlap_shortens_the_round_and_flexible_most(request_: PlanRequest, fitted: XGBoostModel) -> None:
    spans = {
        overlap: plan_device_round(replace(request_, overlap=overlap), fitted).forecast.makespan_s
        for overlap in Overlap
    }
    assert spans[Overlap.FLEXIBLE] <= min(spans[Overlap.FIFO], spans[Overlap.WORKLOAD])
    assert spans[Overlap.FLEXIBLE] * 1.25 < spans[Overlap.OFF]
    assert spans[Overlap.FIFO] <= spans[Overlap.SERIAL] + 1e-9


class Crowded:
    """Rates that fall where budgets add up to more than 150 %."""

    monotone = False

    def __init__(self, model: XGBoostModel) -> None:
        self._model = model

    def rates(self, runs: CoRuns) -> Array:
        excess = np.maximum(0.0, runs.budgets.sum(axis=1, keepdims=True) / 100.0 - 1.5)
        return self._model.rates(runs) / (1.0 + 0.5 * excess)


@pytest.mark.parametrize("overlap", [Overlap.FIFO, Overlap.FLEXIBLE])
def test_budgets_keep_a_lower_limit_too(
    request_: PlanRequest, fitted: XGBoostModel, overlap: Overlap
) -> None:
    for least in (180.0, 220.0, 260.0):
        problem = replace(request_.problem, virtual_resource=(least, 300.0))
        planned = plan_device_round(replace(request_, problem=problem, overlap=overlap), Crowded(fitted))
        assert least <= planned.plan.virtual_resource <= 300.0


def test_budgets_are_left_for_what_promises_more_than_caution_asks_or_for_a_limit(
    request_: PlanRequest, fitted: XGBoostModel
) -> None:
    problem = replace(request_.problem, caution=0.03)
    present = plan_device_round(request_, fitted)

    def promising(gain: float) -> bool:
        forecast = replace(present.forecast, makespan_s=present.forecast.makespan_s / gain)
        return pays(replace(present, forecast=forecast), present, problem)

    assert not promising(1.02)
    assert promising(1.04)
    total = sum(place.budget for place in present.plan.tasks)
    assert pays(present, present, replace(problem, virtual_resource=(0.0, total - 1.0)))
    raw = replace(problem, objective=Objective.RAW)
    assert not pays(present, present, raw)
    assert pays(
        replace(present, chosen=replace(present.chosen, score=1.04 * present.chosen.score)), present, raw
    )


def test_budgets_by_set_come_with_reallocation_only(request_: PlanRequest, fitted: XGBoostModel) -> None:
    flexible = replace(request_, overlap=Overlap.FLEXIBLE)
    held = plan_device_round(flexible, fitted)
    changing = plan_device_round(replace(flexible, reallocates=True, handover_s=0.0), fitted)
    assert held.budgets == {}
    assert len(changing.budgets) == 7
    for tasks, budgets in changing.budgets.items():
        assert set(budgets) == tasks
        assert all(0 < budget <= 100 for budget in budgets.values())
    full = changing.budgets[frozenset(SIZES)]
    assert {task.task: task.budget for task in changing.plan.tasks} == full
    assert changing.forecast.makespan_s <= held.forecast.makespan_s + 1e-9


def test_proportional_batches_follow_the_loads_and_show_their_front(
    request_: PlanRequest, fitted: XGBoostModel
) -> None:
    asked = replace(request_, batching=Batching.PROPORTIONAL, epsilon=0.0)
    planned = plan_device_round(asked, fitted)
    by_volume = {task.task: task.batch_size for task in planned.plan.tasks}
    assert by_volume["v16"] < by_volume["m3"]
    assert planned.balance is not None
    assert planned.balance.front
    turned = plan_device_round(replace(asked, loads={"v16": 40000, "r18": 20000, "m3": 10000}), fitted)
    by_load = {task.task: task.batch_size for task in turned.plan.tasks}
    assert by_load["v16"] > by_load["m3"]


def test_a_plan_keeps_the_limits_on_memory_and_on_the_virtual_resource(
    request_: PlanRequest, fitted: XGBoostModel
) -> None:
    memory = ((64, 128, 256),) * 3
    problem = replace(request_.problem, memory=memory, memory_limit=330, virtual_resource=(0.0, 160.0))
    for reallocates in (False, True):
        planned = plan_device_round(
            replace(request_, problem=problem, overlap=Overlap.FLEXIBLE, reallocates=reallocates), fitted
        )
        assert sum(task.batch_size or 0 for task in planned.plan.tasks) <= 330
        assert planned.plan.virtual_resource <= 160.0
        assert all(sum(budgets.values()) <= 160.0 for budgets in planned.budgets.values())


def test_a_fixed_batch_and_given_budgets_are_left_alone(request_: PlanRequest, fitted: XGBoostModel) -> None:
    problem = replace(request_.problem, batches=((128,),) * 3, levels=((60.0,),) * 3)
    planned = plan_device_round(replace(request_, problem=problem, overlap=Overlap.FLEXIBLE), fitted)
    assert {task.batch_size for task in planned.plan.tasks} == {128}
    assert {task.budget for task in planned.plan.tasks} == {60.0}


def test_without_a_link_only_computation_takes_time(request_: PlanRequest, fitted: XGBoostModel) -> None:
    planned = plan_device_round(replace(request_, link=None), fitted)
    assert {span.phase for span in planned.forecast.timeline} == {Phase.COMPUTE}
    assert planned.forecast.makespan_s == pytest.approx(sum(SAMPLES) / planned.chosen.score)


def test_a_plan_over_a_link_is_no_longer_than_any_of_budgets_that_all_tasks_can_have(
    request_: PlanRequest, fitted: XGBoostModel
) -> None:
    every = tuple(float(level) for level in range(20, 101, 10))
    levels = ((12.0, 25.0, 50.0, 90.0, 100.0), every, every)
    samples = (36000, 6000, 6000)
    asked = replace(
        request_,
        problem=replace(request_.problem, batches=((128,),) * 3, levels=levels, samples=samples),
        volumes=tuple(replace(v, samples=n) for v, n in zip(request_.volumes, samples, strict=True)),
        overlap=Overlap.FIFO,
    )
    found = plan_device_round(asked, fitted).forecast.makespan_s
    for level in (50.0, 90.0, 100.0):
        even = replace(asked, problem=replace(asked.problem, levels=((level,),) * 3))
        assert found <= plan_device_round(even, fitted).forecast.makespan_s * (1 + 1e-9)


def test_other_objectives_keep_their_budgets(request_: PlanRequest, fitted: XGBoostModel) -> None:
    problem = replace(request_.problem, objective=Objective.FAIRNESS)
    asked = replace(request_, problem=problem, overlap=Overlap.FLEXIBLE, reallocates=True)
    planned = plan_device_round(asked, fitted)
    by_task = {task.task: task.budget for task in planned.plan.tasks}
    assert tuple(by_task[name] for name in SIZES) == planned.chosen.budgets


def test_the_workload_ranks_by_its_own_coefficients(request_: PlanRequest, fitted: XGBoostModel) -> None:
    asked = replace(request_, overlap=Overlap.WORKLOAD, workload=Workload(alpha=1e-13, beta=0.0))
    order = [task.task for task in plan_device_round(asked, fitted).plan.tasks]
    assert order == ["r18", "v16", "m3"]


def test_volumes_of_other_tasks_are_refused(request_: PlanRequest) -> None:
    with pytest.raises(ConfigError, match="got volumes of"):
        replace(request_, volumes=request_.volumes[::-1])
