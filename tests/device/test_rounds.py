"""A round whose device is lost to its workers in the midst of it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from fedmt_flower.device.backends.cpu import CpuBackend
from fedmt_flower.device.engine.rounds import Round
from fedmt_flower.device.ipc import memory
from fedmt_flower.device.processes.pool import Pool
from fedmt_flower.domain.allocation import Policy
from fedmt_flower.domain.coordination import Coordination, NetworkRules, OverlapRules
from fedmt_flower.domain.network import Link, Overlap
from fedmt_flower.domain.plan import DevicePlan
from fedmt_flower.domain.round import Mode, RoundOrder, RoundReport, Status
from fedmt_flower.domain.task import Task
from fedmt_flower.domain.timeline import Phase, Span
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


LINK = Link(up_mbps=0.1, down_mbps=0.05, latency_s=0.05)
SECONDS = {"long": 0.9, "short": 0.3, "fails": 0.0}


def test_rounds_over_an_emulated_link_are_those_that_its_rules_give(
    tmp_path: Path,
    make_task: Callable[..., Task],
    make_order: Callable[..., RoundOrder],
    weights: Mapping[str, NDArray[Any]],
) -> None:
    tasks = [
        make_task(name, "raise" if name == "fails" else "sleep", seconds=s) for name, s in SECONDS.items()
    ]
    files = {name: memory.write(name, weights) for name in SECONDS}
    sizes: dict[str, int] = {}

    def order_of(overlap: Overlap, policy: Policy) -> RoundOrder:
        rules = Coordination(overlap=OverlapRules(policy=overlap), network=NetworkRules(link=LINK))
        return replace(make_order(*tasks, mode=Mode.TRAIN, policy=policy), coordination=rules)

    async def ignore(*_: object) -> None:
        """Nothing is told of this round."""

    async def take(task: str, update: int) -> None:
        sizes[task] = os.fstat(update).st_size

    async def play(orders: list[RoundOrder]) -> list[RoundReport]:
        pool = Pool(CpuBackend(), tmp_path / "workers")
        await pool.open()
        warm = replace(orders[0], coordination=Coordination())
        reports = []
        for order in (warm, *orders):
            arrival = time.monotonic()
            work = Round(order, plan_of(order), files, pool, CpuBackend(), arrival)
            reports.append(await work.run(ignore, take))
        await pool.close()
        return reports[1:]

    cases = [
        (Overlap.OFF, Policy.SHARING),
        (Overlap.FIFO, Policy.SHARING),
        (Overlap.FIFO, Policy.TEMPORAL),
    ]
    reports = asyncio.run(play([order_of(*case) for case in cases]))
    down = LINK.download_s(os.fstat(files["long"]).st_size)
    up = LINK.upload_s(sizes["long"])
    for file in files.values():
        os.close(file)
    for (overlap, policy), report in zip(cases, reports, strict=True):
        assert report.link == LINK
        seen: dict[tuple[str, Phase], Span] = {
            (s.task, s.phase): s for s in report.timeline if s.phase is not Phase.PREPARE
        }
        expected = rounds_of(overlap is Overlap.OFF, policy is Policy.TEMPORAL, down, up)
        assert seen.keys() == {(s.task, s.phase) for s in expected}, "what failed is not uploaded"
        for span in expected:
            got = seen[span.task, span.phase]
            assert (got.start_s, got.end_s) == pytest.approx((span.start_s, span.end_s), abs=0.25), span


def test_a_link_that_never_gets_there_ends_with_its_round(
    tmp_path: Path,
    make_task: Callable[..., Task],
    make_order: Callable[..., RoundOrder],
    weights: Mapping[str, NDArray[Any]],
) -> None:
    """By a deadline, by the name of each task; and at once when the round is called off."""
    names = ("first", "second")
    dead = Coordination(network=NetworkRules(link=Link(up_mbps=1, down_mbps=1e-9)))
    order = replace(make_order(*(make_task(name, "forever") for name in names)), coordination=dead)
    limited = replace(
        order,
        assignments=(
            replace(order.assignments[0], deadline_s=0.5),
            replace(order.assignments[1], deadline_s=1.0),
        ),
    )
    files = {name: memory.write(name, weights) for name in names}

    async def ignore(*_: object) -> None:
        """Nothing is told of this round."""

    async def play() -> tuple[RoundReport, int]:
        pool = Pool(CpuBackend(), tmp_path / "workers")
        await pool.open()
        plan = plan_of(order)
        async with asyncio.timeout(60):
            report = await Round(limited, plan, files, pool, CpuBackend(), time.monotonic()).run(
                ignore, ignore
            )
        endless = Round(order, plan, files, pool, CpuBackend(), time.monotonic())
        running = asyncio.create_task(endless.run(ignore, ignore))
        while sum(worker.busy for worker in pool.workers) < 2:
            await asyncio.sleep(0.05)
        running.cancel()
        async with asyncio.timeout(5):
            await asyncio.gather(running, return_exceptions=True)
        left = len(pool.workers)
        await pool.close()
        return report, left

    report, left = asyncio.run(play())
    for file in files.values():
        os.close(file)
    for task, limit in zip(report.tasks, ("0.5", "1"), strict=True):
        assert task.status is Status.FAILED
        assert (
            f"no result within the federation's deadline of {limit} s since the round arrived" in task.error
        )
    assert report.timeline == ()
    assert left == 0


def rounds_of(phased: bool, in_turn: bool, down: float, up: float) -> list[Span]:
    """The tasks of `SECONDS`, one of which fails, where each transfer takes as long."""
    spans = []

    def span(task: str, phase: Phase, start: float, lasts: float) -> float:
        spans.append(Span(task=task, phase=phase, start_s=start, end_s=start + lasts))
        return start + lasts

    ends: dict[str, float] = {}
    for place, task in enumerate(SECONDS):
        ready = span(task, Phase.DOWNLOAD, place * down, down)
        if task != "fails":
            start = max(3 * down if phased else ready, max(ends.values(), default=0.0) if in_turn else 0.0)
            ends[task] = span(task, Phase.COMPUTE, start, SECONDS[task])
    free = max(ends.values()) if phased else 0.0
    for task in sorted(ends, key=ends.__getitem__):
        free = span(task, Phase.UPLOAD, max(free, ends[task]), up)
    return spans
