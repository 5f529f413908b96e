"""The process that every worker is forked from.

It has imported torch and run nothing: no operation, no user's code. It must be single-threaded, since a
child that is forked between threads inherits their locks and none of them to open them (a child of a parent
that had run one operation on two threads hung). It never sees a task: a worker learns of its own only after
the fork, from the engine.

The engine, itself forked by a keeper that has imported torch, forks two zygotes before it does anything else.
One is a spare: a zygote that is started later has seconds of imports before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import importlib
import io
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

from fedmt_flower.device.ipc.frames import Failed, Fork, Forked, FromZygote, Loaded, ToWorker, ToZygote
from fedmt_flower.device.ipc.protocol import AsyncChannel, Channel, ready
from fedmt_flower.errors import EngineError

if TYPE_CHECKING:
    from typing_extensions import Buffer

log = logging.getLogger(__name__)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
ENVIRONMENT = {
    # OpenBLAS starts its threads while numpy is imported. A worker's threads are torch's, by its budget.
    "OPENBLAS_NUM_THREADS": "1",
    # Waiting threads that spin starve each other's workers: three tasks of two threads each on two cores
    # trained 43 images/s in all with libgomp's own policy, 282 with this one, and one alone is no slower.
    "OMP_WAIT_POLICY": "PASSIVE",
    # The order in which sets of strings are walked must not differ from one engine to the next.
    "PYTHONHASHSEED": "0",
}
"""What a process must have been started with, to be a zygote or to fork one."""


class ZygoteGone(EngineError):
    """The zygote has ended, perhaps in the midst of a fork."""


class Zygote:
    """The engine's hold of its zygote process, and of a spare one that takes its place if it dies.

    Parameters
    ----------
    spares
        Zygotes that there are already: their process ids, and the ways to them.
    """

    def __init__(self, spares: Iterable[tuple[int, socket.socket]] = ()) -> None:
        self.pid = 0
        """The zygote's process id, 0 if there is none."""
        self._spares = deque(spares)
        self._channel: AsyncChannel[Loaded | Forked | Failed] | None = None
        self._turn = asyncio.Lock()
        self._guard: asyncio.Task[None] | None = None

    @classmethod
    def forked(cls) -> Zygote:
        """Forks of this process, which has called `load` and is single-threaded still."""
        return cls([_fork_zygote(), _fork_zygote()])

    async def open(self, patience_s: float = 120.0) -> None:
        """Have a zygote, started if there is no spare one, and wait until it is ready.

        Whoever takes the last spare one starts the next, which need not be waited for.

        Raises
        ------
        EngineError
            If it ends or is not ready within `patience_s` seconds.
        """
        spare = bool(self._spares)
        self.pid, control = self._spares.popleft() if spare else _spawn_zygote()
        self._channel = AsyncChannel(control, FromZygote)
        try:
            async with asyncio.timeout(patience_s):
                await self._answer(self._channel)
        except (EngineError, OSError) as error:
            self._drop()
            if not spare:
                reason = str(error) or f"not ready within {patience_s:g} s"
                raise EngineError(f"torch could not be loaded for the workers: {reason}") from error
            await self.open(patience_s)
            return
        if spare and not self._spares:
            self._spares.append(_spawn_zygote())
        self._guard = asyncio.create_task(self._replace(self.pid, os.pidfd_open(self.pid)))

    async def fork(self, worker: socket.socket, log: int) -> int:
        """Fork a worker that speaks on `worker` and writes to the file `log`.

        Returns
        -------
        int
            Its process id: a child of this process, which must reap it.

        Raises
        ------
        EngineError
            If there is no zygote and none can be started; ZygoteGone if it ends meanwhile: the next call
            starts another, but must not be given the same `worker`, which a worker may hold already.
        """
        async with self._turn:
            if self._ended():
                self._drop()
                await self.open()
            assert self._channel is not None
            try:
                await self._channel.send(Fork(), [worker.fileno(), log])
                answer = await self._answer(self._channel)
            except OSError as error:
                self._drop()
                raise ZygoteGone(f"the zygote has ended: {error}") from error
            except ZygoteGone:
                self._drop()
                raise
            if not isinstance(answer, Forked):
                raise EngineError(f"the zygote could not fork: got {answer}")
            return answer.pid

    def close(self) -> None:
        """End the process, and the spare one; the workers go on."""
        if self._guard is not None:
            self._guard.cancel()
            self._guard = None
        self._drop()
        while self._spares:
            pid, control = self._spares.popleft()
            control.close()
            _end(pid)

    async def _replace(self, pid: int, pidfd: int) -> None:
        """Wait for the end of the zygote `pid`, and start another before a worker is asked for."""
        try:
            await ready(pidfd)
        finally:
            os.close(pidfd)
        async with self._turn:
            if self.pid != pid:
                return
            log.warning("zygote %d has ended; starting another", pid)
            self._drop()
            try:
                await self.open()
            except EngineError as error:  # the next fork tries again
                log.error("%s", error)

    def _ended(self) -> bool:
        if not self.pid:
            return True
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return found is not None

    def _drop(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self.pid:
            _end(self.pid)
            self.pid = 0

    @staticmethod
    async def _answer(channel: AsyncChannel[Loaded | Forked | Failed]) -> Loaded | Forked:
        received = await channel.receive()
        if received is None:
            raise ZygoteGone("the zygote ended; the cause is in the engine's log")
        if isinstance(received.frame, Failed):
            raise EngineError(received.frame.error)
        return received.frame


def _fork_zygote() -> tuple[int, socket.socket]:
    """Fork a zygote of this process; its process id, and the way to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    pid = os.fork()
    if pid == 0:
        _be_zygote(theirs)
    theirs.close()
    return pid, ours


def _spawn_zygote() -> tuple[int, socket.socket]:
    """Start a zygote that has yet to import everything; its process id, and the way to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        theirs.set_inheritable(True)
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", "-m", "fedmt_flower.device.processes.zygote", str(theirs.fileno())],
            os.environ | ENVIRONMENT,
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
            setsid=True,
        )
    return pid, ours


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def load() -> None:
    """Import all that workers need; EngineError if that fails, or leaves threads behind."""
    # The first optimizer imports the one, most models the other, 3 s each: once here, not in every worker.
    try:
        importlib.import_module("fedmt_flower.device.worker.process")
        for module in ("torch._dynamo", "torchvision"):
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(module)
    except Exception as error:
        raise EngineError(f"{type(error).__name__}: {error}") from error
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise EngineError(f"importing torch started {threads - 1} threads, so no worker can be forked")
    # What exists now is shared by all workers: keep their collectors from touching, and so copying, it.
    gc.collect()
    gc.freeze()


