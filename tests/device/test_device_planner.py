"""The plans of an engine's rounds: what is measured for them, and what rounds teach."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from fedmt_flower.bench.mixes import synthetic_task
from fedmt_flower.device.backends.cpu import CpuBackend
from fedmt_flower.device.backends.mps import MpsBackend
from fedmt_flower.device.engine.rounds import Round
from fedmt_flower.device.inline import InlineEngine
from fedmt_flower.device.ipc import memory
from fedmt_flower.device.ipc.frames import Answers, Frame, Measure, Rehearse
from fedmt_flower.device.planner import scout
from fedmt_flower.device.planner.appraisal import Examined, with_quarter
from fedmt_flower.device.planner.planner import Planner
from fedmt_flower.device.planner.scout import Known, Scout
from fedmt_flower.device.processes.pool import Pool
from fedmt_flower.device.processes.worker_handle import WorkerHandle
from fedmt_flower.domain.allocation import Allocation, Policy
from fedmt_flower.domain.coordination import Batching, BatchRules, Coordination, OverlapRules
from fedmt_flower.domain.network import Overlap
from fedmt_flower.domain.plan import DevicePlan, Sharing
from fedmt_flower.domain.round import Mode, RoundOrder, RoundReport, Status
from fedmt_flower.domain.task import Task
from fedmt_flower.domain.timeline import Phase
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning import case
from fedmt_flower.planning.correction import Moderation
from fedmt_flower.planning.planner import PlannedRound

State = Mapping[str, NDArray[Any]]
MakeTask = Callable[..., Task]
MakeOrder = Callable[..., RoundOrder]

FEDMT = Allocation(policy=Policy.FEDMT)
PROPORTIONAL = Coordination(batching=BatchRules(policy=Batching.PROPORTIONAL))


class Device:
    """CPUs with a planner, whose rounds are run as an engine does."""

    def __init__(self, pool: Pool, weights: State) -> None:
        self.pool = pool
        self.planner = Planner(CpuBackend(), pool)
        self._weights = weights

    async def plan(self, order: RoundOrder) -> DevicePlan:
        with_files = self._files(order)
        try:
            return await self.planner.plan(order, with_files)
        finally:
            _close(with_files)

    async def run(self, order: RoundOrder) -> RoundReport:
        async def ignore(*_: object) -> None:
            """Nothing is told of this round."""

        files = self._files(order)
        try:
            planned = await self.planner.plan(order, files)
            round_ = Round(order, planned, files, self.pool, CpuBackend(), time.monotonic())
            report = await round_.run(ignore, ignore)
        finally:
            _close(files)
        self.planner.observe(order, report)
        return report

    def _files(self, order: RoundOrder) -> dict[str, int]:
        return {a.task.name: memory.write(a.task.name, self._weights) for a in order.assignments}


def _close(files: Mapping[str, int]) -> None:
    for file in files.values():
        os.close(file)


@pytest.fixture
def play(tmp_path: Path, weights: State) -> Callable[[Callable[[Device], Awaitable[None]]], None]:
    """Run a scene on CPUs of its own."""

    def run(scene: Callable[[Device], Awaitable[None]]) -> None:
        async def perform() -> None:
            pool = Pool(CpuBackend(), tmp_path / "workers")
            await pool.open()
            device = Device(pool, weights)
            try:
                await scene(device)
            finally:
                await device.planner.call_off()
                await pool.close()

        asyncio.run(perform())

    return run


def test_a_round_under_fedmt_has_a_forecast_that_its_reports_correct(
    play: Any,
    make_task: MakeTask,
    make_order: MakeOrder,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = [make_task("small", epochs=30), make_task("large", epochs=90, batch_size=8)]
    # Else a plan that predicted the rates well stays, with the words on which it was based.
    monkeypatch.setattr(case, "NEAR", 0.0)

    async def scene(device: Device) -> None:
        order = replace(make_order(*tasks, mode=Mode.TRAIN), allocation=FEDMT)
        reports = [await device.run(replace(order, round=number)) for number in (1, 2, 3)]
        for report in reports:
            assert [task.status for task in report.tasks] == [Status.DONE, Status.DONE]
            assert report.forecast is not None
            assert set(report.forecast.rates) == {"small", "large"}
            assert report.forecast.lower_bound_s <= report.forecast.makespan_s
            assert report.plan.sharing is Sharing.CAPPED
            levels = {place.budget for place in report.plan.tasks}
            cores = len(os.sched_getaffinity(0))
            assert levels <= {100.0 * threads / cores for threads in range(1, cores + 1)}
        basis = [report.forecast.basis for report in reports if report.forecast]
        assert basis[0] == "analytic model of threads"
        assert basis[2] in {f"{basis[0]}, corrected by {n}" for n in ("1 round", "2 rounds")}
        assert {report.task("large").samples for report in reports} == {90 * 64}

    with caplog.at_level(logging.INFO):
        play(scene)
    planned = [r.getMessage() for r in caplog.records if " planned in " in r.getMessage()]
    assert len(planned) == 3
    assert ", ahead of it" not in planned[0]
    assert all(", ahead of it" in line for line in planned[1:])
    assert sum("alone: " in r.getMessage() for r in caplog.records) == 2


@pytest.mark.parametrize("allocation", [FEDMT, Allocation(policy=Policy.STATIC, budgets=(80.0,))])
def test_a_task_in_bfloat16_has_a_budget_in_which_its_steps_are_right(
    play: Any,
    make_task: MakeTask,
    make_order: MakeOrder,
    monkeypatch: pytest.MonkeyPatch,
    allocation: Allocation,
) -> None:
    monkeypatch.setattr(CpuBackend, "sound", lambda backend, budget: min(budget, 50.0))
    tasks = [make_task("plain", epochs=2), make_task("reduced", epochs=2, precision="bfloat16")]

    async def scene(device: Device) -> None:
        order = replace(make_order(*tasks, mode=Mode.TRAIN), allocation=allocation)
        for number in (1, 2):
            report = await device.run(replace(order, round=number))
            assert [task.status for task in report.tasks] == [Status.DONE, Status.DONE]
            budgets = {place.task: place.budget for place in report.plan.tasks}
            assert budgets["reduced"] == 50.0
            assert allocation is FEDMT or budgets["plain"] == 80.0
        shared = await device.run(replace(order, allocation=Allocation(policy=Policy.SHARING), round=3))
        assert {place.task: place.budget for place in shared.plan.tasks} == {"plain": 100.0, "reduced": 50.0}

    play(scene)


@pytest.fixture
def only_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first look at tasks on two CPUs that leaves no worker with a part of them."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(Scout, "_seats", property(lambda scout: (CpuBackend().seat(100.0, Sharing.CAPPED),)))


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not reached():
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("only_whole")
def test_budgets_change_once_their_workers_are_warm(
    play: Any, make_task: MakeTask, make_order: MakeOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [make_task("small", epochs=5), make_task("large", epochs=10)]
    monkeypatch.setattr(Moderation, "observed", lambda moderation, *_: replace(moderation, limit=150.0))

    async def scene(device: Device) -> None:
        order = replace(make_order(*tasks, mode=Mode.TRAIN), allocation=FEDMT)
        first = await device.run(order)
        assert [place.budget for place in first.plan.tasks] == [100.0, 100.0]
        known = {worker.pid for worker in device.pool.workers}
        # Idle workers are no sign of the end: one may be ready before the next has been forked.
        assert device.planner._preparing is not None
        await asyncio.wait_for(device.planner._preparing, 60)
        new = {worker.pid for worker in device.pool.workers} - known
        second = await device.run(replace(order, round=2))
        assert sum(place.budget for place in second.plan.tasks) <= 150.0
        assert new
        assert new <= {task.pid for task in second.tasks}

    play(scene)


@pytest.mark.usefixtures("only_whole")
def test_a_round_that_must_start_workers_does_so_without_others_in_the_same_seats(
    play: Any, make_task: MakeTask, make_order: MakeOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Moderation, "observed", lambda moderation, *_: replace(moderation, limit=100.0))

    async def scene(device: Device) -> None:
        tasks = [make_task("small", epochs=5), make_task("large", epochs=10)]
        order = replace(make_order(*tasks, mode=Mode.TRAIN), allocation=FEDMT)
        await device.run(order)
        await until(lambda: any(worker.busy for worker in device.pool.workers))
        # As if others had needed their memory; one more may get ready while another ends.
        while idle := [worker for worker in device.pool.workers if not worker.busy]:
            await device.pool.discard(idle[0])
        await device.run(replace(order, round=2))
        seated = [(worker.task.name, worker.seat.level) for worker in device.pool.workers]
        assert len(seated) == len(set(seated)) == 2

    play(scene)


@pytest.mark.usefixtures("only_whole")
def test_nothing_is_measured_beside_workers_that_are_being_prepared(
    play: Any, make_task: MakeTask, make_order: MakeOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Moderation, "observed", lambda moderation, *_: replace(moderation, limit=150.0))

    async def scene(device: Device) -> None:
        tasks = [make_task("small", epochs=5), make_task("large", epochs=10)]
        order = replace(make_order(*tasks, mode=Mode.TRAIN), allocation=FEDMT)
        await device.run(order)
        await until(lambda: any(worker.busy for worker in device.pool.workers))
        look, busy = Scout.look, list[bool]()

        async def watched(scout: Scout, *arguments: Any) -> Known:
            busy.append(any(worker.busy for worker in device.pool.workers))
            return await look(scout, *arguments)

        monkeypatch.setattr(Scout, "look", watched)
        await device.plan(replace(make_order(make_task("new"), mode=Mode.TRAIN), allocation=FEDMT))
        assert busy == [False]

    play(scene)


@pytest.mark.usefixtures("only_whole")
def test_calling_off_preparations_leaves_the_plan_that_they_wait_for(
    play: Any, make_task: MakeTask, make_order: MakeOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run's new tasks may call them off; the site's next round was cancelled with them."""
    monkeypatch.setattr(Moderation, "observed", lambda moderation, *_: replace(moderation, limit=150.0))
    solve, may_end = case.Case.solve, threading.Event()

    def late(one: case.Case) -> PlannedRound:
        if one.request.problem.virtual_resource[1] == 150.0:
            may_end.wait(30)
        return solve(one)

    monkeypatch.setattr(case.Case, "solve", late)

    async def scene(device: Device) -> None:
        tasks = [make_task("small", epochs=5), make_task("large", epochs=10)]
        order = replace(make_order(*tasks, mode=Mode.TRAIN), allocation=FEDMT)
        await device.run(order)
        await asyncio.sleep(0)  # the preparation begins to wait for the plan
        await device.planner.call_off()
        may_end.set()
        assert (await device.plan(replace(order, round=2))).forecast is not None

    play(scene)


