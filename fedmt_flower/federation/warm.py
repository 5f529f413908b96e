"""ClientApps that start with their imports done.

A SuperExec starts the program `flwr-clientapp`, which it finds on its PATH, for every message; the imports
of Flower and of this package take 1.5 s of a CPU each time. `run` puts a `launcher` of that name first on
the PATH, which asks a process that has done the imports, and nothing else, to fork. A message still has a
process of its own, in which Flower's own program runs from its first line.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, Final, NoReturn

from fedmt_flower.errors import ConfigError
from fedmt_flower.federation import launcher

_log = logging.getLogger(__name__)

_PROGRAM = "flwr-clientapp"
_BACKLOG = 64
_LIFELINE = 0
"""The descriptor whose other end the command holds: it is at its end when the command is."""

_DEFAULTS: Final[Mapping[signal.Signals, Any]] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGCHLD: signal.SIG_DFL,  # ignored, the kernel forgets how a process ended: nobody asks
}
"""Python's own answers to the signals that a process which forks ignores."""


def run(command: Sequence[str]) -> NoReturn:
    """Become `command`, a SuperExec or a SuperNode that starts one, with ClientApps that start warm.

    The process that they are forked from ends with the command. Without it they start as ever.

    Raises
    ------
    ConfigError
        If there is no command, it or Flower's program for a message is not on the PATH, or the directory
        for temporary files cannot be used.
    """
    if not command:
        raise ConfigError("no program given: fedmt warm -- flower-superexec …")
    program, cold = (_found(name) for name in (command[0], _PROGRAM))
    directory = Path(tempfile.mkdtemp(prefix="fedmt-warm-"))
    try:
        lifeline = _start(directory, cold)
    except OSError as error:
        shutil.rmtree(directory)
        raise ConfigError(f"{directory}: {error}; set TMPDIR to a short path with room") from error
    os.set_inheritable(lifeline, True)
    os.environ["PATH"] = f"{directory}{os.pathsep}{os.environ.get('PATH', '')}"
    os.execv(program, list(command))


def _found(name: str) -> str:
    # Scripts of an environment that is not activated lie beside its Python.
    places = os.pathsep.join((os.environ.get("PATH", ""), str(Path(sys.executable).parent)))
    found = shutil.which(name, path=places)
    if found is None:
        raise ConfigError(
            f"{name!r} is not on the PATH; activate the environment in which Flower is installed"
        )
    return found


def _start(directory: Path, cold: str) -> int:
    """Start the process that forks, its launcher in `directory`; the end of its lifeline to be held."""
    address = directory / "socket"
    words = [sys.executable, "-IS", launcher.__file__, str(address), cold]
    script = directory / _PROGRAM
    script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    script.chmod(0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        # Now: a message that comes during the imports waits for their end.
        listener.bind(str(address))
        listener.listen(_BACKLOG)
        lifeline, held = os.pipe()
        # Named with the script, so that those who look for a ClientApp's process by its program find it.
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(listener.fileno()), str(script)],
            stdin=lifeline,
            pass_fds=[listener.fileno()],
        )
    return held


def _imported() -> Callable[[], int | None]:
    """Flower's program for a message, once all that it and this package's clients need is imported."""
    (entry,) = distribution("flwr").entry_points.select(group="console_scripts", name=_PROGRAM)
    main: Callable[[], int | None] = entry.load()
    importlib.import_module("fedmt_flower.federation.app")
    return main


def ignore_signals() -> None:
    """Leave signals to the command: a terminal or a service manager sends them to both."""
    for one in _DEFAULTS:
        signal.signal(one, signal.SIG_IGN)


def await_message(listener: socket.socket) -> bool:
    """Fork for every message: True in such a process, made ready for its program; False at the end."""
    while True:
        ready, _, _ = select.select([listener.fileno(), _LIFELINE], [], [])
        if _LIFELINE in ready:
            return False
        connection, _ = listener.accept()
        with connection:
            asked, streams, pid = _forked(connection)
            if pid == 0:
                listener.close()
                connection.close()
                _settle(asked, streams)
                return True
            if pid:
                with suppress(OSError):  # who asked is gone: so be it
                    connection.send(launcher.STARTED)
        for stream in streams:
            os.close(stream)


def _forked(connection: socket.socket) -> tuple[bytes, list[int], int | None]:
    """A request and the streams that came with it; what the fork for it gave, None if there is no process."""
    asked, streams = b"", list[int]()
    try:
        asked, streams, _, _ = socket.recv_fds(connection, launcher.REQUEST_LIMIT, len(launcher.STREAMS))
        return asked, streams, os.fork() if len(streams) == len(launcher.STREAMS) else None
    except OSError as error:
        _log.warning("A ClientApp starts without its imports: %s", error)
        return asked, streams, None


def _settle(asked: bytes, streams: Sequence[int]) -> None:
    """Take over what a process of its own would have been started with."""
    for one, handler in _DEFAULTS.items():
        signal.signal(one, handler)
    for stream, target in zip(streams, launcher.STREAMS, strict=True):
        os.dup2(stream, target)
        os.close(stream)
    request = json.loads(asked)
    os.chdir(request["directory"])
    sys.argv = [_PROGRAM, *request["arguments"]]
    # Python's own generator takes a new seed with a fork, NumPy's does not.
    sys.modules["numpy"].random.seed()


def main(descriptor: str, script: str) -> int | None:
    """The process that ClientApps are forked from, and each of them."""
    ignore_signals()
    program = _imported()
    if await_message(socket.socket(fileno=int(descriptor))):
        return program()
    # A service that clears /tmp may have been there before.
    shutil.rmtree(Path(script).parent, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
