"""Tasks that move to other seats in mid-round."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from fedmt_flower.device.backends import DeviceBackend
from fedmt_flower.device.backends.cpu import CpuBackend
from fedmt_flower.device.engine.handover import Movers, Seated
from fedmt_flower.device.engine.rounds import Round
from fedmt_flower.device.ipc import memory
from fedmt_flower.device.ipc.frames import Stand
from fedmt_flower.device.ipc.job import Job
from fedmt_flower.device.ipc.seat import Seat
from fedmt_flower.device.ipc.state import Packing, checksum, empty_buffer
from fedmt_flower.device.processes import worker_handle
from fedmt_flower.device.processes.pool import Pool
from fedmt_flower.device.processes.worker_handle import Baton, WorkerHandle
from fedmt_flower.device.training.execution import Execution, HandedOver
from fedmt_flower.device.training.initial import initial_weights
from fedmt_flower.device.training.runtime import TaskRuntime
from fedmt_flower.domain.allocation import Allocation, Policy
from fedmt_flower.domain.plan import DevicePlan, RoundPlan, Sharing, TaskPlan
from fedmt_flower.domain.round import Assignment, Mode, RoundOrder, RoundReport, Status
from fedmt_flower.domain.task import Scalar, Task
from fedmt_flower.domain.timeline import Phase

QUARTER, HALF, WHOLE = 25.0, 50.0, 100.0


def task(name: str, epochs: int = 1, **fields: Any) -> Task:
    parameters: dict[str, Scalar] = {
        "lr": 0.1,
        "momentum": 0.9,
        "batch_size": 16,
        "epochs": epochs,
        "proximal-mu": 0.1,
    }
    return Task(
        name=name,
        model="handover_tasks:model",
        data="handover_tasks:data",
        objective="handover_tasks:unhurried",
        parameters=parameters,
        python_path=(str(Path(__file__).parent),),
        **fields,
    )


def plan(tasks: tuple[Task, ...], reallocates: bool) -> DevicePlan:
    """A quarter of the device for each task at first, half for each of two, all of it for the last."""
    names = [one.name for one in tasks]
    alone = {frozenset({name}): {name: WHOLE} for name in names}
    pairs = {frozenset(pair): dict.fromkeys(pair, HALF) for pair in combinations(names, 2)}
    plans = tuple(TaskPlan(task=name, budget=QUARTER) for name in names)
    return DevicePlan(
        plan=RoundPlan(tasks=plans, sharing=Sharing.CAPPED), budgets=alone | pairs if reallocates else {}
    )


@dataclass
class Played:
    report: RoundReport
    weights: dict[str, dict[str, bytes]] = field(default_factory=dict)


class FourThreads(CpuBackend):
    """A quarter is one thread, all are four, on any host."""

    def __init__(self) -> None:
        super().__init__()
        self._threads = 4


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[asyncio.Runner, Pool, DeviceBackend]]:
    """A pool for every test, since each costs an import of torch."""
    backend = FourThreads()
    with asyncio.Runner() as runner:
        pool = Pool(backend, tmp_path_factory.mktemp("handover") / "workers")
        runner.run(pool.open())
        yield runner, pool, backend
        runner.run(pool.close())


def played(
    runner: asyncio.Runner, pool: Pool, backend: DeviceBackend, *tasks: Task, reallocates: bool = True
) -> Played:
    """A round of `tasks`, and what became of their weights."""
    order = RoundOrder(
        run="run",
        round=1,
        site="clinic",
        assignments=tuple(Assignment(task=one, mode=Mode.TRAIN) for one in tasks),
        allocation=Allocation(policy=Policy.FEDMT),
        seed=3,
    )
    files = {one.name: memory.write(one.name, initial_weights(one, 1)) for one in tasks}
    weights: dict[str, dict[str, bytes]] = {}

    async def ignore(*_: object) -> None:
        """Nobody watches this round."""

    async def update(name: str, file: int) -> None:
        weights[name] = {key: array.tobytes() for key, array in memory.read(file).items()}

    round_ = Round(order, plan(tasks, reallocates), files, pool, backend, time.monotonic())
    report = runner.run(round_.run(ignore, update))
    for file in files.values():
        os.close(file)
    return Played(report, weights)


@pytest.fixture
def play(device: tuple[asyncio.Runner, Pool, DeviceBackend]) -> Callable[..., Played]:
    return partial(played, *device)


def stayed(one: Task) -> dict[str, bytes]:
    """The weights of a task after a round that it spends in one process."""
    threads, path = torch.get_num_threads(), list(sys.path)
    job = Job(site="clinic", round=1, seed=3, mode=Mode.TRAIN, parameters=one.parameters)
    result = TaskRuntime(one, "cpu").run(job, initial_weights(one, 1))
    torch.set_num_threads(threads)
    sys.path[:] = path
    assert result.weights is not None
    return {name: array.tobytes() for name, array in result.weights.items()}


def test_the_last_tasks_get_the_device_and_train_to_the_same_bits(play: Callable[..., Played]) -> None:
    """Volumes 1:40:60; the longest moves twice, and in a second round to workers that are warm."""
    tasks = (task("short"), task("middle", 40), task("long", 60))
    first, second = play(*tasks), play(*tasks)
    assert first.weights == second.weights == {one.name: stayed(one) for one in tasks}
    for done in (first, second):
        short, middle, long = done.report.tasks
        assert [short.handovers, [(m.budget, m.level) for m in middle.handovers]] == [(), [(HALF, 2)]]
        assert [(m.budget, m.level) for m in long.handovers] == [(HALF, 2), (WHOLE, 4)]
        assert (long.level, long.samples, long.train_examples) == (4, 60 * 70, 70)
        spans = [s for s in done.report.timeline if s.task == "long" and s.phase is Phase.COMPUTE]
        assert len(spans) == 3
        for moved, (before, after) in zip(long.handovers, pairwise(spans), strict=True):
            assert before.end_s == pytest.approx(moved.at_s)
            assert 0 < after.start_s - before.end_s == pytest.approx(moved.lost_s)
            assert moved.lost_s < 2
        assert long.compute_s == pytest.approx(sum(s.end_s - s.start_s for s in spans))
    assert second.report.task("long").pid == first.report.task("long").pid
    assert first.report.task("long").train_metrics == second.report.task("long").train_metrics


def test_a_task_on_its_way_is_not_moved_again(
    play: Callable[..., Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When another has ended its move, tasks are looked at again, that one too."""
    take_over, acquire, levels = WorkerHandle.take_over, Pool.acquire, []

    async def late(target: WorkerHandle, baton: Baton) -> None:
        if target.task.name == "long":
            await asyncio.sleep(0.3)
        await take_over(target, baton)

    async def noted(pool: Pool, run: str, task: Task, seat: Seat) -> WorkerHandle:
        if task.name == "long":
            levels.append(seat.level)
        return await acquire(pool, run, task, seat)

    monkeypatch.setattr(WorkerHandle, "take_over", late)
    monkeypatch.setattr(Pool, "acquire", noted)
    done = play(task("short"), task("middle", 40), task("long", 60))
    assert [moved.level for moved in done.report.task("long").handovers] == [2, 4]
    assert levels == [1, 2, 4]


