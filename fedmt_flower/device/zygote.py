"""The process that every worker is forked from.

It has imported torch and run nothing: no operation, no user's code. It must be single-threaded, since a
child that is forked between threads inherits their locks and none of them to open them (a child of a parent
that had run one operation on two threads hung). It never sees a task: a worker learns of its own only after
the fork, from the engine.
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
import subprocess
import sys
from typing import TYPE_CHECKING

from fedmt_flower.device.frames import Failed, Fork, Forked, FromZygote, Loaded, ToWorker, ToZygote
from fedmt_flower.device.protocol import AsyncChannel, Channel, ready
from fedmt_flower.errors import EngineError

if TYPE_CHECKING:
    from typing_extensions import Buffer

log = logging.getLogger(__name__)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ENVIRONMENT = {
    # OpenBLAS starts its threads while numpy is imported. A worker's threads are torch's, by its budget.
    "OPENBLAS_NUM_THREADS": "1",
    # Waiting threads that spin starve each other's workers: three tasks of two threads each on two cores
    # trained 43 images/s in all with libgomp's own policy, 282 with this one, and one alone is no slower.
    "OMP_WAIT_POLICY": "PASSIVE",
    # The order in which sets of strings are walked must not differ from one engine to the next.
    "PYTHONHASHSEED": "0",
}


class ZygoteGone(EngineError):
    """The zygote has ended, perhaps in the midst of a fork."""


class Zygote:
    """The engine's hold of its zygote process, which is started by `open` and at once again if it dies."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: AsyncChannel[Loaded | Forked | Failed] | None = None
        self._turn = asyncio.Lock()
        self._guard: asyncio.Task[None] | None = None

    async def open(self, patience_s: float = 120.0) -> None:
        """Start the process and wait until its imports are done.

        Raises
        ------
        EngineError
            If it ends or is not ready within `patience_s` seconds.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "fedmt_flower.device.zygote", str(theirs.fileno())],
                env=os.environ | _ENVIRONMENT,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._channel = AsyncChannel(ours, FromZygote)
        try:
            async with asyncio.timeout(patience_s):
                await self._answer(self._channel)
        except (EngineError, OSError) as error:
            reason = str(error) or f"not ready within {patience_s:g} s"
            self._drop()
            raise EngineError(f"torch could not be loaded for the workers: {reason}") from error
        pidfd = os.pidfd_open(self._process.pid)
        self._guard = asyncio.create_task(self._replace(self._process, pidfd))

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
            if self._process is None or self._process.poll() is not None:
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
        """End the process; its workers go on."""
        if self._guard is not None:
            self._guard.cancel()
            self._guard = None
        self._drop()

    @property
    def pid(self) -> int:
        """The zygote's process id, 0 if there is none."""
        return self._process.pid if self._process is not None else 0

    async def _replace(self, process: subprocess.Popen[bytes], pidfd: int) -> None:
        """Wait for the end of `process`, and start another before a worker is asked for."""
        try:
            await ready(pidfd)
        finally:
            os.close(pidfd)
        async with self._turn:
            if self._process is not process:
                return
            log.warning("zygote %d ended with code %d; starting another", process.pid, process.wait())
            self._drop()
            try:
                await self.open()
            except EngineError as error:  # the next fork tries again
                log.error("%s", error)

    def _drop(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @staticmethod
    async def _answer(channel: AsyncChannel[Loaded | Forked | Failed]) -> Loaded | Forked:
        received = await channel.receive()
        if received is None:
            raise ZygoteGone("the zygote ended; the cause is in the engine's log")
        if isinstance(received.frame, Failed):
            raise EngineError(received.frame.error)
        return received.frame


def main() -> int:
    """Import what workers need, then fork one for each request; in a worker, run it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    engine = Channel(control, ToZygote)

    from fedmt_flower.device import worker

    # The first optimizer imports the one, most models the other, 3 s each: once here, not in every worker.
    for module in ("torch._dynamo", "torchvision"):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        engine.send(
            Failed(error=f"importing torch started {threads - 1} threads, so no worker can be forked")
        )
        return 1
    # What exists now is shared by all workers: keep their collectors from touching, and so copying, it.
    gc.collect()
    gc.freeze()
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


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # A worker must not run what libraries registered in the zygote for its exit.
    os._exit(code)
