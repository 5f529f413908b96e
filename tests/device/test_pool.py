"""The pool by itself, without an engine around it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from fedmt_flower.device.backends.cpu import CpuBackend
from fedmt_flower.device.processes import pool as pool_module
from fedmt_flower.device.processes.pool import Pool
from fedmt_flower.domain.plan import Sharing
from fedmt_flower.domain.task import Task
from fedmt_flower.errors import EngineError


def children() -> set[int]:
    """This process's children; it has those too that other tests' processes left it, as their reaper."""
    return {child.pid for child in psutil.Process().children()}


def test_workers_come_stay_and_go(
    tmp_path: Path, make_task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One story, since every pool costs an import of torch."""
    backend = CpuBackend()
    backend.max_workers = 2
    seat = backend.seat(100, Sharing.CAPPED)
    a, b, c = (make_task(name) for name in "abc")

    async def story() -> list[int]:
        pool = Pool(backend, tmp_path / "workers")
        await pool.open()
        zygote = pool._zygote.pid
        assert psutil.Process(zygote).num_threads() == 1

        first = await pool.acquire("run", a, seat)
        second = await pool.acquire("run", b, seat)
        assert psutil.Process(first.pid).ppid() == os.getpid()
        with pytest.raises(EngineError, match="at most 2 workers at once"):
            await pool.acquire("run", c, seat)

        pool.release(second)
        pool.release(first)
        assert await pool.acquire("run", a, seat) is first
        pool.release(first)
        third = await pool.acquire("run", c, seat)  # b's was idle for longest
        assert second.ended.result() == "exited with code 0"
        assert list(pool.workers) == [first, third]

        monkeypatch.setattr(pool_module, "_STALE_S", 0.0)
        pool.release(third)
        fourth = await pool.acquire("another run", a, seat)
        assert list(pool.workers) == [fourth]

        os.kill(zygote, signal.SIGKILL)
        while psutil.Process(zygote).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.001)
        fifth = await pool.acquire("another run", b, seat)
        assert list(pool.workers) == [fourth, fifth]

        pool.release(fourth)
        pool.release(fifth)
        os.kill(pool._zygote.pid, signal.SIGSTOP)
        sixth = asyncio.create_task(pool.acquire("another run", c, seat))
        await asyncio.sleep(0.3)
        assert not sixth.done()
        os.kill(pool._zygote.pid, signal.SIGKILL)  # with a fork under way
        assert (await sixth).alive
        pool.release(await sixth)

        pids = [worker.pid for worker in (first, second, third, fourth, fifth)]
        await pool.close()
        assert pool.workers == ()
        return [*pids, zygote, pool._zygote.pid]

    before = children()
    assert not any(pid and psutil.pid_exists(pid) for pid in asyncio.run(story()))
    assert children() <= before


class FullOfWorkers(CpuBackend):
    """A device of 8 GiB, of which each process in `holding` takes 3."""

    def __init__(self) -> None:
        super().__init__()
        self.holding: set[int] = set()

    def memory(self) -> tuple[int, int]:
        return sum(3 << 30 for pid in self.holding if psutil.pid_exists(pid)), 8 << 30


def test_workers_leave_for_one_that_needs_their_memory(
    tmp_path: Path, make_task: Callable[..., Task]
) -> None:
    backend = FullOfWorkers()
    task = make_task("a")
    seats = [replace(backend.seat(100, Sharing.CAPPED), level=level) for level in (1, 2, 3)]

    async def story() -> None:
        pool = Pool(backend, tmp_path / "workers")
        await pool.open()
        first, second = [await pool.acquire("run", task, seat) for seat in seats[:2]]
        for worker in (first, second):
            worker.memory_bytes = 3 << 30
            backend.holding.add(worker.pid)
            pool.release(worker)
        third = await pool.acquire("run", task, seats[2])
        assert first.ended.result() == "exited with code 0"
        assert list(pool.workers) == [second, third]
        pool.release(third)
        await pool.close()

    asyncio.run(story())


def test_a_worker_that_was_told_to_leave_goes_where_waiting_for_it_is_called_off(
    tmp_path: Path, make_task: Callable[..., Task]
) -> None:
    backend = CpuBackend()
    backend.max_workers = 1
    seat = backend.seat(100, Sharing.CAPPED)

    async def story() -> None:
        pool = Pool(backend, tmp_path / "workers")
        await pool.open()
        first = await pool.acquire("run", make_task("a"), seat)
        pool.release(first)
        os.kill(first.pid, signal.SIGSTOP)  # it does not listen
        second = asyncio.create_task(pool.acquire("run", make_task("b"), seat))
        await asyncio.sleep(0.1)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        async with asyncio.timeout(1):
            assert await first.ended == "was killed by SIGKILL"
        assert not pool.workers
        await pool.close()

    asyncio.run(story())


class Broken(CpuBackend):
    """A device that has failed until it is opened again."""

    def __init__(self) -> None:
        super().__init__()
        self.reason = "it broke"

    def healthy(self) -> str:
        return self.reason

    def reopen(self) -> None:
        self.reason = ""


def test_a_worker_that_is_being_forked_does_not_outlive_the_devices_failure(
    tmp_path: Path, make_task: Callable[..., Task]
) -> None:
    backend = Broken()

    async def story() -> None:
        pool = Pool(backend, tmp_path / "workers")
        await pool.open()
        starting = asyncio.create_task(pool.acquire("run", make_task("a"), backend.seat(100, Sharing.CAPPED)))
        await asyncio.sleep(0)
        assert not pool.workers
        await pool.refresh()
        assert not backend.reason
        await asyncio.wait({starting})
        assert starting.exception() is None or isinstance(starting.exception(), EngineError)
        assert not pool.workers
        await pool.close()

    asyncio.run(story())


def test_a_call_that_is_cancelled_leaves_no_worker_behind(
    tmp_path: Path, make_task: Callable[..., Task]
) -> None:
    backend = CpuBackend()
    seat = backend.seat(100, Sharing.CAPPED)

    async def story() -> None:
        pool = Pool(backend, tmp_path / "workers")
        await pool.open()
        for patience_s in (0.0, 0.003, 0.01, 0.03):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(patience_s), pool.worker("run", make_task("a"), seat):
                    await asyncio.sleep(60)
            assert pool.workers == ()
        await pool.close()

    before = children()
    asyncio.run(story())
    assert children() <= before
