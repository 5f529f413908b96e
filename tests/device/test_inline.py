"""The engine in the calling process."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from fedmt_flower.device.contract import Engine
from fedmt_flower.device.inline import InlineEngine
from fedmt_flower.device.training.initial import initial_weights
from fedmt_flower.domain.allocation import Allocation, Policy
from fedmt_flower.domain.round import Assignment, RoundOrder, Status
from fedmt_flower.domain.task import Task
from fedmt_flower.domain.timeline import Phase
from fedmt_flower.errors import EngineError

GOOD = Task(
    name="good",
    model="quickstart_app:Net",
    data="quickstart_app:load_tensors",
    parameters={"lr": 0.1, "epochs": 1, "batch_size": 32},
    python_path=(str(Path(__file__).parent),),
)
BAD = replace(GOOD, name="bad", train="quickstart_app:train_exits")


@pytest.fixture(autouse=True)
def _own_path() -> Iterator[None]:
    path = list(sys.path)
    yield
    sys.path[:] = path


def order(*tasks: Task, **fields: object) -> RoundOrder:
    return RoundOrder(
        run="r",
        round=1,
        site="clinic",
        assignments=tuple(Assignment(task=task) for task in tasks),
        allocation=Allocation(policy=Policy.ISOLATED),
    )


def test_a_failing_task_fails_alone_and_the_report_tells_both() -> None:
    engine: Engine = InlineEngine()
    start = initial_weights(GOOD, 0)
    last = replace(GOOD, name="last")
    result = engine.run_round(order(GOOD, BAD, last), dict.fromkeys(("good", "bad", "last"), start))
    assert list(result.weights) == ["good", "last"]
    report = result.report
    assert [task.status for task in report.tasks] == [Status.DONE, Status.FAILED, Status.DONE]
    assert report.task("bad").error.startswith("site 'clinic', task 'bad': train raised SystemExit")
    assert [plan.budget for plan in report.plan.tasks] == pytest.approx([100 / 3] * 3)
    assert (report.backend, report.task("good").samples) == ("inline", 97)
    spans = report.timeline
    assert [span.task for span in spans] == ["good"] * 3 + ["last"] * 3
    assert [span.phase for span in spans[:3]] == [Phase.PREPARE, Phase.EVALUATE, Phase.COMPUTE]
    assert all(a.end_s <= b.start_s for a, b in pairwise(spans))
    assert 0 <= spans[0].start_s <= spans[-1].end_s <= report.wall_s
    assert report.task("good").rate > 0


def test_the_callers_generators_are_given_back() -> None:
    engine, start = InlineEngine(), initial_weights(GOOD, 0)
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    expected = (torch.rand(1).item(), np.random.rand(), random.random())
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    engine.run_round(order(GOOD), {"good": start})
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected


def test_a_task_that_changes_under_its_name_is_a_new_task() -> None:
    engine, start = InlineEngine(), initial_weights(GOOD, 0)
    engine.run_round(order(GOOD), {"good": start})
    wider = replace(GOOD, parameters={**GOOD.parameters, "hidden": 12})
    assert engine.run_round(order(wider), {"good": initial_weights(wider, 0)}).report.tasks[0].error == ""


def test_weights_for_every_task_are_required() -> None:
    with pytest.raises(EngineError, match="site 'clinic', round 1: no weights for good"):
        InlineEngine().run_round(order(GOOD), {})
