"""Rounds of synthetic tasks in a real engine: orders as a client sends them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.models import profiled
from fedmt_flower.device.contract import Weights
from fedmt_flower.device.engine.client import EngineClient
from fedmt_flower.device.training.initial import initial_weights
from fedmt_flower.domain.allocation import Allocation, Objective, Policy
from fedmt_flower.domain.coordination import Coordination
from fedmt_flower.domain.round import Assignment, Mode, RoundOrder, RoundReport, Status
from fedmt_flower.domain.task import Scalar, Task
from fedmt_flower.domain.timeline import Phase
from fedmt_flower.errors import EngineError
from fedmt_flower.planning.xgboost_model import fit_xgboost

_LONGEST_ROUND_S = 300.0


class Rounds:
    """Rounds of `tasks` that all begin with the same weights.

    Workers stay warm from one to the next, and what the engine's planner learns stays too.
    """

    def __init__(self, engine: EngineClient, run: str, tasks: Sequence[Task]) -> None:
        self.tasks = tuple(tasks)
        self.weights: Mapping[str, Weights] = {task.name: initial_weights(task, 0) for task in tasks}
        self._engine, self._run, self._number = engine, run, 0

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each task's weights."""
        return {
            task: sum(array.nbytes for array in weights.values()) for task, weights in self.weights.items()
        }

    def run(
        self,
        volumes: Mapping[str, int],
        allocation: Allocation,
        coordination: Coordination | None = None,
        *,
        site: str = "bench",
        part: float = 1.0,
    ) -> RoundReport:
        """Train every task on its volume in samples, or on a `part` (0, 1] of it.

        Raises
        ------
        EngineError
            If a task failed: a round without it would look fast.
        """
        self._number += 1
        order = RoundOrder(
            run=self._run,
            round=self._number,
            site=site,
            assignments=tuple(
                Assignment(task=task, mode=Mode.TRAIN, parameters=_data(volumes[task.name], part))
                for task in self.tasks
            ),
            allocation=allocation,
            coordination=coordination or Coordination(),
            deadline_s=_LONGEST_ROUND_S,
        )
        report = self._engine.run_round(order, self.weights).report
        if failures := [task.error for task in report.tasks if task.status is Status.FAILED]:
            raise EngineError(failures[0])
        return report


def _data(samples: int, part: float) -> dict[str, Scalar]:
    """A task's parameters that make its data."""
    return {"samples": samples} if part == 1.0 else {"samples": samples, "volume": part}


def chosen_budgets(bench: Bench, directory: Path, *, reallocate: bool = True) -> Allocation:
    """The policy `fedmt` for whole rounds, with the model that was given or else fitted to the profiles."""
    model = bench.options.model
    if model is None and bench.options.profiles:
        model = directory / "model.json"
        if not model.exists():
            model.write_text(fit_xgboost(profiled(bench.options.profiles), threads=1).to_text())
    return Allocation(
        policy=Policy.FEDMT,
        objective=Objective.MAKESPAN,
        model=str(model.resolve()) if model is not None else "",
        reallocate=reallocate,
    )


def makespan(report: RoundReport) -> float:
    """Seconds from the start of a round's first phase to the end of its last."""
    spans = [span for span in report.timeline if span.phase is not Phase.PREPARE]
    return max(span.end_s for span in spans) - min(span.start_s for span in spans)


def computed(report: RoundReport) -> dict[str, tuple[float, float]]:
    """When each task began to compute and had computed, in seconds since the round arrived."""
    found: dict[str, tuple[float, float]] = {}
    for span in report.timeline:
        if span.phase is Phase.COMPUTE:
            begin, end = found.get(span.task, (span.start_s, span.end_s))
            found[span.task] = min(begin, span.start_s), max(end, span.end_s)
    return found


def compute_span(report: RoundReport) -> float:
    """Seconds from the first task's first step to the last one's last."""
    spans = computed(report).values()
    return max(end for _, end in spans) - min(begin for begin, _ in spans)
