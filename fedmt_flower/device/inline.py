"""The engine without processes: every task in the calling one, in turn."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping

import torch

from fedmt_flower.device.contract import Progress, RoundResult, Weights
from fedmt_flower.device.ipc.job import job_of, report_of, spans_of
from fedmt_flower.device.planner.inline import InlinePlanner
from fedmt_flower.device.training.runtime import TaskRuntime
from fedmt_flower.device.training.seeding import preserved_generators
from fedmt_flower.domain.device import Backend
from fedmt_flower.domain.round import RoundOrder, RoundReport, Status, TaskReport
from fedmt_flower.domain.task import Task
from fedmt_flower.domain.timeline import Span
from fedmt_flower.errors import ConfigError, EngineError, TaskError

_log = logging.getLogger(__name__)


class InlineEngine:
    """Runs rounds in the calling process, for a debugger and for tests.

    Budgets are unused: batch sizes and the start order are planned as for tasks in turn. A deadline is not
    kept, since nothing here could interrupt a task. The caller's random generators are given back as they
    were.

    Parameters
    ----------
    device
        A torch device.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._runtimes: dict[str, TaskRuntime] = {}
        self._planner = InlinePlanner()

    def run_round(
        self,
        order: RoundOrder,
        weights: Mapping[str, Weights],
        on_progress: Callable[[Progress], None] | None = None,
    ) -> RoundResult:
        """Run one round of one site; see `fedmt_flower.device.contract.Engine`."""
        started = time.monotonic()
        order = order.of(order.brings)  # the other nodes of its site have engines of their own
        assignments = {assignment.task.name: assignment for assignment in order.assignments}
        absent = [name for name in assignments if name not in weights]
        if absent:
            raise EngineError(f"site {order.site!r}, round {order.round}: no weights for {', '.join(absent)}")
        if order.coordination.network.link is not None:
            raise ConfigError("network: the inline engine emulates no link; use device=cpu or device=mps")
        runtimes = {name: self._runtime(assignment.task) for name, assignment in assignments.items()}
        with preserved_generators():
            planned = self._planner.plan(order, runtimes, weights)
        reports: list[TaskReport] = []
        spans: list[Span] = []
        updates: dict[str, Weights] = {}
        for task_plan in planned.plan.tasks:
            name = task_plan.task
            try:
                with preserved_generators():
                    job = job_of(order, assignments[name], task_plan)
                    result = runtimes[name].run(job, weights[name], on_progress)
            except TaskError as error:
                _log.warning("round %d: %s", order.round, error)
                _log.debug("where it was raised", exc_info=error)
                reports.append(TaskReport(task=name, status=Status.FAILED, error=str(error), pid=os.getpid()))
                continue
            reports.append(report_of(name, result, torch.get_num_threads(), os.getpid()))
            spans += spans_of(name, result, started)
            if result.weights is not None:
                updates[name] = {key: array.copy() for key, array in result.weights.items()}
        report = RoundReport(
            site=order.site,
            round=order.round,
            plan=planned.plan,
            tasks=tuple(reports),
            timeline=tuple(spans),
            backend=Backend.INLINE,
            waited_s=0.0,
            wall_s=time.monotonic() - started,
            arrived=time.time() - (time.monotonic() - started),
            forecast=planned.forecast,
        )
        self._planner.observe(order, report)
        return RoundResult(report=report, weights=updates)

    def close(self) -> None:
        """Forget models and data."""
        self._runtimes.clear()

    def _runtime(self, task: Task) -> TaskRuntime:
        runtime = self._runtimes.get(task.name)
        if runtime is None or runtime.task != task:
            runtime = self._runtimes[task.name] = TaskRuntime(task, self._device)
        return runtime
