"""MPS's control daemon: one that somebody runs, or one of this engine's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import psutil

from fedmt_flower.device.backends.facts import CONTROL
from fedmt_flower.device.backends.mps_seats import LOG, PIPE

_LONGEST_PIPE = 80
"""An AF_UNIX address has at most 107 bytes; past it the daemon ends without saying why."""


class DaemonError(Exception):
    """MPS's control daemon cannot be started or does not answer."""


class Control:
    """A control daemon that somebody runs, reached through its own program."""

    def __init__(self, program: str, pipe: Path, log_directory: Path) -> None:
        self.pipe = pipe
        self.log = log_directory
        self._program = program

    def ask(self, command: str, timeout_s: float = 5.0) -> str:
        """What the daemon answers to `command`; DaemonError if it does not."""
        try:
            answer = subprocess.run(
                [self._program],
                input=f"{command}\n",
                env=self._environment(),
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DaemonError(f"{command!r} had no answer in {timeout_s:g} s") from error
        text = answer.stdout.strip()
        if answer.returncode or text.startswith("Cannot find"):
            raise DaemonError(
                (text or answer.stderr.strip() or f"exit code {answer.returncode}").splitlines()[0]
            )
        return text

    def answers(self) -> bool:
        """Whether a daemon listens in the pipe directory."""
        try:
            self.ask("get_server_list")
        except DaemonError:
            return False
        return True

    def servers(self) -> tuple[int, ...]:
        """Process ids of the daemon's servers: none until the first client has come."""
        return parse_pids(self.ask("get_server_list"))

    def clients(self, server: int) -> tuple[int, ...]:
        """Process ids of a server's clients."""
        return parse_pids(self.ask(f"get_client_list {server}"))

    def faulty(self) -> tuple[int, ...]:
        """The servers that wait, after a fatal fault, for their last client to leave."""
        return tuple(s for s in self.servers() if "FAULT" in self.ask(f"get_server_status {s}").upper())

    def recovers(self, patience_s: float) -> bool:
        """Whether, within `patience_s` seconds, the daemon answers and no server of its is faulty."""
        deadline = time.monotonic() + patience_s
        try:
            while self.faulty():
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.05)
        except DaemonError:
            return False
        return True

    def stop(self) -> None:
        """Leave the daemon as it is: it is somebody else's."""

    def _environment(self) -> dict[str, str]:
        return dict(os.environ) | {PIPE: str(self.pipe), LOG: str(self.log)}


class OwnControl(Control):
    """A control daemon of this engine's own, in the engine's directory, serving one GPU."""

    def __init__(self, program: str, pipe: Path, log_directory: Path, uuid: str) -> None:
        super().__init__(program, pipe, log_directory)
        self._uuid = uuid
        self._keeper: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the daemon, or take over the one that a killed engine left in this directory."""
        if len(os.fsencode(self.pipe)) > _LONGEST_PIPE:
            raise DaemonError(f"the path {self.pipe} is too long for MPS's sockets; set a shorter TMPDIR")
        self.log.mkdir(parents=True, exist_ok=True)
        if not self.answers():
            # What a killed daemon leaves (a server, sockets, a lock) keeps the next one from starting.
            _end(_processes_in(self.pipe), patience_s=0.0)
            shutil.rmtree(self.pipe, ignore_errors=True)
            self.pipe.mkdir(parents=True)
            try:
                subprocess.run(
                    [self._program, "-d"],
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    timeout=10,
                    check=True,
                )
            except subprocess.SubprocessError as error:
                raise DaemonError(f"{CONTROL} does not start ({error}); see {self.log}") from error
            self._await(5.0)
        # The keeper's input ends when this process does, however it ends; the daemon then goes too.
        self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", 'read -r _; echo quit | exec "$0"', self._program],
            env=self._environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def stop(self) -> None:
        """Stop the daemon and its servers."""
        if self._keeper is None or self._keeper.stdin is None:
            return
        session = _processes_in(self.pipe)
        self._keeper.stdin.close()
        try:
            self._keeper.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
        self._keeper = None
        _end(session, patience_s=2.0)

    def _await(self, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        while not self.answers():
            if time.monotonic() > deadline:
                raise DaemonError(f"{CONTROL} was started but does not answer; see {self.log}")
            time.sleep(0.02)

    def _environment(self) -> dict[str, str]:
        # One GPU per daemon: its clients' memory limits count devices as the daemon sees them.
        return super()._environment() | {"CUDA_VISIBLE_DEVICES": self._uuid}


def parse_pids(text: str) -> tuple[int, ...]:
    """The process ids in an answer of the control daemon: the lines that are a number."""
    return tuple(int(line) for line in text.split("\n") if line.strip().isdecimal())


def is_running(pid: int) -> bool:
    """Whether there is a process `pid` that has not ended."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _processes_in(pipe: Path) -> list[psutil.Process]:
    """MPS's daemon and servers whose pipe directory is `pipe`, those a dead daemon has left included."""
    found = []
    for process in psutil.process_iter(["name"]):
        try:
            if process.info["name"].startswith("nvidia-cuda-mps") and process.environ().get(PIPE) == str(
                pipe
            ):
                found.append(process)
        except psutil.Error:  # gone meanwhile, or another user's
            continue
    return found


def _end(processes: list[psutil.Process], patience_s: float) -> None:
    """Wait until `processes` have ended by themselves; end those that have not after `patience_s`."""
    deadline = time.monotonic() + patience_s
    while any(is_running(process.pid) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in processes:
        if is_running(process.pid):
            try:
                process.kill()
            except psutil.NoSuchProcess:  # it was faster
                continue
