"""The weights that a task's federation begins with."""

from __future__ import annotations

from fedmt_flower.device.contract import Weights
from fedmt_flower.device.ipc.job import Job
from fedmt_flower.device.training.runtime import TaskRuntime
from fedmt_flower.device.training.seeding import preserved_generators
from fedmt_flower.device.training.weights import arrays_of
from fedmt_flower.domain.round import Mode
from fedmt_flower.domain.task import Task
from fedmt_flower.errors import TaskError


def initial_weights(task: Task, seed: int) -> Weights:
    """Build the model of `task` under `seed`, on the CPU, and give its state.

    The global random generators are left as they were.

    Raises
    ------
    TaskError
        If the model cannot be found or built.
    """
    job = Job(site="server", round=0, seed=seed, mode=Mode.EVALUATE, parameters=task.parameters)
    with preserved_generators():
        try:
            return arrays_of(TaskRuntime(task, "cpu").model(job))
        except ValueError as error:
            raise TaskError(f"task {task.name!r}: {error}") from error
