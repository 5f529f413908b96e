"""A task's hyperparameters at a batch size that was planned for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fedmt_flower.device.ipc.job import DEFAULT_BATCH, Job
from fedmt_flower.device.training.binding import defaults, resolve_callable
from fedmt_flower.domain.coordination import LearningRate
from fedmt_flower.domain.task import Scalar, Task
from fedmt_flower.errors import TaskError

_RATES: Final = ("lr", "learning_rate")


def adapted(task: Task, job: Job) -> dict[str, Scalar]:
    """The parameters of `job`, its learning rate following the batch size if it is to.

    A rate that the parameters do not name is the default of what takes one: of the task's own `train` or
    `trainer`, else of its optimizer. Where that has none, nothing follows.

    Raises
    ------
    TaskError
        If there is no such function, or the task's own batch size is no number.
    """
    parameters = dict(job.parameters)
    if job.batch_size is None or job.learning_rate is LearningRate.OFF:
        return parameters
    field = "train" if task.train else "trainer" if task.trainer else "optimizer"
    asked = defaults(resolve_callable(task, field))
    factor = job.learning_rate.factor(job.batch_size, _own_batch(task, job, asked))
    given = {name: value for name, value in parameters.items() if name.replace("-", "_") in _RATES}
    rates = given or {name: asked[name] for name in _RATES if name in asked}
    return parameters | {name: float(rate) * factor for name, rate in rates.items() if _is_number(rate)}


def _own_batch(task: Task, job: Job, asked: Mapping[str, Any]) -> int:
    own = job.own_batch_size or asked.get("batch_size") or DEFAULT_BATCH
    try:
        return int(own)
    except ValueError as error:
        raise TaskError(f"task {task.name!r}, batch_size: got {own!r}, expected a number") from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