def test_budgets_that_are_held_move_nobody(play: Callable[..., Played]) -> None:
    done = play(task("short"), task("long", 20), reallocates=False)
    assert [report.handovers for report in done.report.tasks] == [(), ()]


def kill(worker: WorkerHandle) -> None:
    os.kill(worker.pid, signal.SIGKILL)


@pytest.fixture
def meddle(monkeypatch: pytest.MonkeyPatch, device: Any) -> Callable[..., None]:
    """Meddle with hand-overs: with the worker that rests, the one that takes over, and what is handed."""
    genuine = WorkerHandle.take_over

    def arrange(what: Callable[[WorkerHandle, WorkerHandle, Baton], Baton]) -> None:
        async def take_over(target: WorkerHandle, baton: Baton) -> None:
            _, pool, _ = device
            (source,) = (w for w in pool.workers if w.busy and w.task == target.task and w is not target)
            await genuine(target, what(source, target, baton))

        monkeypatch.setattr(worker_handle.WorkerHandle, "take_over", take_over)

    return arrange


def test_a_target_that_is_killed_or_gets_another_state_leaves_the_task_where_it_was(
    play: Callable[..., Played], meddle: Callable[..., None]
) -> None:
    tasks = (task("short"), task("long", 40))
    expected = {one.name: stayed(one) for one in tasks}

    def kill_target(source: WorkerHandle, target: WorkerHandle, baton: Baton) -> Baton:
        kill(target)
        return baton

    def spoil(source: WorkerHandle, target: WorkerHandle, baton: Baton) -> Baton:
        return Baton(msgspec.structs.replace(baton.frame, checksum=baton.frame.checksum + 1), baton.file)

    for what in (kill_target, spoil):
        meddle(what)
        done = play(*tasks)
        long = done.report.task("long")
        assert (long.status, long.handovers, long.level) == (Status.DONE, (), 1)
        assert done.weights == expected
        spans = [s for s in done.report.timeline if s.task == "long" and s.phase is Phase.COMPUTE]
        assert len(spans) == 2


