"""A SuperLink with SuperNodes on this host, for the benchmarks that need a deployed federation."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fedmt_flower.bench.project import project
from fedmt_flower.device.engine.connection import running
from fedmt_flower.errors import EngineError

_WARM = (sys.executable, "-m", "fedmt_flower", "warm", "--")
_POLLING = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}
_LISTENING = "0A"
"""How the kernel's table of sockets calls one that listens."""

_APP = project(
    "fedmt-bench",
    "The package's own app",
    "fedmt_flower.federation.app:server",
    "fedmt_flower.federation.app:client",
    {"fedmt": ""},
)
"""The package's own app."""


class NotEnded(EngineError):
    """A run goes on for longer than there is time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A SuperNode to be.

    Parameters
    ----------
    config
        Its node configuration.
    device
        The directory of its device's engine, in the deployment's: nodes that name the same one share it.
    home
        Flower's directory for it: nodes that install an app at once must not do so in one place.
    inside
        What goes before its command.
    superlink
        The SuperLink's address, as seen from there.
    """

    config: str
    device: str = "fedmt"
    home: str = "flwr"
    inside: tuple[str, ...] = ()
    superlink: str = "127.0.0.1"


def partitions(sites: int) -> list[Node]:
    """A node for each of so many sites, all on one device."""
    return [Node(config=f"partition-id={site} num-partitions={sites}") for site in range(sites)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A SuperLink and its SuperNodes at work, and what their processes have in their environment.

    `nodes` are the SuperNodes' processes, `inside` is what goes before a command on the SuperLink's host.
    """

    directory: Path
    environment: dict[str, str]
    nodes: tuple[int, ...] = ()
    inside: tuple[str, ...] = ()

    @property
    def home(self) -> str:
        """Flower's home, by which its processes are known: ``FLWR_HOME`` in their environment."""
        return self.environment["FLWR_HOME"]

    def run(self, files: Mapping[str, str], config: str, *, patience_s: float) -> None:
        """Submit the app of these `files` and wait for its end; EngineError as `await_end`."""
        self.await_end(self.submit(files, config), patience_s)

    def play(self, overrides: Iterable[str], folder: Path, *, patience_s: float) -> list[dict[str, Any]]:
        """Run the package's own app with `overrides` to its end; the lines of its rounds, from `folder`.

        EngineError as `await_end`.
        """
        words = " ".join((*overrides, f"folder={folder}"))
        self.run({"pyproject.toml": _APP}, f'fedmt="{words}"', patience_s=patience_s)
        return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]

    def submit(self, files: Mapping[str, str], config: str) -> str:
        """Submit the app of these `files`; the number of its run.

        Parameters
        ----------
        config
            The run configuration, as `flwr run` takes it.
        """
        app = self.directory / "app"
        app.mkdir(exist_ok=True)
        for name, text in files.items():
            (app / name).write_text(text)
        answer = self._flwr("run", str(app), "bench", "--run-config", config)
        return str(answer["run-id"])

    def await_end(self, number: str, patience_s: float) -> None:
        """Wait for the end of a run; EngineError if that is not a good one, `NotEnded` if there is none."""
        deadline = time.monotonic() + patience_s
        while not (status := self._status(number)).startswith("finished"):
            if time.monotonic() > deadline:
                raise NotEnded(
                    f"the federation had not ended after {patience_s:.0f} s: {self.errors(number)}"
                )
            time.sleep(2)  # each look is a process of its own
        if status != "finished:completed":
            raise EngineError(f"the federation ended as {status}: {self.errors(number)}")

    def _status(self, number: str) -> str:
        return str(self._flwr("list", "bench", "--run-id", number)["runs"][0]["status"])

    def _flwr(self, *words: str) -> dict[str, Any]:
        command = [*self.inside, _program("flwr"), *words, "--format", "json"]
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment, timeout=60, check=False
        )
        if done.returncode:
            raise EngineError(f"flwr {words[0]} failed: {' '.join((done.stdout + done.stderr).split())}")
        answer: dict[str, Any] = json.loads(done.stdout)
        if not answer.get("success"):
            raise EngineError(f"flwr {words[0]} failed: {' '.join(done.stdout.split())}")
        return answer

    def errors(self, number: str) -> str:
        """What the run's own log calls an error; what went wrong in a server app stands only there."""
        command = [*self.inside, _program("flwr"), "log", number, "bench", "--show"]
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment, timeout=60, check=False
        )
        lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
        return " | ".join([line for line in lines if "Error" in line][-3:]) or "its log names no error"


