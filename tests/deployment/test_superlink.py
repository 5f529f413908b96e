"""The app as a user deploys it: on a real SuperLink with two real SuperNodes, or under `flwr run` alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

FEDERATION = [
    *("device=cpu", "federation.sites=2", "federation.rounds=2"),
    *(f"tasks.{task}.parameters.epochs=1" for task in ("forms", "progression", "cells")),
]

pytestmark = [pytest.mark.deployment, pytest.mark.timeout(600)]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come within {seconds} s"
        time.sleep(0.2)
    return found


@dataclass(frozen=True)
class Deployment:
    """A running SuperLink and its SuperNodes, and what a user's shell would have set."""

    home: Path
    environment: dict[str, str]

    def flwr(self, *words: str) -> dict[str, Any]:
        """A command of Flower's, its answer as JSON."""
        command = [str(BIN / "flwr"), *words, "--format", "json"]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def engine(self, action: str) -> list[dict[str, Any]]:
        """The answer of `fedmt engine`."""
        command = [str(BIN / "fedmt"), "engine", action, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=60)
        assert done.returncode == 0, done.stderr
        answer: list[dict[str, Any]] = json.loads(done.stdout)
        return answer

    def submit(self, *overrides: str) -> str:
        """Run the app; the id of the run."""
        config = f'fedmt="{" ".join(overrides)}"'
        submit = lambda: self.flwr("run", str(ROOT), "test", "--run-config", config).get("run-id")  # noqa: E731
        return str(wait_for(submit, 60, "a SuperLink that takes the app"))

    def status(self, run: str) -> str:
        answer = self.flwr("list", "test", "--run-id", run)
        return str(answer["runs"][0]["status"])

    def processes(self) -> list[str]:
        """The command of every process that carries this deployment's mark in its environment."""
        return [command for _, command in self._processes()]

    def kill(self, name: str) -> None:
        """Kill those of them whose command has `name` in it."""
        for process, command in self._processes():
            if name in command:
                process.kill()

    def _processes(self) -> list[tuple[psutil.Process, str]]:
        mine = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("FLWR_HOME") == str(self.home):
                    mine.append((process, " ".join(process.cmdline())))
        return mine


@contextmanager
def started(name: str, *words: str, environment: dict[str, str], cwd: Path) -> Iterator[None]:
    with (cwd / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [str(BIN / words[0]), *words[1:]], env=environment, cwd=cwd, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def deployed(place: Path, nodes: int) -> Iterator[Deployment]:
    """A SuperLink with `nodes` SuperNodes; with none it simulates two."""
    http, *runtimes = (free_port() for _ in range(1 + nodes))
    home = place / "flwr"
    home.mkdir(parents=True)
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FEDMT_HOME": str(place / "fedmt"),
        "FLWR_TELEMETRY_ENABLED": "0",
    }
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "test"\n[superlink.test]\naddress = "127.0.0.1:{http}"\ninsecure = true\n'
    )
    with ExitStack() as stack:

        def start(name: str, *words: str) -> None:
            stack.enter_context(started(name, *words, environment=environment, cwd=place))

        start(
            "superlink",
            *("flower-superlink", "--insecure", "--disable-runtime-dependency-installation"),
            *("--host", "127.0.0.1", "--port", str(http)),
            *([] if nodes else ["--simulation"]),
        )
        for index, port in enumerate(runtimes):
            start(
                f"supernode-{index}",
                *("fedmt", "warm", "--"),
                *("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{http}"),
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--node-config", f"partition-id={index} num-partitions={nodes}"),
            )
        deployment = Deployment(home, environment)
        yield deployment
        deployment.engine("stop")
    wait_for(lambda: not deployment.processes(), 60, "the end of all that Flower started")


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    with deployed(tmp_path, nodes=2) as running:
        yield running


def run_to_its_end(deployment: Deployment, folder: Path, *overrides: str, ending: str = "completed") -> None:
    run = deployment.submit(*FEDERATION, *overrides, f"folder={folder}")
    wait_for(lambda: deployment.status(run).startswith("finished"), 480, "the end of the run")
    assert deployment.status(run) == f"finished:{ending}"


def weights(folder: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in (folder / "weights").iterdir()}


