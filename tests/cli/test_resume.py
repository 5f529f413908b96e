"""`fedmt sim` goes on after a kill when it is given the same command again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedmt_flower.federation.run_folder import RunFolder

pytestmark = [pytest.mark.simulation, pytest.mark.timeout(600)]

COMMAND = [
    *(sys.executable, "-m", "fedmt_flower", "sim", "device=cpu", "federation.sites=2", "federation.rounds=3"),
    *("~tasks.forms", "tasks.progression.parameters.epochs=1", "tasks.cells.parameters.epochs=1"),
    "federation.strategy.name=FedAdam",
    "++federation.strategy.parameters.eta=0.01",
    "++federation.strategy.parameters.fraction_train=0.5",
]


def test_the_same_command_goes_on_after_a_kill_to_the_same_weights(tmp_path: Path) -> None:
    environment = {**os.environ, "FEDMT_HOME": str(tmp_path / "home")}

    def command(name: str) -> list[str]:
        return [*COMMAND, f"folder={tmp_path / name}", f"federation.checkpoint={tmp_path / name}-kept"]

    process = subprocess.Popen(command("killed"), env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL)
    first = tmp_path / "killed-kept" / "round-000001.npz"
    deadline = time.monotonic() + 240
    while not first.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for name in ("killed", "unbroken"):
        done = subprocess.run(command(name), env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    killed, unbroken = (RunFolder.open(tmp_path / name) for name in ("killed", "unbroken"))
    assert "Going on after round" in (tmp_path / "killed" / "log.txt").read_text()
    for task in ("progression", "cells"):
        file = f"weights/{task}.safetensors"
        assert (killed.path / file).read_bytes() == (unbroken.path / file).read_bytes()
    told = [[(one.round, one.site, one.task) for one in folder.rounds()] for folder in (killed, unbroken)]
    assert told[0] == told[1]
    assert killed.summary().rounds == 3
