"""From an order and what is known of its tasks to the problem of its plan."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from fedmt_flower.domain.allocation import Allocation, Objective, Policy
from fedmt_flower.domain.coordination import (
    Batching,
    BatchRules,
    Coordination,
    NetworkRules,
    OverlapRules,
)
from fedmt_flower.domain.network import Link, Overlap, Volume
from fedmt_flower.domain.plan import Sharing
from fedmt_flower.domain.profile import DeviceFeatures, TaskFeatures
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.analytic import AnalyticModel, ThreadModel
from fedmt_flower.planning.batching import batch_choices
from fedmt_flower.planning.case import Case
from fedmt_flower.planning.experience import Experience
from fedmt_flower.planning.framing import DeviceFacts, TaskFacts, frame, needs_prediction, workload_of
from fedmt_flower.planning.outcomes import by_remaining, equal_budgets, outcome, sweep
from fedmt_flower.planning.throughput import CoRuns
from fedmt_flower.planning.trivial import EqualSlowdownModel
from fedmt_flower.planning.whole_units import WholeUnits

FEDMT = Allocation(policy=Policy.FEDMT)
SPEEDS = {64: 0.7, 128: 1.0, 256: 1.2}
LINK = Link(up_mbps=400, down_mbps=400)
ISOLATED = Allocation(policy=Policy.ISOLATED)
ADAPTING = Coordination(batching=BatchRules(policy=Batching.PROPORTIONAL))


@pytest.fixture
def gpu(device: DeviceFeatures) -> DeviceFacts:
    return DeviceFacts(features=device, levels=(20.0, 40.0, 60.0, 80.0, 100.0))


@pytest.fixture
def tasks(zoo: dict[str, TaskFeatures]) -> tuple[TaskFacts, ...]:
    return tuple(
        TaskFacts(
            features=replace(
                zoo[name],
                batch_rates=tuple((b, part * zoo[name].solo_rate) for b, part in SPEEDS.items()),
            ),
            volume=Volume(task=name, samples=samples, download_bytes=4 * 10**7, upload_bytes=4 * 10**7),
            examples=samples,
        )
        for name, samples in {"v16": 24000, "r18": 36000, "m3": 12000}.items()
    )


def case_of(
    allocation: Allocation, coordination: Coordination, gpu: DeviceFacts, tasks: tuple[TaskFacts, ...]
) -> Case:
    loads = {facts.features.task: float(facts.volume.samples) for facts in tasks}
    request = frame(allocation, coordination, gpu, tasks, loads=loads)
    return Case(
        request=request,
        model=AnalyticModel(),
        basis="analytic model",
        tasks=tasks,
        experience=Experience(),
    )


def test_a_task_has_only_budgets_in_which_its_steps_are_right(
    gpu: DeviceFacts, tasks: tuple[TaskFacts, ...]
) -> None:
    tasks = (replace(tasks[0], levels=(25.0, 50.0, 100.0)), *tasks[1:])

    def levels_of(allocation: Allocation) -> tuple[tuple[float, ...], ...]:
        return frame(allocation, Coordination(), gpu, tasks, loads={}).problem.levels

    assert levels_of(FEDMT) == ((25.0, 50.0, 100.0), gpu.levels, gpu.levels)
    assert levels_of(Allocation(policy=Policy.STATIC, budgets=(80.0,))) == ((50.0,), (80.0,), (80.0,))
    assert levels_of(Allocation(policy=Policy.STATIC, budgets=(20.0,))) == ((20.0,),) * 3


@pytest.mark.parametrize(
    ("allocation", "coordination", "needed"),
    [
        (ISOLATED, Coordination(), False),
        (ISOLATED, Coordination(overlap=OverlapRules(policy=Overlap.FIFO)), False),
        (ISOLATED, Coordination(overlap=OverlapRules(policy=Overlap.WORKLOAD)), True),
        (ISOLATED, Coordination(batching=BatchRules(choices=(8, 16))), True),
        (ISOLATED, Coordination(network=NetworkRules(link=LINK)), True),
        (ISOLATED, ADAPTING, True),
        (FEDMT, Coordination(), True),
    ],
)
def test_only_what_depends_on_rates_is_predicted(
    allocation: Allocation, coordination: Coordination, needed: bool
) -> None:
    assert needs_prediction(allocation, coordination) is needed


def test_fixed_policies_have_one_level_for_each_task_in_the_configured_start_order(
    gpu: DeviceFacts, tasks: tuple[TaskFacts, ...]
) -> None:
    static = Allocation(policy=Policy.STATIC, budgets=(80.0, 40.0, 60.0))
    ordered = Coordination(
        overlap=OverlapRules(policy=Overlap.FIFO, order=("m3", "v16")), network=NetworkRules(link=LINK)
    )
    request = frame(static, ordered, gpu, tasks, loads={})
    assert [task.task for task in request.problem.tasks] == ["m3", "v16", "r18"]
    assert request.problem.levels == ((60.0,), (80.0,), (40.0,))
    assert not request.reallocates
    planned = case_of(static, ordered, gpu, tasks).solve()
    assert [(p.task, p.budget) for p in planned.plan.tasks] == [("m3", 60.0), ("v16", 80.0), ("r18", 40.0)]


def test_in_turn_tasks_compute_one_at_a_time_at_their_solo_rates(
    gpu: DeviceFacts, tasks: tuple[TaskFacts, ...]
) -> None:
    coordination = Coordination(
        overlap=OverlapRules(policy=Overlap.FLEXIBLE), network=NetworkRules(link=LINK)
    )
    case = case_of(Allocation(policy=Policy.TEMPORAL), coordination, gpu, tasks)
    planned = case.solve()
    assert planned.plan.sharing is Sharing.IN_TURN
    computing = [span for span in planned.forecast.timeline if span.phase == "compute"]
    for before, after in pairwise(computing):
        assert after.start_s >= before.end_s - 1e-9
    for facts in tasks:
        (span,) = [span for span in computing if span.task == facts.features.task]
        assert facts.volume.samples / (span.end_s - span.start_s) == pytest.approx(facts.features.solo_rate)
    total = sum(facts.volume.samples / facts.features.solo_rate for facts in tasks)
    assert planned.forecast.makespan_s >= total + 0.8 + 0.8
    assert (
        planned.forecast.lower_bound_s <= planned.forecast.makespan_s <= 1.05 * planned.forecast.lower_bound_s
    )
    told = outcome("temporal", case, planned)
    assert told.fairness == pytest.approx(1.0)
    assert planned.forecast.basis == "solo rates"


def test_time_slices_slow_all_down_alike(gpu: DeviceFacts, tasks: tuple[TaskFacts, ...]) -> None:
    case = case_of(Allocation(policy=Policy.TIMESLICE), ADAPTING, gpu, tasks)
    planned = case.solve()
    assert planned.plan.sharing is Sharing.TIME_SLICED
    assert planned.forecast.basis == "equal slowdown"
    batches = {place.task: place.batch_size for place in planned.plan.tasks}
    rates = {facts.features.task: dict(facts.features.batch_rates) for facts in tasks}
    assert batches["r18"] == 2 * batches["m3"]  # type: ignore[operator]
    for task, rate in planned.forecast.rates.items():
        speeds = rates[task]
        expected = np.exp(
            np.interp(np.log(batches[task]), np.log(list(speeds)), np.log(list(speeds.values())))
        )
        assert rate == pytest.approx(expected / 3)


def test_a_batch_size_that_is_a_tasks_own_is_left_to_it(
    gpu: DeviceFacts, tasks: tuple[TaskFacts, ...]
) -> None:
    fixed = tuple(replace(facts, adapts=facts.features.task != "m3") for facts in tasks)
    case = case_of(FEDMT, ADAPTING, gpu, fixed)
    planned = case.solve()
    told = {place.task: place.batch_size for place in case.device_plan(planned).plan.tasks}
    sizes = {place.task: place.batch_size for place in planned.plan.tasks}
    assert sizes["m3"] == 128
    assert told == {task: None if size == 128 else size for task, size in sizes.items()}
    assert set(told.values()) != {None}


def test_batch_sizes_that_do_not_fit_are_no_choice(gpu: DeviceFacts, tasks: tuple[TaskFacts, ...]) -> None:
    gigabyte = 2**30
    limited = replace(gpu, memory_limit=6 * gigabyte)
    choices = Coordination(batching=BatchRules(choices=(64, 128, 256, 512)))
    # 512 could not be trained with when it was tried.
    held = tuple(
        replace(facts, memory={64: gigabyte, 128: 2 * gigabyte, 256: 4 * gigabyte}) for facts in tasks
    )
    request = frame(FEDMT, choices, limited, held, loads={})
    assert request.problem.batches == ((64, 128, 256),) * 3
    planned = replace(case_of(FEDMT, choices, gpu, held), request=request).solve()
    sizes = [place.batch_size or 0 for place in planned.plan.tasks]
    assert sum(gigabyte * size // 64 for size in sizes) <= limited.memory_limit
    assert frame(FEDMT, Coordination(), limited, held, loads={}).problem.memory == ()


def test_contention_lowers_the_virtual_resource_to_the_least_there_is_and_no_further(
    gpu: DeviceFacts, tasks: tuple[TaskFacts, ...]
) -> None:
    threads = replace(gpu, levels=(50.0, 100.0))
    request = frame(FEDMT, Coordination(), threads, tasks, loads={}, virtual_resource=100.0)
    assert request.problem.virtual_resource[1] == 150.0
    asked = replace(FEDMT, virtual_resource=120.0)
    with pytest.raises(ConfigError, match="virtual_resource: got 120 %, but 3 tasks have 150 %"):
        frame(asked, Coordination(), threads, tasks, loads={})
    within = frame(replace(FEDMT, virtual_resource=220.0), Coordination(), gpu, tasks, loads={})
    assert within.problem.virtual_resource[1] == 220.0


def test_budgets_change_in_the_round_only_where_all_tasks_are_stepped_and_the_makespan_counts(
    gpu: DeviceFacts, tasks: tuple[TaskFacts, ...]
) -> None:
    assert frame(FEDMT, Coordination(), gpu, tasks, loads={}).reallocates
    whole = (replace(tasks[0], stepped=False), *tasks[1:])
    for allocation, known in (
        (FEDMT, whole),
        (replace(FEDMT, reallocate=False), tasks),
        (replace(FEDMT, objective=Objective.RAW), tasks),
        (ISOLATED, tasks),
    ):
        assert not frame(allocation, Coordination(), gpu, known, loads={}).reallocates


def test_workload_is_fitted_where_enough_steps_were_counted(tasks: tuple[TaskFacts, ...]) -> None:
    assert workload_of(tasks) is not None
    assert workload_of([replace(facts, counted=False) for facts in tasks]) is None
    # Steps of 10 ms, whatever is in them: Eq. 3 would rank all tasks alike.
    waiting = [
        replace(facts, features=replace(facts.features, batch_rates=((64, 6400.0), (128, 12800.0))))
        for facts in tasks
    ]
    assert workload_of(waiting) is None


def test_a_plan_serves_while_little_has_changed(gpu: DeviceFacts, tasks: tuple[TaskFacts, ...]) -> None:
    case = case_of(FEDMT, ADAPTING, gpu, tasks)
    loads = dict(case.request.loads)
    near = replace(case, request=replace(case.request, loads={**loads, "m3": 1.04 * loads["m3"]}))
    far = replace(case, request=replace(case.request, loads={**loads, "m3": 1.5 * loads["m3"]}))
    assert case.serves(near)
    assert not case.serves(far)
    grown = (replace(tasks[0], volume=Volume(task="v16", samples=99000)), *tasks[1:])
    assert not case.serves(case_of(FEDMT, ADAPTING, gpu, grown))


def test_no_equal_budget_is_predicted_to_be_better_than_the_plan(
    gpu: DeviceFacts, tasks: tuple[TaskFacts, ...]
) -> None:
    for overlap in (Overlap.OFF, Overlap.FIFO, Overlap.FLEXIBLE):
        coordination = Coordination(overlap=OverlapRules(policy=overlap), network=NetworkRules(link=LINK))
        case = case_of(FEDMT, coordination, gpu, tasks)
        planned = case.solve()
        equal = list(equal_budgets(case))
        assert [round(one.virtual_resource) for one in equal] == [60, 120, 180, 240, 300]
        assert planned.forecast.makespan_s <= min(one.makespan_s for one in equal) * (1 + 1e-3)
        changes = list(by_remaining(planned))
        assert all(set(budgets) <= {"v16", "r18", "m3"} for _, budgets in changes)


def test_equal_budgets_are_those_that_all_tasks_can_have(
    gpu: DeviceFacts, tasks: tuple[TaskFacts, ...]
) -> None:
    tasks = (tasks[0], replace(tasks[1], levels=(25.0, 40.0, 100.0)), tasks[2])
    case = case_of(FEDMT, Coordination(), gpu, tasks)
    assert [one.scheme for one in equal_budgets(case)] == ["40 % each", "100 % each"]


def test_a_sweep_covers_the_range_of_the_virtual_resource(
    gpu: DeviceFacts, tasks: tuple[TaskFacts, ...]
) -> None:
    found = list(sweep(case_of(FEDMT, Coordination(), gpu, tasks)))
    resources = [one.virtual_resource for one in found]
    assert resources == sorted(set(resources))
    assert (resources[0], resources[-1]) == (60.0, 300.0)
    assert len(found) >= 8


@pytest.mark.parametrize(
    ("rules", "own", "choices"),
    [
        (BatchRules(), 24, (24,)),
        (BatchRules(choices=(64, 16, 64)), 24, (16, 64)),
        (BatchRules(policy=Batching.PROPORTIONAL), 32, (8, 16, 32, 64, 128)),
        (BatchRules(policy=Batching.PROPORTIONAL), 24, (8, 16, 32, 64)),
        (BatchRules(policy=Batching.PROPORTIONAL), 1, (1, 2, 4)),
    ],
)
def test_batch_choices(rules: BatchRules, own: int, choices: tuple[int, ...]) -> None:
    assert batch_choices(rules, own) == choices


def test_threads_keep_cores_busy_whatever_they_bring(zoo: dict[str, TaskFeatures]) -> None:
    cpu = DeviceFeatures(name="two cores", units=2, peak=1e11, bandwidth=1e10)
    tasks = (replace(zoo["r18"], quarter_share=1.0), replace(zoo["m3"], quarter_share=0.25))
    budgets = np.array([[50.0, 50.0], [50.0, 100.0], [100.0, 0.0]])
    runs = CoRuns(device=cpu, tasks=tasks, batches=np.full((3, 2), 128.0), budgets=budgets)
    shares = ThreadModel().rates(runs) / runs.solo_rates
    # One task is as fast with one core as with two; the other is twice as fast with two.
    assert shares == pytest.approx(np.array([[1.0, 0.5], [1 / 1.5, 1 / 1.5], [1.0, 0.0]]))


def test_budgets_are_seen_as_the_device_rounds_them(zoo: dict[str, TaskFeatures]) -> None:
    cpu = DeviceFeatures(name="two cores", units=2, peak=1e11, bandwidth=1e10)
    runs = CoRuns(
        device=cpu,
        tasks=(zoo["r18"], zoo["m3"]),
        batches=np.full((3, 2), 128.0),
        budgets=np.array([[33.3, 99.0], [50.0, 50.0], [0.0, 20.0]]),
    )
    rates = WholeUnits(model=ThreadModel()).rates(runs)
    assert rates[0] == pytest.approx(rates[1])
    assert rates[2, 0] == 0.0


def test_alone_a_task_has_the_rate_of_its_batch_size(zoo: dict[str, TaskFeatures]) -> None:
    curved = replace(zoo["r18"], batch_rates=((256, 1.5 * zoo["r18"].solo_rate),))
    runs = CoRuns(
        device=DeviceFeatures(name="gpu", units=132, peak=1e13, bandwidth=1e12),
        tasks=(curved, replace(zoo["m3"], batch_rates=())),
        batches=np.array([[128.0, 128.0], [256.0, 256.0], [64.0, 32.0], [181.02, 1.0]]),
        budgets=np.full((4, 2), 100.0),
    )
    parts = runs.solo_rates / runs.reference_rates
    assert parts == pytest.approx(np.array([[1.0, 1.0], [1.5, 1.0], [1.0, 1.0], [1.5**0.5, 1.0]]), rel=1e-4)
    assert EqualSlowdownModel().rates(runs) == pytest.approx(runs.solo_rates / 2)