@pytest.mark.usefixtures("only_whole")
def test_a_limit_that_was_asked_for_is_kept_by_workers_that_must_start_first(
    play: Any, make_task: MakeTask, make_order: MakeOrder
) -> None:

    async def scene(device: Device) -> None:
        order = make_order(make_task("small", epochs=5), make_task("large", epochs=10), mode=Mode.TRAIN)
        planned = await device.plan(replace(order, allocation=replace(FEDMT, virtual_resource=150.0)))
        assert sum(place.budget for place in planned.plan.tasks) <= 150.0

    play(scene)


def test_a_plan_that_needs_no_rates_measures_nothing(
    play: Any, make_task: MakeTask, make_order: MakeOrder
) -> None:
    async def scene(device: Device) -> None:
        order = make_order(make_task("a"), make_task("b"), policy=Policy.TEMPORAL)
        ordered = Coordination(overlap=OverlapRules(policy=Overlap.FIFO, order=("b",)))
        planned = await device.plan(replace(order, coordination=ordered))
        assert [place.task for place in planned.plan.tasks] == ["b", "a"]
        assert planned.forecast is None
        assert not device.pool.workers

    play(scene)


def test_other_policies_are_predicted_where_coordination_asks_for_it(
    play: Any, make_task: MakeTask, make_order: MakeOrder
) -> None:
    tasks = [make_task("small"), make_task("large", epochs=8)]

    async def scene(device: Device) -> None:
        in_turn = replace(make_order(*tasks, policy=Policy.TEMPORAL), coordination=PROPORTIONAL)
        report = await device.run(in_turn)
        assert report.forecast is not None
        assert report.plan.sharing is Sharing.IN_TURN
        assert report.forecast.basis == "solo rates"
        sizes = {place.task: place.batch_size or 16 for place in report.plan.tasks}
        assert sizes["large"] == 4 * sizes["small"]
        spans = [span for span in report.forecast.timeline if span.phase is Phase.COMPUTE]
        assert spans[1].start_s >= spans[0].end_s
        sliced = replace(in_turn, allocation=Allocation(policy=Policy.TIMESLICE), run="sliced")
        assert (await device.plan(sliced)).plan.sharing is Sharing.TIME_SLICED

    play(scene)


