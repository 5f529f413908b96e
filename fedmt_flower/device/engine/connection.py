"""The way to the engine of a device: find it, start it, stop it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import msgspec

from fedmt_flower.device.backends import chosen, device_name
from fedmt_flower.device.contract import Engine
from fedmt_flower.device.engine.client import ENGINE, EXIT_BUSY, EngineClient, EngineGone, stop_engine
from fedmt_flower.device.engine.home import Home, homes
from fedmt_flower.device.ipc.frames import EngineStatus
from fedmt_flower.device.ipc.protocol import peer
from fedmt_flower.domain.device import Backend, DeviceSettings
from fedmt_flower.errors import EngineError


def connect(settings: DeviceSettings, patience_s: float = 150.0) -> Engine:
    """The engine of a device, started if there is none; the inline engine if that is asked for.

    An engine that is started here outlives this process, until its lease ends or it is stopped.

    Parameters
    ----------
    settings
        The device.
    patience_s
        Seconds to wait for an engine that starts.

    Raises
    ------
    EngineError
        If none can be started, or the one there does not serve this user or version.
    """
    if settings.backend is Backend.INLINE:
        from fedmt_flower.device.inline import InlineEngine

        return InlineEngine()
    settings = replace(settings, backend=chosen(settings))
    home = Home(device_name(settings))
    deadline = time.monotonic() + patience_s
    while (client := attach(home, settings)) is None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise EngineError(
                f"the engine of {home.device} was not ready within {patience_s:g} s; its log is {home.log}"
            )
        if not _start(settings, home, left):
            time.sleep(0.05)
    return client


def attach(home: Home, settings: DeviceSettings | None = None) -> EngineClient | None:
    """A client of the engine that runs in `home`; None if none does. EngineError as `connect`."""
    sock = _dial(home)
    if sock is None:
        return None
    try:
        return EngineClient(sock, home, settings)
    except EngineGone:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningEngine:
    """An engine that was there when it was looked for."""

    home: Home
    pid: int

    def status(self) -> EngineStatus:
        """What it is doing; EngineError if it cannot be asked."""
        with self._conversation() as client:
            return client.status()

    def metrics(self) -> str:
        """Its metrics in Prometheus' text format; EngineError if it cannot be asked."""
        with self._conversation() as client:
            return client.metrics()

    def stop(self) -> None:
        """End it as `stop_engine` does."""
        stop_engine(self.home, self.pid)

    @contextmanager
    def _conversation(self) -> Iterator[EngineClient]:
        client = attach(self.home)
        if client is None:
            raise EngineGone(f"engine {self.pid} of {self.home.device} has ended")
        try:
            yield client
        finally:
            client.close()


def running() -> tuple[RunningEngine, ...]:
    """This user's engines, on all devices; starts none."""
    found = []
    for home in homes():
        sock = _dial(home)
        if sock is not None:
            with sock:
                found.append(RunningEngine(home=home, pid=peer(sock).pid))
    return tuple(found)


def _dial(home: Home) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with home.address() as address:
            sock.connect(address)
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except OSError as error:
        sock.close()
        raise EngineError(f"the engine's directory {home.path} cannot be used: {error}") from error
    if (user := peer(sock).user) != os.getuid():
        # Anybody may make a directory in /tmp first, and weights would go to whoever listens there.
        sock.close()
        raise EngineError(
            f"the engine in {home.path} is user {user}'s, not this user's ({os.getuid()}); "
            "set FEDMT_HOME to a directory of your own"
        )
    return sock


def _start(settings: DeviceSettings, home: Home, patience_s: float) -> bool:
    """Start an engine and wait until it is ready; False if the device has one that may be about to be."""
    home.make()
    # -P: what a worker can import must not depend on where its engine happened to be started.
    command = [sys.executable, "-P", "-m", ENGINE, "--detach"]
    try:
        started = subprocess.run(
            [*command, "--settings", msgspec.json.encode(settings).decode()],
            cwd=home.path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=patience_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    if started.returncode not in (0, EXIT_BUSY):
        reason = (started.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise EngineError(f"the engine of {home.device} did not start: {reason}; its log is {home.log}")
    return started.returncode == 0
