"""A SuperNode that is killed in the midst of a round and comes back: the others lose no round.

What a SuperLink that is killed and started again costs is in test_tls.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import test_superlink as flower
from test_superlink import Deployment, deployment

__all__ = ["deployment"]

ROUNDS = 3

pytestmark = [pytest.mark.deployment, pytest.mark.timeout(900)]


def processes(deployed: Deployment, mark: Callable[[list[str]], bool]) -> list[psutil.Process]:
    """The deployment's processes whose command `mark` recognises."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FLWR_HOME") == str(deployed.home) and mark(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def node_1(command: list[str]) -> bool:
    return "partition-id=1 num-partitions=2" in command


def test_a_node_that_is_killed_and_comes_back_costs_no_other_a_round(
    deployment: Deployment, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    quick = [f"tasks.{task}.parameters.epochs=1" for task in ("forms", "progression", "cells")]
    run = deployment.submit(
        "device=cpu", "federation.sites=2", f"federation.rounds={ROUNDS}", f"folder={folder}", *quick
    )
    lines = folder / "rounds.jsonl"
    flower.wait_for(lambda: lines.exists() and lines.read_text(), 240, "the end of the first round")
    (node,) = processes(deployment, node_1)
    command = node.cmdline()
    for process in [*node.children(recursive=True), node]:
        process.kill()
    node.wait(10)
    with ExitStack() as stack:
        log = stack.enter_context((tmp_path / "supernode-1-again.log").open("wb"))
        again = subprocess.Popen(
            command, env=deployment.environment, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT
        )
        stack.callback(again.wait, 30)
        stack.callback(again.terminate)
        flower.wait_for(lambda: deployment.status(run).startswith("finished"), 600, "the end of the run")
        assert deployment.status(run) == "finished:completed"

    rounds = [json.loads(line) for line in lines.read_text().splitlines()]
    served = {
        site: {line["round"] for line in rounds if line["site"] == site and line["status"] == "done"}
        for site in ("site-0", "site-1")
    }
    tasks = json.loads((folder / "summary.json").read_text())["tasks"]
    assert served["site-0"] >= set(range(1, ROUNDS + 1))
    assert {1, ROUNDS} <= served["site-1"] <= served["site-0"]
    assert tasks["forms"]["after"] > tasks["forms"]["before"] + 0.3