def test_a_federation_on_real_nodes(deployment: Deployment, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_to_its_end(deployment, folder)

    summary = json.loads((folder / "summary.json").read_text())
    assert summary["sites"] == ["site-0", "site-1"]
    assert summary["tasks"]["forms"]["after"] > summary["tasks"]["forms"]["before"] + 0.3
    assert summary["tasks"]["cells"]["after"] < summary["tasks"]["cells"]["before"]
    assert not any(task["failures"] for task in summary["tasks"].values())

    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    pids = {task: {line["pid"] for line in lines if line["task"] == task} for task in summary["tasks"]}
    assert len(lines) == 3 * 2 * 3
    assert all(len(own) == 1 for own in pids.values()), pids
    assert len(set.union(*pids.values())) == 3

    # Chosen budgets: with flwr run as with fedmt sim.
    chosen = tmp_path / "chosen"
    run_to_its_end(deployment, chosen, "allocation=fedmt", "federation.rounds=1")
    lines = [json.loads(line) for line in (chosen / "rounds.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["samples"]]
    assert len(trained) == 3 * 2
    assert all(line["basis"].startswith("analytic model of threads") for line in trained)
    assert all(line["predicted_s"] >= line["lower_bound_s"] > 0 for line in trained)

    # A link beside the real one is refused by name, before anything is trained.
    linked = tmp_path / "linked"
    run_to_its_end(deployment, linked, "network=lte", "federation.rounds=1", ending="failed")
    error = json.loads((linked / "summary.json").read_text())["error"]
    assert "site 'site-0', task 'forms': network: an emulated link on a SuperNode would add" in error
    assert "\n" not in error

    # The same by the two other ways of running it, one of them over an emulated link.
    with deployed(tmp_path / "simulated", nodes=0) as simulation:
        run_to_its_end(simulation, tmp_path / "flwr-run", "network=edge_400mbps")
    told = json.loads((tmp_path / "flwr-run" / "summary.json").read_text())
    assert told["link"]["up_mbps"] == 400
    assert told["in_turn"]
    assert weights(tmp_path / "flwr-run") == weights(folder)
    sim = [str(BIN / "fedmt"), "sim", *FEDERATION, f"folder={tmp_path / 'sim'}"]
    subprocess.run(sim, env=deployment.environment, timeout=240, check=True, capture_output=True)
    assert weights(tmp_path / "sim") == weights(folder)


def test_nothing_is_left_after_a_run_that_is_stopped(deployment: Deployment, tmp_path: Path) -> None:
    """Flower lets a node finish its round; then the engine's lease ends, and with it the workers."""
    longer = [f"tasks.{task}.parameters.epochs=60" for task in ("forms", "progression", "cells")]
    run = deployment.submit(
        "device=cpu",
        "device.idle_timeout_s=3",
        "federation.sites=2",
        "federation.rounds=100",
        f"folder={tmp_path / 'run'}",
        *longer,
    )

    def busy() -> list[int]:
        return [
            worker["pid"]
            for engine in deployment.engine("status")
            for worker in engine["workers"]
            if worker["busy"]
        ]

    assert wait_for(busy, 120, "workers at work")
    deployment.flwr("stop", run, "test")

    def engine() -> list[str]:
        return [command for command in deployment.processes() if "fedmt_flower.device" in command]

    wait_for(lambda: not engine(), 240, "the end of the engine and its workers")
    assert deployment.status(run) == "finished:stopped"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["outcome"] == "interrupted"


def test_a_server_app_that_is_killed_is_gone_on_from_by_the_same_command(
    deployment: Deployment, tmp_path: Path
) -> None:
    words = [
        *FEDERATION,
        "~tasks.forms",
        "federation.rounds=3",
        "federation.strategy.name=FedAdam",
        "++federation.strategy.parameters.eta=0.01",
    ]

    def command(name: str) -> list[str]:
        return [*words, f"folder={tmp_path / name}", f"federation.checkpoint={tmp_path / name}-kept"]

    killed = deployment.submit(*command("killed"))
    wait_for((tmp_path / "killed-kept" / "round-000001.npz").exists, 240, "the first checkpoint")
    deployment.kill("flwr-serverapp")
    run = deployment.submit(*command("killed"))
    wait_for(lambda: deployment.status(run).startswith("finished"), 240, "the end of the second run")
    assert deployment.status(run) == "finished:completed", (tmp_path / "killed" / "summary.json").read_text()
    assert deployment.status(killed) != "finished:completed"
    # A ClientApp that was pulling a message of the killed run waits for the rest of it for ever.
    deployment.kill("flwr-clientapp")

    sim = [str(BIN / "fedmt"), "sim", *command("unbroken")]
    subprocess.run(sim, env=deployment.environment, timeout=240, check=True, capture_output=True)
    assert weights(tmp_path / "killed") == weights(tmp_path / "unbroken")
    told = [
        [
            (line["round"], line["site"], line["task"], line["update"])
            for line in map(json.loads, (tmp_path / name / "rounds.jsonl").read_text().splitlines())
        ]
        for name in ("killed", "unbroken")
    ]
    assert told[0] == told[1]
