"""The tasks of the ordinary apps learn when the package calls them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedmt_flower import Task
from fedmt_flower.device.inline import InlineEngine
from fedmt_flower.device.training.initial import initial_weights
from fedmt_flower.domain.allocation import Allocation, Policy
from fedmt_flower.domain.round import Assignment, Mode, RoundOrder, Status

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RUN_CONFIG = {"local-epochs": 4, "batch-size": 16, "partition-id": 0, "num-partitions": 2}


@pytest.fixture(autouse=True)
def _clean_process() -> Iterator[None]:
    """One thread, and no trace of the examples' modules."""
    path, modules, threads = list(sys.path), set(sys.modules), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in ("cells", "digits", "wine"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("joined", "app", "lr", "examples"),
    [("hospital", "digits", 0.05, 719), ("hospital", "cells", 0.003, 228), ("clinic", "wine", 0.01, 71)],
)
def test_a_round_trains_as_the_app_would(joined: str, app: str, lr: float, examples: int) -> None:
    task = replace(Task.in_module(app, f"{app}.task"), python_path=(str(EXAMPLES / joined),))
    weights = initial_weights(task, seed=1)

    def play(mode: Mode) -> tuple[float, int]:
        nonlocal weights
        order = RoundOrder(
            run="example",
            round=1,
            site="site-0",
            assignments=(Assignment(task=task, mode=mode, parameters={**RUN_CONFIG, "lr": lr}),),
            allocation=Allocation(policy=Policy.SHARING),
        )
        result = InlineEngine().run_round(order, {app: weights})
        report = result.report.task(app)
        assert report.status is Status.DONE, report.error
        weights = result.weights.get(app, weights)
        return report.evaluate_metrics["accuracy"], report.samples

    before, trained = play(Mode.TRAIN_AND_EVALUATE)
    after, _ = play(Mode.EVALUATE)
    assert trained == RUN_CONFIG["local-epochs"] * examples
    assert before < 0.75 < 0.85 < after
