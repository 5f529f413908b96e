"""The engine as its clients see it: rounds over a socket, weights in memory files."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import Final, NoReturn

import psutil

from fedmt_flower.device.contract import Progress, RoundResult, Weights
from fedmt_flower.device.engine.home import Home
from fedmt_flower.device.ipc import memory
from fedmt_flower.device.ipc.frames import (
    Advanced,
    Complete,
    EngineStatus,
    FromEngine,
    Hello,
    Inquire,
    Metrics,
    Refused,
    Replies,
    Run,
    Scrape,
    Updated,
    Welcome,
)
from fedmt_flower.device.ipc.protocol import Channel, Received, peer
from fedmt_flower.domain.device import DeviceSettings
from fedmt_flower.domain.round import RoundOrder
from fedmt_flower.errors import ConfigError, EngineError, ProtocolError

ENGINE: Final = "fedmt_flower.device.engine.keeper"
"""The module that a process runs which is an engine, or keeps one."""
EXIT_BUSY: Final = 75
"""Exit code of an engine whose device has one already."""


class EngineGone(EngineError):
    """The engine has ended, or hung up."""


class EngineClient:
    """A conversation with a running engine.

    Parameters
    ----------
    sock
        Connected to the engine; closed by `close`.
    home
        The engine's directory.
    settings
        The site's, if it is one that calls: its deadline is that of orders that have none, and the engine
        stays for its idle time-out after it has left.

    Raises
    ------
    EngineError
        If the engine does not want this client, or (EngineGone) ends before it has answered.
    """

    def __init__(self, sock: socket.socket, home: Home, settings: DeviceSettings | None = None) -> None:
        self.home = home
        self.pid = peer(sock).pid
        self._channel: Channel[Replies] = Channel(sock, FromEngine)
        self._waiting = False
        self._deadline_s = settings.deadline_s if settings else None
        hello = Hello(
            version=version("fedmt_flower"), idle_timeout_s=settings.idle_timeout_s if settings else 0.0
        )
        try:
            answer = self._ask(hello)
            if not isinstance(answer.frame, Welcome):
                raise ProtocolError(f"engine {self.pid} answered a greeting with {answer.frame}")
        except BaseException:
            self.close()
            raise
        self.backend = answer.frame.backend

    def run_round(
        self,
        order: RoundOrder,
        weights: Mapping[str, Weights],
        on_progress: Callable[[Progress], None] | None = None,
    ) -> RoundResult:
        """Run one round of one site; see `fedmt_flower.device.contract.Engine`.

        Interrupted (Ctrl-C, an exception of `on_progress`), it hangs up, and the engine ends the round.
        """
        if order.deadline_s is None:
            order = replace(order, deadline_s=self._deadline_s)
        names = order.brings
        absent = [name for name in names if name not in weights]
        if absent:
            raise EngineError(f"site {order.site!r}, round {order.round}: no weights for {', '.join(absent)}")
        self._waiting = True
        try:
            with _written({name: weights[name] for name in names}) as files:
                received = self._ask(Run(order=order), files)
            return self._follow(received, on_progress or _ignore)
        finally:
            if self._waiting:
                self.close()

    def status(self) -> EngineStatus:
        """What the engine is doing."""
        answer = self._ask(Inquire())
        if not isinstance(answer.frame, EngineStatus):
            raise ProtocolError(f"engine {self.pid} answered a question with {type(answer.frame).__name__}")
        return answer.frame

    def metrics(self) -> str:
        """What the engine tells those who watch it, in Prometheus' text format."""
        answer = self._ask(Scrape())
        if not isinstance(answer.frame, Metrics):
            raise ProtocolError(f"engine {self.pid} answered a question with {type(answer.frame).__name__}")
        return answer.frame.text

    def stop(self) -> None:
        """End the engine as `stop_engine` does."""
        self.close()
        stop_engine(self.home, self.pid)

    def close(self) -> None:
        """Hang up; the engine goes on until its lease ends or it is stopped."""
        self._channel.close()

    def _follow(self, received: Received[Replies], on_progress: Callable[[Progress], None]) -> RoundResult:
        updates: dict[str, Weights] = {}
        while True:
            match received.frame:
                case Advanced(task=task, samples=samples, total=total):
                    on_progress(Progress(task=task, samples=samples, total=total))
                case Updated(task=task) if len(received.fds) == 1:
                    updates[task] = _take(received.fds[0])
                case Complete(report=report):
                    # Tasks end in any order; the result names them in the round's.
                    self._waiting = False
                    done = [t.task for t in report.tasks if t.task in updates]
                    return RoundResult(report=report, weights={name: updates[name] for name in done})
                case other:
                    raise ProtocolError(f"engine {self.pid} sent {type(other).__name__} in a round")
            received = self._receive()

    def _ask(self, frame: object, fds: list[int] | None = None) -> Received[Replies]:
        try:
            self._channel.send(frame, fds or [])
        except OSError as error:
            self._lose(error)
        return self._receive()

    def _receive(self) -> Received[Replies]:
        try:
            received = self._channel.receive()
        except OSError as error:
            self._lose(error)
        if received is None:
            self._lose()
        if isinstance(received.frame, Refused):
            self._waiting = False
            if received.frame.problems:
                raise ConfigError(*received.frame.problems)
            raise EngineError(received.frame.error)
        return received

    def _lose(self, error: OSError | None = None) -> NoReturn:
        self.close()
        said = self.home.log_tail()
        raise EngineGone(
            f"engine {self.pid} of {self.home.device} is gone"
            f"{f'; its last line was {said!r}' if said else ''}; its log is {self.home.log}"
        ) from error


def stop_engine(home: Home, pid: int, patience_s: float = 30.0) -> None:
    """End the engine `pid` of `home`, its workers first, and wait until it has; rounds under way are lost.

    A signal does it, so it also ends an engine of another version, or one that no longer answers its socket.

    Raises
    ------
    EngineError
        If it has not ended within `patience_s` seconds.
    """
    with ExitStack() as files:
        try:
            engine = os.pidfd_open(pid)
            files.callback(os.close, engine)
            ending = [engine]
            if keeper := _keeper(pid):
                ending.append(os.pidfd_open(keeper))
                files.callback(os.close, ending[-1])
            signal.pidfd_send_signal(engine, signal.SIGTERM)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + patience_s
        for process in ending:
            if not select.select([process], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise EngineError(
                    f"engine {pid} of {home.device} has not ended within {patience_s:g} s; "
                    f"its log is {home.log}"
                )


def _keeper(pid: int) -> int:
    """The process that would start another in place of the engine `pid`; 0 if there is none."""
    try:
        parent = psutil.Process(pid).parent()
        return parent.pid if parent and ENGINE in parent.cmdline() else 0
    except psutil.Error:
        return 0


@contextmanager
def _written(weights: Mapping[str, Weights]) -> Iterator[list[int]]:
    """Memory files of `weights`, closed afterwards; written at once, since the kernel has pages to find."""
    with ExitStack() as files:

        def write(name: str, state: Weights) -> int:
            file = memory.write(name, state)
            files.callback(os.close, file)
            return file

        with ThreadPoolExecutor(max(1, len(weights))) as writers:
            written = list(writers.map(write, weights, weights.values()))
        yield written


def _take(file: int) -> Weights:
    try:
        return memory.read(file)
    finally:
        os.close(file)


def _ignore(progress: Progress) -> None:
    """Progress that nobody asked for."""
