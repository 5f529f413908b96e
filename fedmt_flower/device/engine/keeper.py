"""The resident engine: the one process that owns a device, and the one that keeps it.

Usually started by a client, and otherwise as
``python -m fedmt_flower.device.engine.keeper --settings '{"backend": "cpu"}'``.

The *keeper* imports torch, which takes seconds, and forks the engine. It does nothing else but wait: should
the engine be killed, it forks another, which is ready at once.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import logging
import os
import signal
import sys
import time
from types import FrameType
from typing import Final, NoReturn

import msgspec

from fedmt_flower.device.backends import device_name, make_backend
from fedmt_flower.device.engine.client import EXIT_BUSY
from fedmt_flower.device.engine.home import EngineBusy, Home
from fedmt_flower.device.engine.server import Server
from fedmt_flower.device.ipc.prctl import TELL_WHERE
from fedmt_flower.device.processes import zygote
from fedmt_flower.domain.device import DeviceSettings
from fedmt_flower.errors import EngineError

log = logging.getLogger(__name__)

_SHORTEST_S: Final = 1.0
"""An engine that is killed sooner than this after its start is not started again: it might go on for ever."""


class _Starter:
    """Who started an engine, and waits to hear how that went: through a pipe, or at the terminal."""

    def __init__(self, pipe: int | None = None) -> None:
        self._pipe = pipe
        self._waits = True

    def tell(self, code: int, message: str = "") -> None:
        """Say with which exit code and line the start failed, or with 0 that clients can connect."""
        if not self._waits:
            return
        if self._pipe is None:
            sys.stderr.write(message)
            return
        try:
            os.write(self._pipe, f"{code} {message}".encode())
        except BrokenPipeError:
            log.warning("nobody waited for the engine to be ready")
        self.leave()

    def leave(self) -> None:
        """Leave it to another process to tell, if that has not been done."""
        if self._waits and self._pipe is not None:
            os.close(self._pipe)
        self._waits = False


def main() -> None:
    """Run an engine until it is told to stop."""
    parser = argparse.ArgumentParser(prog="python -m fedmt_flower.device.engine.keeper", description=__doc__)
    parser.add_argument("--settings", default="{}", help="the device's settings, as JSON")
    parser.add_argument(
        "--detach",
        action="store_true",
        help="go into the background, writing to the engine's log, once ready",
    )
    arguments = parser.parse_args()
    try:
        settings = msgspec.json.decode(arguments.settings, type=DeviceSettings)
    except msgspec.MsgspecError as error:
        parser.error(f"--settings: {error}")
    if not zygote.ENVIRONMENT.items() <= os.environ.items():
        command = [sys.executable, "-P", "-m", "fedmt_flower.device.engine.keeper", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | zygote.ENVIRONMENT)
    if arguments.detach:
        parser.exit(*_detached(settings))

    sys.exit(keep(settings, _Starter()))


def keep(settings: DeviceSettings, starter: _Starter, *, to_log: bool = False) -> int:
    """Keep an engine of a device until one ends by itself or is told to.

    Parameters
    ----------
    settings
        The device.
    starter
        Told how the start went, by this process or by the engine.
    to_log
        Whether this process, and all that it starts, write to the engine's log.

    Returns
    -------
    int
        The engine's exit code; `EXIT_BUSY` if the device has one already.
    """
    home = Home(device_name(settings))
    try:
        home.make()
        with home.lock():
            if to_log:
                output = os.open(home.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
                os.dup2(output, sys.stdout.fileno())
                os.dup2(output, sys.stderr.fileno())
                os.close(output)
            logging.basicConfig(
                level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
            )
            zygote.load()
            return _keep(settings, home, starter)
    except EngineBusy as error:
        starter.tell(EXIT_BUSY, f"{error}\n")
        return EXIT_BUSY
    except EngineError as error:
        log.error("%s", error)
        starter.tell(1, f"{error}\n")
        return 1


def _keep(settings: DeviceSettings, home: Home, starter: _Starter) -> int:
    """Fork engines, one after the death of the other; needs the lock."""
    engine = 0

    def pass_on(number: int, frame: FrameType | None) -> None:
        if engine:
            os.kill(engine, number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        begun = time.monotonic()
        engine = os.fork()
        if engine == 0:
            os._exit(_serve(settings, home, starter))
        starter.leave()
        _, status = os.waitpid(engine, 0)
        code = os.waitstatus_to_exitcode(status)
        if code >= 0:
            return code
        killer = signal.Signals(-code).name
        if time.monotonic() - begun < _SHORTEST_S:
            log.error("engine %d was killed by %s while it started", engine, killer)
            return 1
        log.error("engine %d was killed by %s; starting another", engine, killer)


def _serve(settings: DeviceSettings, home: Home, starter: _Starter) -> int:
    """Be the engine until told to stop; the exit code."""
    workers = zygote.Zygote.forked()
    home.sign()
    faulthandler.register(TELL_WHERE)
    server = Server(make_backend(settings, home.path), home, settings, workers)
    try:
        asyncio.run(server.run(lambda: starter.tell(0)))
    except EngineError as error:
        log.error("%s", error)
        starter.tell(1, f"{error}\n")
        return 1
    return 0


def _detached(settings: DeviceSettings) -> tuple[int, str]:
    """Start the engine in a process of its own; its exit code and message as far as it got by being ready."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(read)
        _be_daemon(settings, write)
    os.close(write)
    with os.fdopen(read) as pipe:
        code, _, message = pipe.read().partition(" ")
    return int(code or 1), message or ("" if code else "the engine ended while it was starting\n")


def _be_daemon(settings: DeviceSettings, answer: int) -> NoReturn:
    """Keep the engine without a terminal, telling through `answer` how its start went."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        os.dup2(null, stream.fileno())
    os._exit(keep(settings, _Starter(answer), to_log=True))


if __name__ == "__main__":
    main()
