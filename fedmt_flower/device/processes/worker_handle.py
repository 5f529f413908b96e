"""The engine's hold of one worker process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmt_flower.device.ipc.frames import (
    Advanced,
    Answers,
    Begin,
    Continue,
    Do,
    Done,
    Failed,
    Frame,
    Leave,
    Offer,
    Offered,
    Pause,
    Paused,
    Relieve,
    Resume,
    Stays,
    Taken,
)
from fedmt_flower.device.ipc.job import Job, JobResult
from fedmt_flower.device.ipc.prctl import TELL_WHERE
from fedmt_flower.device.ipc.protocol import AsyncChannel, Received, ready
from fedmt_flower.device.ipc.seat import Seat
from fedmt_flower.domain.task import Task
from fedmt_flower.errors import EngineError, ProtocolError, TaskError

log = logging.getLogger(__name__)

_LONGEST_LINE = 200
_TAIL = 4096
_REAP_S = 2.0
_END_S = 10.0
_TELL_S = 0.05


@dataclass(frozen=True, slots=True)
class Finished:
    """A job's result without its weights, and the memory file of these, which is the holder's to close."""

    result: JobResult
    update: int | None


@dataclass(frozen=True, slots=True)
class Baton:
    """A job that rests: where its state lies, in a memory file that is the holder's to close or elsewhere."""

    frame: Paused
    file: int | None


Outcome = Finished | Baton | Stays


