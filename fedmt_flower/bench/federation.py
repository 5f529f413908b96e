"""Two SuperNodes as two sites of one engine, as a user deploys them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmt_flower.bench.driver import Bench, memory_in_use, processes_marked
from fedmt_flower.bench.result import Bar, Json, Result
from fedmt_flower.device.connection import running
from fedmt_flower.domain.device import Backend
from fedmt_flower.domain.plan import Sharing
from fedmt_flower.errors import EngineError

CLAIM = "a deployed federation keeps its workers warm on the device, under its budgets, and leaves nothing"

_SITES = 2
_MEMORY_BYTES = 64 << 20
"""How far the GPU's memory in use may be from what it was before: other processes come and go."""

_APP = """\
[project]
name = "fedmt-bench"
version = "1.0.0"
description = "The package's own app"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "fedmt"

[tool.flwr.app.components]
serverapp = "fedmt_flower.federation.app:server"
clientapp = "fedmt_flower.federation.app:client"

[tool.flwr.app.config]
fedmt = ""
"""


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with: overrides as `fedmt sim` takes them."""
    tasks = (
        ("forms", "progression", "cells") if quick else ("resnet18", "mobilenet_v3_large", "shufflenet_v2")
    )
    own = [f"++tasks.{task}.parameters.{'epochs=1' if quick else 'volume=0.25'}" for task in tasks]
    return {
        "overrides": [f"tasks={'hospital' if quick else 'fashion'}", "allocation=isolated", *own],
        "tasks": list(tasks),
        "rounds": 2 if quick else 3,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Start SuperLink and SuperNodes, run the app to its end, and look at what it wrote and what it left."""
    bench.recorder.clear()
    memory = memory_in_use(bench.options)
    with tempfile.TemporaryDirectory(prefix="fedmt-") as directory:
        with _deployed(Path(directory)) as deployment:
            began = time.monotonic()
            folder = Path(directory) / "run"
            deployment.run(
                *(str(word) for word in bench.settings["overrides"]),
                f"device={bench.options.backend}",
                f"device.index={bench.options.index}",
                f"federation.sites={_SITES}",
                f"federation.rounds={bench.settings['rounds']}",
                f"folder={folder}",
                patience_s=max(60.0, bench.recorder.left_s),
            )
            bench.facts["seconds from submission to end"] = round(time.monotonic() - began, 1)
            entries = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
            summary = json.loads((folder / "summary.json").read_text())
            for engine in running():
                bench.facts["engine"] = {
                    "workers": len(engine.status().workers),
                    "rounds": engine.status().rounds,
                }
        left = _left(bench, deployment, memory)
    for entry in entries:
        kept = ("status", "error", "backend", "level", "pid", "samples", "compute_s", "wall_s", "waited_s")
        values = {key: entry.get(key) for key in (*kept, "train_metrics", "evaluate_metrics")}
        bench.recorder.add(f"{entry['site']} | {entry['task']}", entry["round"], values)
    bench.facts |= {"summary": summary["tasks"], "left": left}
    _judge(bench, entries, left)
    return True


def report(result: Result) -> str:
    """How each task fared on the sites, a row for each, in Markdown."""
    lines = [
        "| task | metric before | after | samples/s on a site | SMs | worker |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for task in result.settings["tasks"]:
        taken = [sample.values for sample in result.samples if sample.cell.endswith(f"| {task}")]
        trained = [values for values in taken if values.get("samples")]
        summary = result.facts["summary"][task]
        rate = statistics.median(values["samples"] / values["compute_s"] for values in trained)
        levels = sorted({values["level"] for values in trained})
        pids = len({values["pid"] for values in trained})
        lines.append(
            f"| {task} | {summary['before']:.3f} | {summary['after']:.3f} | {rate:.0f} | "
            f"{', '.join(map(str, levels))} | {pids} process for {len(trained)} rounds |"
        )
    return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Deployment:
    """A SuperLink and its SuperNodes at work."""

    directory: Path
    environment: dict[str, str]

    def run(self, *overrides: str, patience_s: float) -> None:
        """Submit the app and wait for its end; EngineError if that is not a good one."""
        app = self.directory / "app"
        app.mkdir()
        (app / "pyproject.toml").write_text(_APP)
        answer = self._flwr("run", str(app), "bench", "--run-config", f'fedmt="{" ".join(overrides)}"')
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
def _deployed(directory: Path) -> Iterator[_Deployment]:
    http, *ports = (_free_port() for _ in range(1 + _SITES))
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
                node += ["--node-config", f"partition-id={site} num-partitions={_SITES}"]
                processes.enter_context(_started(f"supernode-{site}", node, directory, environment))
            yield _Deployment(directory=directory, environment=environment)
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


def _left(bench: Bench, deployment: _Deployment, memory: int) -> dict[str, Json]:
    """Processes and GPU memory that have not gone a while after the end of everything."""
    on_gpu = bench.options.backend is Backend.MPS

    def look() -> dict[str, Json]:
        more = memory_in_use(bench.options) - memory if on_gpu else 0
        return {
            "processes": processes_marked("FLWR_HOME", deployment.environment["FLWR_HOME"]),
            "gpu_memory_bytes": more,
        }

    return _settled(look, lambda left: not left["processes"] and left["gpu_memory_bytes"] < _MEMORY_BYTES)


def _settled(
    look: Callable[[], dict[str, Json]], fine: Callable[[dict[str, Json]], bool], patience_s: float = 20.0
) -> dict[str, Json]:
    deadline = time.monotonic() + patience_s
    while not fine(left := look()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def _judge(bench: Bench, entries: Sequence[dict[str, Any]], left: dict[str, Json]) -> None:
    tasks = bench.settings["tasks"]
    failures = [entry for entry in entries if entry["status"] != "done"]
    most_pids = max(len({e["pid"] for e in entries if e["task"] == task}) for task in tasks)
    expected = _level(bench, 100 / len(tasks))
    strayed = [entry for entry in entries if entry["level"] != expected]
    backends = {entry["backend"] for entry in entries}
    bench.facts["level"] = expected
    bench.bars += [
        Bar.counted("failed task rounds", 0, len(failures), not failures),
        Bar.counted("processes per task, over all rounds and sites", 1, most_pids, most_pids == 1),
        Bar.counted("task rounds off their budget's SM count", 0, len(strayed), not strayed),
        Bar.counted(
            f"rounds not on the backend {bench.options.backend}",
            0,
            len(backends - {str(bench.options.backend)}),
            backends == {str(bench.options.backend)},
        ),
        Bar.counted("processes left behind", 0, len(left["processes"]), not left["processes"]),
        Bar.counted(
            "MB of GPU memory left behind",
            _MEMORY_BYTES / 1e6,
            left["gpu_memory_bytes"] / 1e6,
            left["gpu_memory_bytes"] < _MEMORY_BYTES,
        ),
    ]


def _level(bench: Bench, budget: float) -> int:
    """What a budget comes to on the benchmark's device."""
    with tempfile.TemporaryDirectory(prefix="fedmt-") as directory:
        backend = bench.backend(Path(directory))
        backend.open()
        try:
            return backend.seat(budget, Sharing.CAPPED).level
        finally:
            backend.close()
