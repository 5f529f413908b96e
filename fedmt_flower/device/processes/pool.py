"""Warm workers: started once for a task and a seat, kept from round to round."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from fedmt_flower.device.backends import DeviceBackend
from fedmt_flower.device.ipc.frames import FromWorker
from fedmt_flower.device.ipc.prctl import become_subreaper
from fedmt_flower.device.ipc.protocol import AsyncChannel
from fedmt_flower.device.ipc.seat import Seat
from fedmt_flower.device.processes.worker_handle import WorkerHandle
from fedmt_flower.device.processes.zygote import Zygote, ZygoteGone
from fedmt_flower.domain.task import Task
from fedmt_flower.errors import EngineError

log = logging.getLogger(__name__)

_STALE_S = 60.0
_KEPT_LOGS = 64
_CONTEXT_BYTES = 1 << 29
"""What CUDA holds for a process beside what torch counts."""


class Pool:
    """The workers of one device.

    Parameters
    ----------
    backend
        The device, opened.
    directory
        Private directory for the workers' logs.
    zygote
        What workers are forked from; None starts one.
    """

    def __init__(self, backend: DeviceBackend, directory: Path, zygote: Zygote | None = None) -> None:
        self._backend = backend
        self._directory = directory
        self._zygote = zygote or Zygote()
        self._workers: list[WorkerHandle] = []
        self._serial = itertools.count(1)
        self._making_room = asyncio.Lock()

    @property
    def workers(self) -> Sequence[WorkerHandle]:
        """The workers there are, oldest first."""
        return tuple(self._workers)

    async def open(self) -> None:
        """Start the zygote; EngineError if that fails."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        become_subreaper()
        await self._zygote.open()

    @asynccontextmanager
    async def worker(self, run: str, task: Task, seat: Seat) -> AsyncIterator[WorkerHandle]:
        """Hold a worker for one job: kept warm afterwards, or ended if the job fails or is called off."""
        worker = await self.acquire(run, task, seat)
        try:
            yield worker
        except BaseException:
            await self.discard(worker)
            raise
        self.release(worker)

    async def acquire(self, run: str, task: Task, seat: Seat) -> WorkerHandle:
        """An idle worker of `task` in `seat`, or a new one; give it back by `release` or `discard`.

        A worker serves every site of its run, whatever the task's parameters: those come with each job.
        It serves no other run, since the user's code may have changed in between.

        Raises
        ------
        EngineError
            If no worker can be started, or the device takes no more of them.
        """
        if (found := self._idle(run, task, seat)) is not None:
            found.busy = True
            return found
        task = replace(task, parameters={})
        async with self._making_room:
            await self._make_room(run)
            await self._free_memory(task)
            worker = await self._fork(run, task, seat)
        try:
            await worker.begin()
            self._backend.welcome(worker.pid, seat)
        except BaseException:
            await self.discard(worker)
            raise
        return worker

    def is_warm(self, run: str, task: Task, seat: Seat) -> bool:
        """Whether `acquire` would not have to start a worker."""
        return self._idle(run, task, seat) is not None

    def release(self, worker: WorkerHandle) -> None:
        """Keep `worker` for the next round."""
        worker.busy = False
        worker.used = time.monotonic()

    async def discard(self, worker: WorkerHandle) -> None:
        """End `worker` at once, whatever it is doing."""
        if not worker.ended.done():
            self._backend.evict(worker.pid)
        await worker.end()

    async def refresh(self) -> None:
        """Begin anew with the device if it has failed; to be called between rounds.

        Workers that are being started for later rounds end with the others.
        """
        reason = self._backend.healthy()
        if reason:
            log.error("%s; starting again", reason)
            async with self._making_room:  # else one that is being forked would outlive the device's failure
                await asyncio.gather(*(self.discard(worker) for worker in self._workers))
                self._backend.reopen()

    async def close(self) -> None:
        """Let idle workers leave, end the others, and end the zygote."""
        await asyncio.gather(
            *(self.discard(worker) if worker.busy else self._dismiss(worker) for worker in self._workers)
        )
        self._zygote.close()

    def _idle(self, run: str, task: Task, seat: Seat) -> WorkerHandle | None:
        wanted = (run, replace(task, parameters={}), seat)
        fitting = (w for w in self._workers if (w.run, w.task, w.seat) == wanted)
        return next((worker for worker in fitting if not worker.busy and worker.alive), None)

    async def _dismiss(self, worker: WorkerHandle) -> None:
        worker.busy = True
        try:
            await worker.leave()
        except BaseException:
            await self.discard(worker)  # called off, but nobody else would end it
            raise

    async def _make_room(self, run: str) -> None:
        """Let idle workers leave: those of runs long silent, and the least used of a full device."""
        now = time.monotonic()
        idle = sorted((w for w in self._workers if not w.busy), key=lambda worker: worker.used)
        going = [w for w in idle if w.run != run and now - w.used > _STALE_S]
        staying = [w for w in idle if w not in going]
        excess = len(self._workers) - len(going) + 1 - self._backend.max_workers
        if excess > len(staying):
            raise EngineError(
                f"{self._backend.name} takes at most {self._backend.max_workers} workers at once, "
                "and all are at work: put fewer tasks in a round"
            )
        going += staying[: max(0, excess)]
        await asyncio.gather(*(self._dismiss(worker) for worker in going))

    async def _free_memory(self, task: Task) -> None:
        """Let idle workers leave, the longest unused first, until the device has memory for one of `task`.

        Workers keep what their rounds took, so that those of many seats would fill a GPU in the end.
        """
        known = [worker for worker in self._workers if worker.memory_bytes]
        if not known:  # as on CPUs, where nobody counts
            return
        own = [worker.memory_bytes for worker in known if worker.task == task]
        needed = _CONTEXT_BYTES + max(own or [worker.memory_bytes for worker in known])
        # Those that are starting side by side hold nothing yet.
        needed *= 1 + sum(worker.busy and not worker.memory_bytes for worker in self._workers)
        for worker in sorted(self._workers, key=lambda worker: worker.used):
            used, total = self._backend.memory()
            if needed <= total - used:
                return
            if not worker.busy:
                log.info("worker %d of %s leaves: its memory is needed", worker.pid, worker.task.name)
                await self._dismiss(worker)

    async def _fork(self, run: str, task: Task, seat: Seat) -> WorkerHandle:
        path = self._directory / f"{task.name}-{next(self._serial)}.log"
        try:
            self._prune_logs()
            output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        except OSError as error:
            raise EngineError(f"no log can be written for a worker of {task.name!r}: {error}") from error
        forking = asyncio.ensure_future(self._call_zygote(output))
        try:
            # A fork under way cannot be called back, and its worker must have a handle to be ended by.
            cancelled = not await _finished(forking)
            pid, sock = forking.result()
        finally:
            os.close(output)
        channel = AsyncChannel(sock, FromWorker)
        worker = WorkerHandle(pid, channel, path, run=run, task=task, seat=seat)
        self._workers.append(worker)
        worker.ended.add_done_callback(lambda _: self._forget(worker))
        if cancelled:
            await worker.end()
            raise asyncio.CancelledError
        return worker

    async def _call_zygote(self, output: int) -> tuple[int, socket.socket]:
        """A new worker's process id and the way to it; by another zygote if the first ends meanwhile."""
        try:
            return await self._call_zygote_once(output)
        except ZygoteGone as error:
            log.warning("%s; a worker is asked of another", error)
            return await self._call_zygote_once(output)

    async def _call_zygote_once(self, output: int) -> tuple[int, socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                return await self._zygote.fork(theirs, output), ours
            except BaseException:
                ours.close()
                raise

    def _forget(self, worker: WorkerHandle) -> None:
        self._workers.remove(worker)
        if not worker.busy:
            log.warning("idle worker %d of %s %s", worker.pid, worker.task.name, worker.ended.result())
            worker.close()

    def _prune_logs(self) -> None:
        """Delete the oldest logs of workers that have ended."""
        living = {worker.log for worker in self._workers}
        ended = [path for path in self._directory.glob("*.log") if path not in living]
        for path in sorted(ended, key=lambda path: path.stat().st_mtime)[:-_KEPT_LOGS]:
            path.unlink()


async def _finished(future: asyncio.Future[tuple[int, socket.socket]]) -> bool:
    """Wait until `future` is done, come what may; False if this coroutine was cancelled meanwhile."""
    try:
        await asyncio.wait({future})
    except asyncio.CancelledError:
        await asyncio.wait({future})
        return False
    return True