class WorkerHandle:
    """A worker, child of this process: how to talk to it, and how it ended.

    Parameters
    ----------
    pid
        A child of this process, in a session of its own, that nobody else reaps.
    channel
        The conversation with it.
    log
        The file it writes to.
    run, task, seat
        What it serves and where: see `Pool.acquire`.
    """

    def __init__(
        self,
        pid: int,
        channel: AsyncChannel[Answers],
        log: Path,
        *,
        run: str,
        task: Task,
        seat: Seat,
    ) -> None:
        self.pid = pid
        self.log = log
        self.run = run
        self.task = task
        self.seat = seat
        self.budget = 0.0
        self.rounds = 0
        self.memory_bytes = 0
        self.busy = True
        self.used = time.monotonic()
        self.site = ""
        self.progress: Advanced | None = None
        self.offered: asyncio.Queue[Offered] = asyncio.Queue()
        """What the worker, at work, offers for its state."""
        self._channel = channel
        self._pidfd = os.pidfd_open(pid)
        self.ended: asyncio.Task[str] = asyncio.create_task(self._reap())
        """Done when the process and all it started have ended; tells how, as in ``was killed by SIGKILL``."""

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        if self.ended.done():
            return False
        return os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None

    async def begin(self) -> None:
        """Have the worker take its seat; EngineError if it cannot."""
        try:
            await self._send(Begin(task=self.task, seat=self.seat, parent=os.getpid()))
            received = await self._receive()
            if isinstance(received.frame, Failed):
                raise EngineError(received.frame.error)
        except EngineError as error:
            raise EngineError(f"{error}; its log is {self.log}") from error

    async def do(self, job: Job, weights: int, on_progress: Callable[[Advanced], Awaitable[None]]) -> Outcome:
        """Have the worker do `job` on the memory file `weights`; what came of it, see `follow`."""
        self.site, self.progress, self.offered = job.site, None, asyncio.Queue()
        await self._send(Do(job=job), [weights])
        return await self.follow(on_progress)

    async def follow(self, on_progress: Callable[[Advanced], Awaitable[None]]) -> Outcome:
        """Wait for what comes of the job that the worker is at.

        Raises
        ------
        TaskError
            If the job failed.
        EngineError
            If the worker ended before it was done.
        """
        while True:
            try:
                received = await self._receive()
            except asyncio.CancelledError:
                await self._tell_where()
                raise
            file = received.fds[0] if received.fds else None
            match received.frame:
                case Advanced() as progress:
                    self.progress = progress
                    await on_progress(progress)
                case Offered() as offered:
                    self.offered.put_nowait(offered)
                case Done(result=result):
                    self.rounds += 1
                    self.memory_bytes = result.memory_bytes
                    return Finished(result, file)
                case Paused() as paused:
                    return Baton(paused, file)
                case Stays() as stays:
                    return stays
                case Failed(error=error):
                    raise TaskError(error)
                case other:
                    raise EngineError(f"worker {self.pid} answered a job with {type(other).__name__}")

    async def tell(self, order: Offer | Pause | Resume | Relieve) -> None:
        """Send an order that a worker takes between two steps; EngineError if it has ended."""
        await self._send(order)

    async def take_over(self, baton: Baton) -> None:
        """Have the worker, which stands for the job, go on with it; returns once it has all it needs.

        Raises
        ------
        TaskError
            If the state has not arrived whole, or could not be put in place.
        EngineError
            If the worker ended before it said so.
        """
        frame, self.offered = baton.frame, asyncio.Queue()
        order = Continue(layout=frame.layout, size=frame.size, checksum=frame.checksum)
        await self._send(order, [] if baton.file is None else [baton.file])
        received = await self._receive()
        if isinstance(received.frame, Failed):
            raise TaskError(received.frame.error)
        if not isinstance(received.frame, Taken):
            raise EngineError(f"worker {self.pid} took a job over with {type(received.frame).__name__}")

    async def ask(self, order: Frame) -> Answers:
        """What the worker answers to an order that is no job.

        Raises
        ------
        TaskError
            If it could not do it.
        EngineError
            If it ended before it answered.
        """
        await self._send(order)
        received = await self._receive()
        if isinstance(received.frame, Failed):
            raise TaskError(received.frame.error)
        return received.frame

    async def leave(self, patience_s: float = 2.0) -> None:
        """Ask the worker to finish on its device and end; end it if it has not by then."""
        try:
            async with asyncio.timeout(patience_s):
                await self._channel.send(Leave())
                await asyncio.shield(self.ended)
        except OSError as error:
            log.info("worker %d of %s does not leave by itself: %r", self.pid, self.task.name, error)
        await self.end()

    async def end(self) -> None:
        """Kill the worker and everything it started, and wait until they are gone."""
        if not self.ended.done():
            # Until `ended` is done nobody has reaped the group, so its number still means this worker.
            _kill_group(self.pid)
            done, _ = await asyncio.wait({self.ended}, timeout=_END_S)
            if not done:
                log.error("worker %d of %s cannot be killed; left behind", self.pid, self.task.name)
        self.close()

    def close(self) -> None:
        """Hang up, once the process has ended."""
        self._channel.close()

    async def _send(self, frame: object, fds: Sequence[int] = ()) -> None:
        try:
            await self._channel.send(frame, fds)
        except TimeoutError as error:
            raise EngineError(f"worker {self.pid} does not listen") from error
        except OSError as error:
            raise EngineError(f"worker {self.pid} {await self._ending()}") from error

    async def _receive(self) -> Received[Answers]:
        try:
            received = await self._channel.receive()
        except ConnectionError:
            received = None
        except ProtocolError as error:
            raise EngineError(f"worker {self.pid} cannot be understood: {error}") from error
        if received is None:
            raise EngineError(f"worker {self.pid} {await self._ending()}")
        return received

    async def _tell_where(self) -> None:
        """Have the worker, which is about to be ended, write to its log what it was doing."""
        if self.alive:
            signal.pidfd_send_signal(self._pidfd, TELL_WHERE)
            await asyncio.sleep(_TELL_S)

    async def _ending(self) -> str:
        """How the worker, whose conversation is over, has ended, and the last thing it said."""
        done, _ = await asyncio.wait({self.ended}, timeout=1.0)
        how = self.ended.result() if done else "closed its connection to the engine"
        line = _last_line(self.log)
        return f"{how}, and last said {line!r}" if line else how

    async def _reap(self) -> str:
        """Wait for the worker's end, end what it started, and reap them all."""
        await ready(self._pidfd)
        # Processes that the worker started may hold its end of the conversation open.
        self._channel.hang_up()
        status = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT)
        assert status is not None
        _kill_group(self.pid)
        deadline = time.monotonic() + _REAP_S
        while _reap_group(self.pid) and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        os.close(self._pidfd)
        if status.si_code == os.CLD_EXITED:
            return f"exited with code {status.si_status}"
        return f"was killed by {signal.Signals(status.si_status).name}"


def _last_line(log: Path) -> str:
    """The last line of a log that is not blank, shortened."""
    with log.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        lines = file.read(_TAIL).decode(errors="replace").splitlines()
    return next((line.strip()[:_LONGEST_LINE] for line in reversed(lines) if line.strip()), "")


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        log.debug("process group %d has gone", pid)


def _reap_group(pid: int) -> bool:
    """Reap what has ended of a process group; whether some of it has not."""
    try:
        while os.waitid(os.P_PGID, pid, os.WEXITED | os.WNOHANG):
            pass
    except ChildProcessError:
        return False
    return True
