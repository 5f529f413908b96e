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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmt_flower.device.engine.connection import running
from fedmt_flower.errors import EngineError


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A SuperLink and its SuperNodes at work, and what their processes have in their environment."""

    directory: Path
    environment: dict[str, str]

    @property
    def home(self) -> str:
        """Flower's home, by which its processes are known: ``FLWR_HOME`` in their environment."""
        return self.environment["FLWR_HOME"]

    def run(self, files: Mapping[str, str], config: str, *, patience_s: float) -> None:
        """Submit the app of these `files` and wait for its end; EngineError if that is not a good one.

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
        number = str(answer["run-id"])
        deadline = time.monotonic() + patience_s
        while not (status := self._status(number)).startswith("finished"):
            if time.monotonic() > deadline:
                raise EngineError(
                    f"the federation had not ended after {patience_s:.0f} s: {self._errors(number)}"
                )
            time.sleep(2)  # each look is a process of its own
        if status != "finished:completed":
            raise EngineError(f"the federation ended as {status}: {self._errors(number)}")

    def _status(self, number: str) -> str:
        return str(self._flwr("list", "bench", "--run-id", number)["runs"][0]["status"])

    def _flwr(self, *words: str) -> dict[str, Any]:
        command = [_program("flwr"), *words, "--format", "json"]
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment, timeout=60, check=False
        )
        if done.returncode:
            raise EngineError(f"flwr {words[0]} failed: {' '.join((done.stdout + done.stderr).split())}")
        answer: dict[str, Any] = json.loads(done.stdout)
        if not answer.get("success"):
            raise EngineError(f"flwr {words[0]} failed: {' '.join(done.stdout.split())}")
        return answer

    def _errors(self, number: str) -> str:
        """What the run's own log calls an error; what went wrong in a server app stands only there."""
        command = [_program("flwr"), "log", number, "bench", "--show"]
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment, timeout=60, check=False
        )
        lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
        return " | ".join([line for line in lines if "Error" in line][-3:]) or "its log names no error"


@contextmanager
def deployed(directory: Path, sites: int) -> Iterator[Deployment]:
    """A SuperLink and SuperNodes in `directory`; with them end the engines that their ClientApps started."""
    http, *ports = (_free_port() for _ in range(1 + sites))
    home = directory / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "127.0.0.1:{http}"\ninsecure = true\n'
    )
    marks = {"FLWR_HOME": str(home), "FEDMT_HOME": str(directory / "fedmt"), "FLWR_TELEMETRY_ENABLED": "0"}
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **marks, "PATH": search}
    before = os.environ.get("FEDMT_HOME")
    os.environ["FEDMT_HOME"] = marks["FEDMT_HOME"]
    try:
        with ExitStack() as processes:
            link = ["flower-superlink", "--insecure", "--disable-runtime-dependency-installation"]
            link += ["--host", "127.0.0.1", "--port", str(http)]
            processes.enter_context(_started("superlink", link, directory, environment))
            _await_port(http)
            for site, port in enumerate(ports):
                node = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{http}"]
                node += ["--host", "127.0.0.1", "--port", str(port)]
                node += ["--node-config", f"partition-id={site} num-partitions={sites}"]
                processes.enter_context(_started(f"supernode-{site}", node, directory, environment))
            yield Deployment(directory=directory, environment=environment)
    finally:
        for engine in running():
            engine.stop()
        if before is None:
            del os.environ["FEDMT_HOME"]
        else:
            os.environ["FEDMT_HOME"] = before


@contextmanager
def _started(name: str, words: Sequence[str], directory: Path, environment: dict[str, str]) -> Iterator[None]:
    with (directory / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [_program(words[0]), *words[1:]], env=environment, cwd=directory, stdout=log, stderr=log
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_port(port: int, patience_s: float = 60.0) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > deadline:
            raise EngineError(f"the SuperLink does not listen on port {port} after {patience_s:.0f} s")
        time.sleep(0.1)


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