def test_a_task_without_steps_is_seen_in_a_round_before_it_is_predicted(
    play: Any, make_task: MakeTask, make_order: MakeOrder, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = [make_task("stepped"), make_task("whole", "sleep", seconds=0.2)]

    async def scene(device: Device) -> None:
        order = replace(make_order(*tasks, mode=Mode.TRAIN), allocation=FEDMT, coordination=PROPORTIONAL)
        first = await device.run(order)
        assert first.forecast is None
        assert [place.budget for place in first.plan.tasks] == [100.0, 100.0]
        second = await device.run(replace(order, round=2))
        assert second.forecast is not None
        assert second.forecast.basis == "analytic model of threads, whole timed by whole rounds"
        # 128 samples took 0.2 s or a little more; what sharing costs it is a matter of the plan.
        assert 100 < second.forecast.rates["whole"] < 1300
        assert [p.batch_size for p in second.plan.tasks if p.task == "whole"] == [None]

    play(scene)
    assert "whole: its `train` takes a round as a whole" in caplog.text


def test_rounds_that_only_evaluate_keep_the_budgets(
    play: Any, make_task: MakeTask, make_order: MakeOrder
) -> None:
    tasks = [make_task("a"), make_task("b")]

    async def scene(device: Device) -> None:
        order = replace(make_order(*tasks, mode=Mode.TRAIN), allocation=FEDMT)
        trained = await device.run(order)
        closing = make_order(*tasks, round=2, mode=Mode.EVALUATE)
        evaluated = await device.plan(replace(closing, allocation=FEDMT))
        assert evaluated.forecast is None
        budgets = {place.task: place.budget for place in trained.plan.tasks}
        assert {place.task: place.budget for place in evaluated.plan.tasks} == budgets
        mixed = (order.assignments[0], replace(order.assignments[1], mode=Mode.EVALUATE))
        planned = await device.plan(replace(order, round=3, assignments=mixed))
        assert [place.task for place in planned.plan.tasks] == ["a", "b"]
        assert planned.forecast is not None
        assert set(planned.forecast.rates) == {"a"}

    play(scene)


def test_a_task_that_cannot_be_measured_spoils_no_round(
    play: Any, make_task: MakeTask, make_order: MakeOrder, caplog: pytest.LogCaptureFixture
) -> None:
    broken = replace(make_task("broken"), data="engine_tasks:nowhere")

    async def scene(device: Device) -> None:
        order = replace(make_order(make_task("sound"), broken), allocation=FEDMT)
        report = await device.run(order)
        assert report.forecast is None
        assert [task.status for task in report.tasks] == [Status.DONE, Status.FAILED]

    play(scene)
    assert "broken: it could not be measured" in caplog.text


@pytest.mark.parametrize(
    ("allocation", "coordination", "said"),
    [
        (replace(FEDMT, virtual_resource=100.0), Coordination(), "virtual_resource: got 100 %, but 3 tasks"),
        (replace(FEDMT, model="/nowhere/model.json"), Coordination(), "model /nowhere/model.json: No such"),
        (
            FEDMT,
            Coordination(batching=BatchRules(choices=(512,))),
            r"batch sizes of a: none of \[512\] lies from 1 to 64",
        ),
    ],
)
def test_what_cannot_be_planned_is_told_in_one_line(
    play: Any,
    make_task: MakeTask,
    make_order: MakeOrder,
    allocation: Allocation,
    coordination: Coordination,
    said: str,
) -> None:
    if allocation.virtual_resource and len(os.sched_getaffinity(0)) > 2:
        pytest.skip("with more than two CPUs three tasks have less than 100 % at least")

    async def scene(device: Device) -> None:
        order = make_order(*(make_task(name) for name in "abc"))
        with pytest.raises(ConfigError, match=said):
            await device.plan(replace(order, allocation=allocation, coordination=coordination))

    play(scene)


def test_inline_only_batch_sizes_and_the_order_are_planned(
    make_task: MakeTask, make_order: MakeOrder, weights: State
) -> None:
    engine = InlineEngine()
    tasks = [make_task("small"), make_task("large", epochs=8)]
    states = {task.name: weights for task in tasks}
    order = replace(make_order(*tasks, mode=Mode.TRAIN), allocation=FEDMT)
    plain = engine.run_round(order, states)
    assert plain.report.forecast is None
    assert plain.report.plan.sharing is Sharing.IN_TURN
    adapted = engine.run_round(replace(order, round=2, coordination=PROPORTIONAL), states).report
    assert adapted.forecast is not None
    sizes = {place.task: place.batch_size or 16 for place in adapted.plan.tasks}
    assert sizes["large"] == 4 * sizes["small"]
    again = engine.run_round(order, states)
    for task, state in plain.weights.items():
        assert all((state[key] == again.weights[task][key]).all() for key in state)


def test_measuring_leaves_no_trace_in_the_weights(
    play: Any, make_task: MakeTask, make_order: MakeOrder, weights: State
) -> None:
    """A worker that was measured trains to the same bits as one that was not."""
    task = make_task("a", epochs=3)
    order = make_order(task, mode=Mode.TRAIN)
    updates: list[dict[str, bytes]] = []

    async def scene(device: Device) -> None:
        async def keep(_: str, file: int) -> None:
            updates.append({name: array.tobytes() for name, array in memory.read(file).items()})

        async def ignore(*_: object) -> None:
            """Progress that nobody asked for."""

        files = {"a": memory.write("a", weights)}
        sharing = replace(order, allocation=Allocation(policy=Policy.SHARING))
        for chosen in (sharing, replace(sharing, coordination=PROPORTIONAL)):
            planned = await device.planner.plan(chosen, files)
            place = replace(planned.plan.tasks[0], batch_size=None)
            planned = replace(planned, plan=replace(planned.plan, tasks=(place,)))
            await Round(chosen, planned, files, device.pool, CpuBackend(), time.monotonic()).run(ignore, keep)
        _close(files)
        assert len({worker.pid for worker in device.pool.workers if worker.rounds == 2}) == 1

    play(scene)
    assert updates[0] == updates[1]


@dataclass(frozen=True, slots=True)
class Asked:
    """An order to a worker in a seat of so many threads, and when that was answered, if it was."""

    level: int
    order: Frame
    begun: float
    ended: float = math.inf


@pytest.fixture
def look_as_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[RoundOrder], tuple[Known, list[Asked]]]:
    """What is found out of an order's tasks on CPUs that are taken for a GPU, and what was asked for that."""
    asked: list[Asked] = []
    ask = WorkerHandle.ask

    async def watched(worker: WorkerHandle, order: Frame) -> Answers:
        place, begun = len(asked), Asked(worker.seat.level, order, time.monotonic())
        asked.append(begun)
        answer = await ask(worker, order)
        asked[place] = replace(begun, ended=time.monotonic())
        return answer

    async def look(order: RoundOrder) -> Known:
        backend = CpuBackend()
        backend.name, backend._threads = "mps", 4
        pool = Pool(backend, tmp_path / "workers")
        await pool.open()
        try:
            sizes = {assignment.task.name: 1000 for assignment in order.assignments}
            return await Scout(backend, pool).look(order, sizes, {})
        finally:
            await pool.close()

    monkeypatch.setattr(WorkerHandle, "ask", watched)
    return lambda order: (asyncio.run(look(order)), asked)