def test_a_state_is_let_go_of_once_it_is_in_place(
    play: Callable[..., Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, mapped = WorkerHandle.take_over, []

    async def take_over(target: WorkerHandle, baton: Baton) -> None:
        await genuine(target, baton)
        mapped.append("fedmt:state" in Path(f"/proc/{target.pid}/maps").read_text())

    monkeypatch.setattr(WorkerHandle, "take_over", take_over)
    play(task("short"), task("long", 40))
    assert mapped == [False]


def test_a_source_that_is_killed_in_mid_hand_over_is_not_missed(
    play: Callable[..., Played], meddle: Callable[..., None]
) -> None:
    tasks = (task("short"), task("long", 40))
    expected = {one.name: stayed(one) for one in tasks}

    def kill_source(source: WorkerHandle, target: WorkerHandle, baton: Baton) -> Baton:
        kill(source)
        return baton

    meddle(kill_source)
    done = play(*tasks)
    assert done.weights == expected
    assert len(done.report.task("long").handovers) == 1


def test_a_task_whose_workers_are_both_killed_fails_by_name_and_alone(
    play: Callable[..., Played], meddle: Callable[..., None]
) -> None:
    def kill_both(source: WorkerHandle, target: WorkerHandle, baton: Baton) -> Baton:
        kill(source)
        kill(target)
        return baton

    meddle(kill_both)
    done = play(task("short"), task("long", 40))
    long = done.report.task("long")
    assert long.status is Status.FAILED
    assert long.error.startswith("site 'clinic', task 'long': worker ")
    assert "was killed by SIGKILL" in long.error
    assert done.report.task("short").status is Status.DONE


def test_what_cannot_be_handed_over_stays(play: Callable[..., Played], device: Any) -> None:
    private = task("private", trainer="handover_tasks:Private")
    done = play(task("short"), private)
    runner, pool, _ = device
    runner.run(asyncio.sleep(0.2))
    relieved = [(w.seat.level, w.busy, w.alive) for w in pool.workers if w.task.name == "private"]
    assert relieved == [(1, False, True), (4, False, True)]
    assert done.report.task("private").status is Status.DONE
    assert (done.report.task("private").handovers, done.report.task("private").samples) == ((), 1280)
    whole = Task(
        name="whole",
        model="handover_tasks:model",
        data="handover_tasks:data",
        train="handover_tasks:train",
        python_path=private.python_path,
    )
    done = play(task("short"), whole)
    assert done.report.task("whole").status is Status.DONE
    assert (done.report.task("whole").handovers, done.report.task("whole").level) == ((), 1)


def test_budgets_stay_where_there_is_no_memory_for_another_worker(
    play: Callable[..., Played],
    device: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(device[2], "memory", lambda: (7 << 30, 15 << 29))
    assert play(task("short"), task("late", 40)).report.task("late").handovers == ()
    assert "task late keeps its budget: another worker needs 1.1 GB of memory, 0.5 GB are free" in caplog.text
    monkeypatch.setattr(device[2], "spares", False)
    assert play(task("short"), task("long", 40)).report.task("long").handovers == ()
    assert "the device has no memory for spare workers" in caplog.text


def test_a_state_has_one_checksum_here_and_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    threads = torch.get_num_threads()
    one = task("long", 3)
    job = Job(site="clinic", round=1, seed=3, mode=Mode.TRAIN, parameters=one.parameters)
    kept: list[tuple[Any, int]] = []

    def summed(state: Mapping[str, Any]) -> int:
        packing = Packing(state)
        buffer = empty_buffer(packing.size, "cpu")
        packing.into(buffer)
        return checksum(buffer)

    def between(execution: Execution) -> bool:
        if execution.state()["samples"] < 100:
            return False
        execution.pause()
        kept.append((execution.state(), summed(execution.state())))
        return True

    with pytest.raises(HandedOver):
        TaskRuntime(one, "cpu").run(job, initial_weights(one, 1), between=between)
    ((state, before),) = kept
    there = TaskRuntime(one, "cpu")
    np.random.random(7)
    standing = there.stand(job)
    assert summed(standing.state()) != before
    there.take_over(standing, state)
    assert summed(standing.state()) == before
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[asyncio.Runner, Pool, DeviceBackend]]:
    from fedmt_flower.device.backends.mps import MpsBackend

    folder = tmp_path_factory.mktemp("gpu")
    backend = MpsBackend(0, folder)
    backend.open()
    with asyncio.Runner() as runner:
        pool = Pool(backend, folder / "workers")
        runner.run(pool.open())
        yield runner, pool, backend
        runner.run(pool.close())
    backend.close()


def image_task(name: str, epochs: int, **parameters: Scalar) -> Task:
    """ResNet-18 with momentum: 45 MB of weights, as much again of optimizer."""
    return Task(
        name=name,
        model="fedmt_flower.tasks.models:resnet18",
        data="fedmt_flower.tasks.data:synthetic",
        parameters={"lr": 0.01, "momentum": 0.9, "batch_size": 128, "samples": 2048, "epochs": epochs}
        | {"in_channels": 3, "deterministic": True}
        | parameters,
    )


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("step", ["eager", "graph"])
@pytest.mark.parametrize("way", ["device", "host"])
def test_a_state_goes_to_another_seat_of_the_gpu(
    gpu: tuple[asyncio.Runner, Pool, DeviceBackend],
    step: str,
    way: str,
    layout: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """From device to device, or through the host; the second round finds its workers warm."""
    if way == "host":

        async def without_place(self: Movers, seated: Seated, target: WorkerHandle) -> bool:
            await target.ask(Stand(job=seated.job))
            return False

        monkeypatch.setattr(Movers, "_made_ready", without_place)
    rules: dict[str, Scalar] = {"step": step, "memory_format": layout}
    tasks = (image_task("short", 1, **rules), image_task("long", 24, **rules))
    _, warm = (played(*gpu, *tasks) for _ in range(2))
    assert "through the host's memory" not in caplog.text
    long = warm.report.task("long")
    assert (long.status, long.samples, long.step) == (Status.DONE, 24 * 2048, step)
    (moved,) = long.handovers
    assert moved.budget == WHOLE
    assert moved.lost_s < (0.05 if way == "device" else 1.0)
