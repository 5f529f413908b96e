"""`fedmt sim` from end to end, on Flower's simulation."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedmt_flower.domain.timeline import Phase
from fedmt_flower.federation.run_folder import RunFolder

OWN = Path(__file__).parent / "own"
FEDMT = [sys.executable, "-m", "fedmt_flower"]
QUICK = ["device=cpu", *(f"tasks.{task}.parameters.epochs=1" for task in ("forms", "progression", "cells"))]

pytestmark = [pytest.mark.simulation, pytest.mark.timeout(600)]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "FEDMT_HOME": str(tmp_path / "home"), "COLUMNS": "200"}


def fedmt(*words: str, environment: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FEDMT, *words], capture_output=True, text=True, env=environment, cwd=cwd, timeout=500
    )


def engines(environment: dict[str, str]) -> list[str]:
    """The command of every process of an engine that this test's environment marks."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FEDMT_HOME") == environment["FEDMT_HOME"]:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return [command for command in found if "fedmt_flower.device" in command]


def test_a_sweep_leaves_a_folder_for_each_run_and_one_table(
    environment: dict[str, str], tmp_path: Path
) -> None:
    axes = {
        "allocation": ("temporal", "sharing"),
        "network": ("none", "edge_400mbps"),
        "overlap": ("off", "flexible"),
    }
    done = fedmt(
        *("sim", "-m", *(f"{key}={','.join(values)}" for key, values in axes.items())),
        *(*QUICK[:3], "~tasks.cells", "federation.rounds=1", "federation.sites=2", "folder=sweep"),
        environment=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    choices = list(itertools.product(*axes.values()))
    names = [
        f"{number}_allocation={allocation}_network={network}_overlap={overlap}"
        for number, (allocation, network, overlap) in enumerate(choices)
    ]
    runs = sorted(path for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert [path.name for path in runs] == names
    for run in runs:
        assert {path.name for path in run.iterdir()} >= {
            "config.yaml",
            "log.txt",
            "rounds.jsonl",
            "summary.json",
            "timeline.png",
            "trace.json",
            "weights",
        }
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(("temporal", "sharing"))]
    assert [tuple(row[:3]) for row in rows] == choices
    assert done.stdout.count("outcome") == 1
    again = fedmt("show", "sweep", environment=environment, cwd=tmp_path)
    assert again.stdout == done.stdout

    weights = {(run / "weights" / "forms.safetensors").read_bytes() for run in runs}
    assert len(weights) == 1, "how tasks share their device and link is no business of what they learn"
    for run, (_, network, overlap) in zip(runs, choices, strict=True):
        summary = RunFolder.open(run).summary()
        assert summary.in_turn
        assert (summary.overlap, summary.link is not None) == (overlap, network == "edge_400mbps")
        assert (summary.predicted_s[0] is not None) == (network != "none" or overlap == "flexible")
        phases = {span.phase for entry in RunFolder.open(run).rounds() for span in entry.spans}
        assert ({Phase.DOWNLOAD, Phase.UPLOAD} <= phases) == (network != "none")
        assert "The slowest site: " in (run / "log.txt").read_text()
    assert engines(environment) == []


def test_one_bad_task_costs_the_others_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    done = fedmt(
        *("sim", "--config-dir", ".", "tasks=faulty", "device=cpu", "device.deadline_s=10"),
        *("federation.sites=1", "federation.rounds=2", f"folder={tmp_path / 'run'}"),
        environment=environment,
        cwd=OWN,
    )
    assert done.returncode == 1
    told = [line.removeprefix("fedmt: task ") for line in done.stderr.splitlines() if "fedmt: " in line]
    causes = {
        "raises": "train raised ValueError: the ward is closed (faulty.py:",
        "diverges": "not finite: 'weight'",
        "reshapes": "'weight' has shape [3, 4], expected [2, 4]",
        "hangs": "no result within its deadline of 10 s",
        "dies_once": "was killed by SIGKILL",
        "lost": "faulty has no 'dat'; did you mean data?",
        "empty": "the training split is empty",
    }
    assert [line.partition(":")[0] for line in told] == list(causes)
    for line, cause in zip(told, causes.values(), strict=True):
        assert cause in line
        assert "site 'site-0'" in line

    folder = RunFolder.open(tmp_path / "run")
    tasks = folder.summary().tasks
    well, dies = tasks["well"], tasks["dies_once"]
    assert well.failures == ()
    assert well.before is not None
    assert well.after is not None
    assert well.after > well.before
    assert len(dies.failures) == 1
    assert dies.after != dies.before, "the round after the kill works"
    last = {entry.task: entry.status for entry in folder.rounds() if entry.round == 2}
    assert last["dies_once"] == last["well"] == "done"
    assert last["hangs"] == last["raises"] == "failed"
    assert engines(environment) == []


def test_ctrl_c_ends_all_and_keeps_what_was_there(environment: dict[str, str], tmp_path: Path) -> None:
    command = [*FEDMT, "sim", *QUICK, "federation.sites=1", "federation.rounds=1000", "folder=run"]
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    rounds = tmp_path / "run" / "rounds.jsonl"
    deadline = time.monotonic() + 240
    while not (rounds.exists() and rounds.read_bytes()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert err.splitlines()[-1] == "fedmt: interrupted"
    assert "Traceback" not in err
    summary: dict[str, Any] = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["outcome"] == "interrupted"
    assert summary["rounds"] >= 1
    deadline = time.monotonic() + 30
    while engines(environment):
        assert time.monotonic() < deadline, engines(environment)
        time.sleep(0.2)