def test_on_a_gpu_all_tasks_take_first_steps_side_by_side_before_any_is_measured(
    look_as_on_a_gpu: Callable[[RoundOrder], tuple[Known, list[Asked]]],
    make_task: MakeTask,
    make_order: MakeOrder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = [replace(make_task(name), trainer="engine_tasks:Slow") for name in "ab"]
    monkeypatch.setattr(scout.os, "cpu_count", lambda: 4)
    known, asked = look_as_on_a_gpu(replace(make_order(*tasks), allocation=FEDMT))
    assert not known.unknown
    measured = [one for one in asked if isinstance(one.order, Measure)]
    assert len(measured) >= 4
    first = min(one.begun for one in measured)
    rehearsed = [one for one in asked if isinstance(one.order, Rehearse) and one.ended < first][:4]
    assert max(one.begun for one in rehearsed) < min(one.ended for one in rehearsed)
    seats = [(one.level, one.order.evaluate) for one in rehearsed if isinstance(one.order, Rehearse)]
    assert sorted(seats) == [(1, False)] * 2 + [(4, True)] * 2
    for one in measured:
        beside = [other for other in asked if other.begun < one.ended and one.begun < other.ended]
        assert beside == [one]


def test_a_task_whose_first_steps_do_not_end_is_waited_for_once(
    look_as_on_a_gpu: Callable[[RoundOrder], tuple[Known, list[Asked]]],
    make_task: MakeTask,
    make_order: MakeOrder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = make_task("a"), replace(make_task("stuck"), trainer="engine_tasks:Stuck")
    monkeypatch.setattr(scout, "_PATIENCE_S", 8.0)
    order = replace(make_order(*tasks), allocation=FEDMT)
    known, asked = look_as_on_a_gpu(order)
    assert known.unknown == {"stuck": "it could not be measured in time"}
    assert [facts.features.task for facts in known.tasks] == ["a"]
    endless = [one.level for one in asked if one.ended == math.inf]
    assert sorted(endless) == [1, 4]


@pytest.mark.gpu
def test_on_a_gpu_a_task_is_known_with_its_memory_and_the_device_with_its_own_steps(
    tmp_path: Path, make_order: MakeOrder
) -> None:
    tasks = [synthetic_task(name) for name in ("R18", "M3")]
    coordination = Coordination(batching=BatchRules(choices=(32, 128, 256)))
    order = replace(make_order(*tasks, mode=Mode.TRAIN), allocation=FEDMT, coordination=coordination)

    async def look() -> Known:
        backend = MpsBackend(0, tmp_path)
        backend.open()
        pool = Pool(backend, tmp_path / "workers")
        try:
            await pool.open()
            return await Scout(backend, pool).look(order, {"R18": 45 * 10**6, "M3": 17 * 10**6}, {})
        finally:
            await pool.close()
            backend.close()

    known = asyncio.run(look())
    assert not known.unknown
    units = known.device.features.units
    steps = [level * units / 100 for level in known.device.levels]
    assert steps == pytest.approx([round(step) for step in steps])
    assert known.device.features.peak > 1e13
    assert known.device.memory_limit > 2**32
    for facts in known.tasks:
        assert facts.memory[32] < facts.memory[128] < facts.memory[256] < known.device.memory_limit
        assert dict(facts.features.batch_rates)[32] > 0
        assert 0.25 <= facts.features.quarter_share <= 1.0
        assert facts.counted


@pytest.mark.parametrize(
    ("rate", "budget", "share", "speed"),
    [
        (50.0, 25.0, 0.5, 100.0),
        (50.0, 50.0, 0.25, 100.0),
        (10.0, 25.0, 0.25, 100.0),
        # Faster with less than with the whole device: the whole is then held to be as fast.
        (130.0, 50.0, 1.0, 130.0),
    ],
)
def test_two_rates_alone_make_a_curve_that_never_falls(
    rate: float, budget: float, share: float, speed: float
) -> None:
    seen = with_quarter(Examined(flops=1.0, traffic=1.0, speeds={16: 100.0, 32: 200.0}), 16, rate, budget)
    assert seen.share == pytest.approx(share)
    assert seen.speeds == pytest.approx({16: speed, 32: 2 * speed})
