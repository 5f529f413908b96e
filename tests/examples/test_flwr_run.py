"""`flwr run` starts every multi-task example as it is, in Flower's simulation."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BIN = Path(sys.executable).parent

pytestmark = [pytest.mark.simulation, pytest.mark.timeout(280)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A shell's environment in which `flwr run` reaches a SuperLink that simulates two nodes."""
    home = tmp_path_factory.mktemp("flwr")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{sock.getsockname()[1]}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "test"\n[superlink.test]\naddress = "{address}"\ninsecure = true\n'
    )
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FEDMT_HOME": str(home / "fedmt"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = ["flower-superlink", "--insecure", "--simulation", "--disable-runtime-dependency-installation"]
    host, _, port = address.partition(":")
    with (home / "superlink.log").open("wb") as log:
        superlink = subprocess.Popen(
            [str(BIN / command[0]), *command[1:], "--host", host, "--port", port],
            env=environment,
            cwd=home,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _await_health(f"http://{address}/health", superlink, home / "superlink.log")
            yield environment
        finally:
            superlink.terminate()
            try:
                superlink.wait(30)
            finally:
                _end_group(superlink.pid)
                subprocess.run([str(BIN / "fedmt"), "engine", "stop"], env=environment, timeout=60)


def _await_health(address: str, superlink: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(150):
        assert superlink.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(address, timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"no SuperLink after 30 s: {log.read_text()}")


def _end_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.mark.parametrize(
    ("example", "rounds", "metrics"),
    [
        ("hospital", 3, {"digits": "accuracy", "cells": "accuracy"}),
        ("clinic", 1, {"wine": "accuracy", "cells": "accuracy"}),
        ("template", 1, {"wine": "accuracy", "diabetes": "mae"}),
    ],
)
def test_flwr_run_starts_the_example(
    example: str, rounds: int, metrics: dict[str, str], environment: dict[str, str]
) -> None:
    command = ["flwr", "run", str(EXAMPLES / example), "test", "--stream"]
    if rounds != 3:
        command += ["--run-config", f"num-server-rounds={rounds}"]
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]], env=environment, capture_output=True, text=True, timeout=240
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert f"[ROUND {rounds}/{rounds}]" in output
    assert "FedMT finished" in output, output
    for task in metrics:
        assert len(re.findall(rf"{task}: updated by site-0, site-1", output)) == rounds, output
    for metric in set(metrics.values()):
        evaluated = re.findall(rf"evaluated: .*{metric} ([\d.]+)", output)
        assert len(evaluated) == (rounds + 1) * list(metrics.values()).count(metric), output