def main() -> int:
    """Import what workers need and be their zygote; in a worker, run it."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    try:
        load()
    except EngineError as error:
        log.exception("nothing can be forked")
        Channel(control, ToZygote).send(Failed(error=str(error)))
        return 1
    return _serve(control)


def _be_zygote(control: socket.socket) -> NoReturn:
    """In the fork of a process that has loaded everything: be a zygote."""
    os.setsid()
    for fd in map(int, os.listdir("/proc/self/fd")):
        # Among them is the lock of the device, which must end with the engine.
        if fd > 2 and fd != control.fileno():
            with contextlib.suppress(OSError):
                os.close(fd)
    _leave(_serve(control))


def _serve(control: socket.socket) -> int:
    """Fork a worker for each request, and run it in the fork."""
    from fedmt_flower.device.worker import process as worker

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    engine = Channel(control, ToZygote)
    engine.send(Loaded())
    while (received := engine.receive()) is not None:
        conversation, output = received.fds
        pid = _fork_orphan()
        if pid == 0:
            engine.close()
            _settle(output)
            return worker.serve(Channel(socket.socket(fileno=conversation), ToWorker))
        os.close(conversation)
        os.close(output)
        engine.send(Forked(pid=pid))
    return 0


def _fork_orphan() -> int:
    """Fork a process whose parent has ended, so that it is the engine's; as `os.fork` otherwise."""
    read, write = os.pipe()
    middle = os.fork()
    if middle == 0:
        pid = os.fork()
        if pid == 0:
            os.close(read)
            os.close(write)
            return 0
        os.write(write, pid.to_bytes(8, "little"))
        os._exit(0)
    os.close(write)
    os.waitpid(middle, 0)
    with os.fdopen(read, "rb") as pipe:
        return int.from_bytes(pipe.read(), "little")


def _settle(output: int) -> None:
    """Give the new worker a session, an output and signals of its own."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(
            io.BufferedWriter(_Output(fd, "w", closefd=False)),
            encoding="utf-8",
            errors="backslashreplace",
            line_buffering=True,
        )
        for fd in (1, 2)
    )


class _Output(io.FileIO):
    """Where a worker writes. On a full disk that is lost: no task may fail for what it prints."""

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            return memoryview(data).nbytes


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    # A worker must not run what libraries registered in the zygote for its exit.
    os._exit(code)


if __name__ == "__main__":
    _leave(main())
