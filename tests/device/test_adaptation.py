"""What a task trains with when its batch size was planned."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from fedmt_flower.device.ipc.job import Job, job_of
from fedmt_flower.device.training.adaptation import adapted
from fedmt_flower.device.training.initial import initial_weights
from fedmt_flower.device.training.runtime import TaskRuntime
from fedmt_flower.domain.allocation import Allocation, Policy
from fedmt_flower.domain.coordination import BatchRules, Coordination, LearningRate
from fedmt_flower.domain.plan import TaskPlan
from fedmt_flower.domain.round import Assignment, Mode, RoundOrder
from fedmt_flower.domain.task import Scalar, Task
from fedmt_flower.errors import TaskError

STEPPED = Task(
    name="seg",
    model="quickstart_app:Net",
    data="quickstart_app:load_tensors",
    python_path=(str(Path(__file__).parent),),
)
WHOLE = replace(STEPPED, data="quickstart_app:load_data", train="quickstart_app:train_at")
OWN = replace(STEPPED, trainer="quickstart_app:Countdown")
LINEAR, SQRT, OFF = LearningRate.LINEAR, LearningRate.SQRT, LearningRate.OFF


def planned(task: Task, batch: int | None, rule: LearningRate, **parameters: Scalar) -> Job:
    """The job of `task` when its plan sets `batch`."""
    task = replace(task, parameters=parameters)
    assignment = Assignment(task=task, mode=Mode.TRAIN)
    order = RoundOrder(
        run="r",
        round=1,
        site="s",
        assignments=(assignment,),
        allocation=Allocation(policy=Policy.SHARING),
        coordination=Coordination(batching=BatchRules(learning_rate=rule)),
    )
    return job_of(order, assignment, TaskPlan(task=task.name, budget=100, batch_size=batch))


@pytest.mark.parametrize(
    ("task", "rule", "parameters", "rates"),
    [
        (STEPPED, LINEAR, {"lr": 0.1, "batch_size": 16}, {"lr": 0.4}),
        (STEPPED, SQRT, {"lr": 0.1, "batch_size": 16}, {"lr": 0.2}),
        (STEPPED, OFF, {"lr": 0.1, "batch_size": 16}, {"lr": 0.1}),
        (STEPPED, LINEAR, {"learning-rate": 1, "batch-size": 128}, {"learning-rate": 0.5}),
        (STEPPED, LINEAR, {}, {"lr": 0.002}),  # SGD's own rate, at the loop's own batch size
        (OWN, LINEAR, {"batch_size": 16}, {}),  # it has no rate, or one that only it knows
        (OWN, LINEAR, {"batch_size": 16, "lr": 0.1}, {"lr": 0.4}),
        (WHOLE, LINEAR, {}, {"learning_rate": 1.0}),  # both are defaults of the user's function
        (WHOLE, LINEAR, {"learning_rate": 0.1}, {"learning_rate": 0.2}),
        (WHOLE, LINEAR, {"lr": "auto", "batch_size": 16}, {"lr": "auto"}),
    ],
)
def test_the_learning_rate_follows_the_planned_batch_size(
    task: Task, rule: LearningRate, parameters: dict[str, Scalar], rates: dict[str, Scalar]
) -> None:
    found = adapted(task, planned(task, 64, rule, **parameters))
    assert found.pop("batch_size") == found.pop("batch-size", 64) == 64
    assert found.keys() == rates.keys()
    for name, rate in rates.items():
        assert rate == found[name] if isinstance(rate, str) else math.isclose(rate, float(found[name]))


def test_without_a_planned_batch_size_nothing_changes() -> None:
    parameters = {"lr": 0.1, "batch_size": 16}
    assert adapted(STEPPED, planned(STEPPED, None, LINEAR, **parameters)) == parameters


def test_a_batch_size_that_is_no_number_is_one_line() -> None:
    with pytest.raises(TaskError, match="task 'seg', batch_size: got 'many', expected a number"):
        adapted(STEPPED, planned(STEPPED, 64, LINEAR, batch_size="many"))


@pytest.mark.parametrize("task", [STEPPED, WHOLE])
def test_a_task_trains_as_if_the_batch_size_and_the_rate_were_its_own(task: Task) -> None:
    """97 samples in batches of 32 leave a single one, which BatchNorm could not train on."""
    if task is STEPPED:
        own = {"lr": 0.1, "batch_size": 16}
        same = {"lr": 0.2, "batch_size": 32}
    else:
        own = {"learning_rate": 0.1, "batch_size": 16, "partition_id": 0, "num_partitions": 1}
        same = {**own, "learning_rate": 0.2, "batch_size": 32}
    start = initial_weights(replace(task, parameters=own), 1)
    results = [
        TaskRuntime(task, "cpu").run(planned(task, batch, LINEAR, **parameters), start)
        for batch, parameters in ((32, own), (None, same), (None, own))
    ]
    planned_bits, same_bits, own_bits = (
        b"".join(array.tobytes() for array in (result.weights or {}).values()) for result in results
    )
    assert planned_bits == same_bits != own_bits
    assert results[0].samples == (97 if task is STEPPED else 96)
