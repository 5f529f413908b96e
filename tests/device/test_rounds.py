"""A round whose device is lost to its workers in the midst of it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fedmt_flower.device import memory
from fedmt_flower.device.backends.cpu import CpuBackend
from fedmt_flower.device.pool import Pool
from fedmt_flower.device.rounds import Round
from fedmt_flower.domain.allocation import Policy
from fedmt_flower.domain.plan import DevicePlan
from fedmt_flower.domain.round import RoundOrder, RoundReport, Status
from fedmt_flower.domain.task import Task
from fedmt_flower.planning.allocation import plan_round


class Fragile(CpuBackend):
    """CPUs that are lost once the file `flag` is there."""

    def __init__(self, flag: Path) -> None:
        super().__init__()
        self._flag = flag

    def lost(self) -> str:
        return "the device has ended, in the midst of work" if self._flag.exists() else ""


def plan_of(order: RoundOrder) -> DevicePlan:
    return DevicePlan(plan=plan_round(order.allocation, tuple(a.task.name for a in order.assignments)))


def test_a_lost_device_fails_its_round_by_name_and_at_once(
    tmp_path: Path,
    make_task: Callable[..., Task],
    make_order: Callable[..., RoundOrder],
    weights: Mapping[str, NDArray[Any]],
) -> None:
    flag = tmp_path / "lost"
    task = make_task("hangs", "forever")
    file = memory.write("hangs", weights)

    async def ignore(*_: object) -> None:
        """Nothing is told of this round."""

    async def lose() -> RoundReport:
        backend = Fragile(flag)
        pool = Pool(backend, tmp_path / "workers")
        await pool.open()
        order = make_order(task)
        round_ = Round(order, plan_of(order), {"hangs": file}, pool, backend, time.monotonic())
        running = asyncio.create_task(round_.run(ignore, ignore))
        while not any(worker.busy for worker in pool.workers):
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        assert not running.done()
        flag.touch()
        async with asyncio.timeout(5):
            report = await running
        await pool.close()
        return report

    report = asyncio.run(lose())
    os.close(file)
    (failed,) = report.tasks
    assert failed.status is Status.FAILED
    assert "task 'hangs': the device has ended, in the midst of work" in failed.error


def test_the_federations_deadline_counts_from_the_arrival_of_the_round(
    tmp_path: Path,
    make_task: Callable[..., Task],
    make_order: Callable[..., RoundOrder],
    weights: Mapping[str, NDArray[Any]],
) -> None:
    """The second of two tasks in turn has only what the first has left of it."""
    names = ("first", "second")
    order = make_order(*(make_task(name, "forever") for name in names), policy=Policy.TEMPORAL)
    order = replace(order, assignments=tuple(replace(one, deadline_s=3.0) for one in order.assignments))
    files = {name: memory.write(name, weights) for name in names}

    async def ignore(*_: object) -> None:
        """Nothing is told of this round."""

    async def play() -> RoundReport:
        pool = Pool(CpuBackend(), tmp_path / "workers")
        await pool.open()
        arrival = time.monotonic()
        report = await Round(order, plan_of(order), files, pool, CpuBackend(), arrival).run(ignore, ignore)
        assert 2.9 < time.monotonic() - arrival < 8
        await pool.close()
        return report

    report = asyncio.run(play())
    for file in files.values():
        os.close(file)
    for task in report.tasks:
        assert task.status is Status.FAILED
        assert "no result within the federation's deadline of 3 s since the round arrived" in task.error
