"""The resident engine: the one process that owns a device.

Usually started by a client, and otherwise as
``python -m fedmt_flower.device.engine --settings '{"backend": "cpu"}'``.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import logging
import os
import sys
from collections.abc import Callable

import msgspec

from fedmt_flower.device.backends import device_name, make_backend
from fedmt_flower.device.home import EngineBusy, Home
from fedmt_flower.device.prctl import TELL_WHERE
from fedmt_flower.device.server import Server
from fedmt_flower.domain.device import DeviceSettings
from fedmt_flower.errors import EngineError

EXIT_BUSY = 75
"""Exit code of an engine whose device has one already."""


def main() -> None:
    """Run an engine until it is told to stop."""
    parser = argparse.ArgumentParser(prog="python -m fedmt_flower.device.engine", description=__doc__)
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
    if arguments.detach:
        parser.exit(*_detached(settings))
    try:
        serve(settings, lambda: None)
    except EngineError as error:
        parser.exit(EXIT_BUSY if isinstance(error, EngineBusy) else 1, f"{error}\n")


def serve(settings: DeviceSettings, announce: Callable[[], None], *, to_log: bool = False) -> None:
    """Be the engine of a device until told to stop.

    Parameters
    ----------
    settings
        The device.
    announce
        Called once clients can connect.
    to_log
        Whether this process, and the zygote that it starts, write to the engine's log.

    Raises
    ------
    EngineError
        If the engine cannot begin; EngineBusy if the device has one already.
    """
    home = Home(device_name(settings))
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
        faulthandler.register(TELL_WHERE)
        server = Server(make_backend(settings, home.path), home, settings)
        asyncio.run(server.run(announce))


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


def _be_daemon(settings: DeviceSettings, answer: int) -> None:
    """Run the engine without a terminal, telling through `answer` how its start went; never return."""

    def tell(code: int, message: str = "") -> None:
        try:
            os.write(answer, f"{code} {message}".encode())
        except BrokenPipeError:
            logging.getLogger(__name__).warning("nobody waited for the engine to be ready")
        os.close(answer)

    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        os.dup2(null, stream.fileno())
    started = False

    def announce() -> None:
        nonlocal started
        started = True
        tell(0)

    try:
        serve(settings, announce, to_log=True)
    except EngineError as error:
        logging.getLogger(__name__).error("%s", error)
        if not started:
            tell(EXIT_BUSY if isinstance(error, EngineBusy) else 1, f"{error}\n")
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
