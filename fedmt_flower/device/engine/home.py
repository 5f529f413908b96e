"""Where engines live: a private directory for each device, its lock and its socket."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedmt_flower.errors import EngineError

_SOCKET = "socket"
_LOCK = "lock"
_LOG = "engine.log"


class EngineBusy(EngineError):
    """Another engine owns the device."""


class Home:
    """The directory of one device's engine.

    Parameters
    ----------
    device
        The device's name, such as ``cpu`` or ``gpu0``.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.path = base() / device

    @property
    def log(self) -> Path:
        """What the latest engine wrote."""
        return self.path / _LOG

    @property
    def workers(self) -> Path:
        """Directory of the workers' logs."""
        return self.path / "workers"

    def make(self) -> None:
        """Make the directory unless it exists; EngineError if others than this user may enter it."""
        for path in (self.path.parent, self.path):
            try:
                path.mkdir(mode=0o700, exist_ok=True)
            except OSError as error:
                raise EngineError(
                    f"the engine's directory {path} cannot be made: {error.strerror}"
                ) from error
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
                raise EngineError(
                    f"the engine's directory {path} must be a directory that only user {os.getuid()} may "
                    f"enter (chmod 700), got {stat.filemode(found.st_mode)} of user {found.st_uid}; "
                    "mend it or set FEDMT_HOME"
                )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Own the device while the context lasts; EngineBusy, naming the engine, if another does.

        Processes forked meanwhile own it too. The kernel drops the lock with the last of them, however that
        ends; the file stays.
        """
        with (self.path / _LOCK).open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                owner = file.read().strip() or "not yet written down"
                raise EngineBusy(
                    f"device {self.device} already has an engine, pid {owner}, in {self.path}; "
                    "it serves every client of this user: use that one, or end it with `fedmt engine stop`"
                ) from error
            file.truncate(0)
            yield

    def sign(self) -> None:
        """Write down this process as the device's engine. Needs the lock."""
        (self.path / _LOCK).write_text(f"{os.getpid()}\n")

    @contextmanager
    def address(self) -> Iterator[str]:
        """The socket's address, short whatever the path: the kernel takes at most 107 bytes."""
        directory = os.open(self.path, os.O_PATH | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{directory}/{_SOCKET}"
        finally:
            os.close(directory)

    def remove_socket(self) -> None:
        """Remove the socket; that of an engine that was killed is still there. Needs the lock."""
        (self.path / _SOCKET).unlink(missing_ok=True)

    def log_tail(self, lines: int = 1) -> str:
        """The last lines of the log that are not blank; empty if there is none."""
        try:
            text = self.log.read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def base() -> Path:
    """The directory of all engines: ``$FEDMT_HOME``, or in the user's runtime directory, or in /tmp."""
    if chosen := os.environ.get("FEDMT_HOME"):
        return Path(chosen).absolute()
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and os.path.isdir(runtime):
        return Path(runtime) / "fedmt"
    return Path(tempfile.gettempdir()) / f"fedmt-{os.getuid()}"


def homes() -> tuple[Home, ...]:
    """The homes of all engines that there are or were."""
    return tuple(Home(path.name) for path in sorted(base().glob("*")) if (path / _LOCK).exists())
