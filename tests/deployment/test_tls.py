"""TLS and node authentication, from end to end: what docker/compose.tls.yml says, as processes on loopback.

There is no Docker engine behind this test. It takes each service's command out of the compose files, puts
loopback ports and the test's own certificates in place of the services' names, and runs it.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
BIN = Path(sys.executable).parent
SERVICES = ("superlink", "serverapp", "supernode-1", "supernode-2", "clientapp-1", "clientapp-2")
NODES = ("supernode-1", "supernode-2")

pytestmark = [pytest.mark.deployment, pytest.mark.timeout(290)]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(condition: Callable[[], Any], seconds: float, what: str, pause: float = 0.2) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come within {seconds} s"
        time.sleep(pause)
    return found


@dataclass
class Stack:
    """The services of the compose files, as processes that the test starts and stops by name."""

    folder: Path
    services: dict[str, list[str]]
    ports: dict[str, int]
    health: dict[str, int]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def certificates(self) -> Path:
        return self.folder / "certificates"

    def environment(self, name: str) -> dict[str, str]:
        home = self.folder / name
        home.mkdir(exist_ok=True)
        return {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(home),
            "FEDMT_HOME": str(self.folder / "fedmt"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
            "OMP_NUM_THREADS": "1",
        }

    def start(self, name: str) -> subprocess.Popen[bytes]:
        environment = self.environment(name)
        program, *words = self.services[name]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = self.running[name] = subprocess.Popen(
                [str(BIN / program), *words],
                env=environment,
                cwd=self.folder / name,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return process

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def close(self) -> None:
        for process in self.running.values():
            process.terminate()
        deadline = time.monotonic() + 15
        for process in self.running.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                # A SuperNode that waits for its SuperLink may take a minute to look up.
                process.kill()
                process.wait()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def await_health(self, name: str) -> None:
        """Ask as the compose file's health check does."""
        check = str(_load("compose.yml")["x-service"]["healthcheck"]["test"][-1])
        script = check.replace("127.0.0.1:9090", f"127.0.0.1:{self.health[name]}")

        def healthy() -> bool:
            assert self.running[name].poll() is None, self.log(name)
            return subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0

        wait_for(healthy, 60, f"the health of {name}")

    def flwr(self, *words: str) -> Any:
        """A command of Flower's over TLS, its answer as JSON."""
        environment = self.environment("cli")
        (self.folder / "cli" / "config.toml").write_text(
            f'[superlink.test]\naddress = "127.0.0.1:{self.ports["superlink"]}"\n'
            f'root-certificates = "{self.certificates / "ca.pem"}"\n'
        )
        command = [str(BIN / "flwr"), *words, "--format", "json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)


def _load(name: str) -> Any:
    return yaml.safe_load((DOCKER / name).read_text())


def _stack(folder: Path) -> Stack:
    base, overlay = _load("compose.yml")["services"], _load("compose.tls.yml")["services"]
    ports = {name: free_port() for name in ("superlink", *NODES)}
    health = {name: free_port() for name in SERVICES}
    services = {}
    for name in SERVICES:
        places = {
            "0.0.0.0": "127.0.0.1",
            "superlink:8000": f"127.0.0.1:{ports['superlink']}",
            "--port=8000": f"--port={ports['superlink']}",
            "127.0.0.1:9090": f"127.0.0.1:{health[name]}",
            "/run/secrets/": f"{folder}/certificates/",
            "/app/": f"{folder}/{name}/",
            **{f"{node}:9094": f"127.0.0.1:{ports[node]}" for node in NODES},
            **({"--port=9094": f"--port={ports[name]}"} if name in NODES else {}),
        }
        words = []
        for word in [*base[name]["entrypoint"], *overlay[name]["command"]]:
            chosen = re.sub(r"\$\{\w+:-(.*)\}", r"\1", word)
            for old, new in places.items():
                chosen = chosen.replace(old, new)
            words.append(chosen)
        services[name] = words
    return Stack(folder, services, ports, health)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    made = _stack(tmp_path)
    subprocess.run([str(DOCKER / "certificates.sh"), str(made.certificates)], check=True, timeout=60)
    try:
        yield made
    finally:
        made.close()
        subprocess.run([str(BIN / "fedmt"), "engine", "stop"], env=made.environment("cli"), timeout=60)


def test_a_federation_over_tls_refuses_strangers_and_survives_its_superlink(stack: Stack) -> None:
    stack.start("superlink")
    stack.await_health("superlink")
    with pytest.raises(OSError, match=r".+"):
        urllib.request.urlopen(f"http://127.0.0.1:{stack.ports['superlink']}/health", timeout=5)

    stranger = stack.start("supernode-1")
    assert stranger.wait(60) != 0
    assert "Failed to activate SuperNode" in stack.log("supernode-1")

    for node in NODES:
        stack.flwr("supernode", "register", str(stack.certificates / f"{node}.pub"), "test")
    for name in SERVICES[1:]:
        stack.start(name)
    for name in SERVICES[1:]:
        stack.await_health(name)

    app = str(ROOT / "examples" / "hospital")
    run = str(stack.flwr("run", app, "test", "--run-config", "num-server-rounds=1")["run-id"])
    wait_for(lambda: "Start `flwr-clientapp` process" in stack.log("clientapp-1"), 60, "the first message")
    stack.kill("superlink")
    time.sleep(2)
    stack.start("superlink")
    stack.await_health("superlink")

    def status() -> str:
        return str(stack.flwr("list", "test", "--run-id", run)["runs"][0]["status"])

    wait_for(lambda: status().startswith("finished"), 180, "the end of the run", pause=3)
    assert status() == "finished:completed", stack.log("serverapp")
    assert sorted(path.name for path in (stack.folder / "serverapp").glob("*.pt")) == [
        "cells.pt",
        "digits.pt",
    ]