@contextmanager
def deployed(
    directory: Path,
    nodes: Sequence[Node],
    *,
    inside: tuple[str, ...] = (),
    host: str = "127.0.0.1",
    settings: Mapping[str, str] = MappingProxyType({}),
    advised: bool = False,
) -> Iterator[Deployment]:
    """A SuperLink and SuperNodes in `directory`; with them end the engines that their ClientApps started.

    Parameters
    ----------
    inside, host
        What goes before the SuperLink's command, and the address on which it listens there.
    settings
        What else all processes have in their environment.
    advised
        Whether messages start as this package's documentation advises: warm, and looked for each 0.1 s.
    """
    http, *ports = (_free_port() for _ in range(1 + len(nodes)))
    home = directory / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "127.0.0.1:{http}"\ninsecure = true\n'
    )
    devices = [str(directory / device) for device in dict.fromkeys(node.device for node in nodes)]
    settings = {**_POLLING, **settings} if advised else settings
    marks = {"FLWR_HOME": str(home), "FEDMT_HOME": devices[0], "FLWR_TELEMETRY_ENABLED": "0", **settings}
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **marks, "PATH": search}
    before = os.environ.get("FEDMT_HOME")
    os.environ["FEDMT_HOME"] = marks["FEDMT_HOME"]
    try:
        with ExitStack() as processes:
            link = ["flower-superlink", "--insecure", "--disable-runtime-dependency-installation"]
            link += ["--host", host, "--port", str(http)]
            process = _started("superlink", link, directory, environment, inside)
            _await_port(http, processes.enter_context(process))
            pids = []
            for number, (node, port) in enumerate(zip(nodes, ports, strict=True)):
                words = [*_WARM] if advised else []
                words += ["flower-supernode", "--insecure", "--superlink", f"{node.superlink}:{http}"]
                words += ["--host", "127.0.0.1", "--port", str(port), "--node-config", node.config]
                places = {"FLWR_HOME": directory / node.home, "FEDMT_HOME": directory / node.device}
                own = environment | {name: str(place) for name, place in places.items()}
                process = _started(f"supernode-{number}", words, directory, own, node.inside)
                pids.append(processes.enter_context(process))
            yield Deployment(directory=directory, environment=environment, nodes=tuple(pids), inside=inside)
    finally:
        for device in devices:
            os.environ["FEDMT_HOME"] = device
            for engine in running():
                engine.stop()
        if before is None:
            del os.environ["FEDMT_HOME"]
        else:
            os.environ["FEDMT_HOME"] = before


@contextmanager
def _started(
    name: str, words: Sequence[str], directory: Path, environment: dict[str, str], inside: Sequence[str]
) -> Iterator[int]:
    """A program of Flower's, its process's id; ended with the context."""
    with (directory / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*inside, _program(words[0]), *words[1:]],
            env=environment,
            cwd=directory,
            stdout=log,
            stderr=log,
        )
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_port(port: int, pid: int, patience_s: float = 60.0) -> None:
    """Wait until something listens on `port` in the network that the process `pid` is in."""
    deadline = time.monotonic() + patience_s
    while not _listens(port, pid):
        if time.monotonic() > deadline:
            raise EngineError(f"the SuperLink does not listen on port {port} after {patience_s:.0f} s")
        time.sleep(0.1)


def _listens(port: int, pid: int) -> bool:
    """Whether anything listens on `port` in the network that the process `pid` is in."""
    try:
        _, *sockets = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()
    except OSError:  # it has ended
        return False
    return any(
        fields[1].endswith(f":{port:04X}") and fields[3] == _LISTENING
        for fields in (line.split() for line in sockets)
    )


def _program(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise EngineError(f"{name} is not on the PATH; install flwr, or add its folder of programs")
    return found


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
