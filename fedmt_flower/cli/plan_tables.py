"""A plan beside others, for a terminal and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fedmt_flower.cli.tables import number, plural
from fedmt_flower.domain.allocation import Objective
from fedmt_flower.domain.task import TaskKind
from fedmt_flower.domain.timeline import Phase
from fedmt_flower.planning.case import Case
from fedmt_flower.planning.outcomes import Outcome, by_remaining
from fedmt_flower.planning.planner import PlannedRound

_WANTED: Final[Mapping[Objective, str]] = {
    Objective.MAKESPAN: "the round's volumes finished soonest",
    Objective.RAW: "the most samples/s over all tasks",
    Objective.FAIRNESS: "the largest sum of shares Pᵢ/P_bᵢ",
}
_LITTLE: Final = 0.02
"""A gain below this is within what repeats of a round differ by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A plan with what it is compared with.

    `equal` are plans with one budget for all, `swept` the best over R_v; both are empty for other policies
    than `fedmt`.
    """

    case: Case
    planned: PlannedRound
    chosen: Outcome
    objective: Objective
    baselines: tuple[Outcome, ...]
    equal: tuple[Outcome, ...] = ()
    swept: tuple[Outcome, ...] = ()

    @property
    def basis(self) -> str:
        """What the prediction rests on."""
        return self.planned.forecast.basis

    def worth(self, one: Outcome) -> float:
        """The objective's value of a plan: the more, the better."""
        match self.objective:
            case Objective.MAKESPAN:
                return 1.0 / one.makespan_s
            case Objective.RAW:
                return one.raw
            case Objective.FAIRNESS:
                return one.fairness

    def gain(self, one: Outcome) -> float:
        """By what factor the plan chosen is better."""
        return self.worth(self.chosen) / self.worth(one)


def as_json(shown: Shown, chart: Path) -> dict[str, object]:
    """A plan as plain values; `chart` is the file of its picture."""
    forecast, problem = shown.planned.forecast, shown.case.request.problem
    return {
        "tasks": list(_rows(shown)),
        "order": [place.task for place in shown.planned.plan.tasks],
        "sharing": str(shown.planned.plan.sharing),
        "objective": str(shown.objective),
        "levels": {task.task: list(row) for task, row in zip(problem.tasks, problem.levels, strict=True)},
        "basis": shown.basis,
        "makespan_s": forecast.makespan_s,
        "lower_bound_s": forecast.lower_bound_s,
        "constant_rates_s": forecast.constant_s,
        "timeline": [asdict(span) for span in forecast.timeline],
        "reallocation": [
            {"at_s": moment, "budgets": dict(budgets)} for moment, budgets in by_remaining(shown.planned)
        ],
        "chosen": asdict(shown.chosen),
        "baselines": [asdict(one) | {"gain": shown.gain(one)} for one in shown.baselines],
        "equal": [asdict(one) for one in shown.equal],
        "sweep": [asdict(one) for one in shown.swept],
        "why": list(_why(shown)),
        "chart": str(chart),
    }


def show(console: Console, shown: Shown, chart: Path) -> None:
    """Print a plan and what it is compared with; `chart` is the file of its picture."""
    forecast = shown.planned.forecast
    console.print(f"{shown.planned.plan.sharing}, by the {shown.basis}", style="bold")
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("task", "kind"):
        table.add_column(heading, style="bold" if heading == "task" else "")
    for heading in ("budget", "batch", "samples/s", "of alone", "computes (s)"):
        table.add_column(heading, justify="right")
    spans = {span.task: span for span in forecast.timeline if span.phase is Phase.COMPUTE}
    for row in _rows(shown):
        span = spans[str(row["task"])]
        rate, solo = float(str(row["rate"])), float(str(row["solo_rate"]))
        table.add_row(
            str(row["task"]),
            str(row["kind"]),
            f"{row['budget']:.0f} %",
            str(row["batch_size"]),
            number(rate),
            f"{rate / solo:.0%}",
            f"{span.start_s:.2f} to {span.end_s:.2f}",
        )
    console.print(table)
    for moment, budgets in by_remaining(shown.planned):
        text = ", ".join(f"{task} {budget:.0f} %" for task, budget in budgets.items())
        console.print(f"from {moment:.2f} s: {text}", soft_wrap=True)
    console.print(
        f"the round takes {forecast.makespan_s:.3g} s, {forecast.gap:.0%} above what no order beats "
        f"({forecast.lower_bound_s:.3g} s)\n",
        soft_wrap=True,
    )
    console.print(_comparison(shown))
    for line in _why(shown):
        console.print(line, soft_wrap=True)
    console.print(f"{'chart':<9} {chart}", soft_wrap=True, markup=False)


def _rows(shown: Shown) -> Iterator[dict[str, object]]:
    """A row for each task, in the start order."""
    facts = {one.features.task: one for one in shown.case.tasks}
    for place in shown.planned.plan.tasks:
        own = facts[place.task]
        yield {
            "task": place.task,
            "kind": str(TaskKind.STEPPED if own.stepped else TaskKind.WHOLE_CALL),
            "budget": place.budget,
            "batch_size": place.batch_size or own.features.reference_batch,
            "rate": shown.planned.forecast.rates[place.task],
            "solo_rate": own.features.solo_rate,
            "samples": own.volume.samples,
        }


def _why(shown: Shown) -> Iterator[str]:
    """What was wanted, what limits it, and what the budgets buy."""
    yield f"wanted: {_WANTED[shown.objective]}"
    problem = shown.case.request.problem
    if shown.objective is Objective.MAKESPAN and not shown.equal:
        return
    most = problem.virtual_resource[1]
    limits = [f"R_v at most {most:.0f} %"] if most < float("inf") else []
    if problem.memory:
        limits.append(f"{problem.memory_limit / 2**30:.0f} GiB of memory for all tasks")
    steps = sorted({len(row) for row in problem.levels})
    fewest = f"{steps[0]} to " if len(steps) > 1 else ""
    limits.append(f"{fewest}{plural(steps[-1], 'budget')} for each task")
    yield f"limits: {', '.join(limits)}"
    if not shown.equal:
        return
    best = max(shown.equal, key=shown.worth)
    gain = shown.gain(best) - 1.0
    if gain > _LITTLE:
        yield f"budgets of their own bring {gain:.0%} over the best budget for all, {best.scheme}"
        return
    full = next(one for one in reversed(shown.equal))
    alike = full if shown.gain(full) - 1.0 <= _LITTLE else best
    yield f"one budget for all is as good, within {_LITTLE:.0%}: {alike.scheme}"


def _comparison(shown: Shown) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("plan", style="bold")
    for heading in ("R_v", "samples/s", "P_f", "least share", "round s", "gain"):
        table.add_column(heading, justify="right")
    for one in (shown.chosen, *shown.baselines):
        table.add_row(
            one.scheme,
            f"{one.virtual_resource:.0f} %",
            number(one.raw),
            f"{one.fairness:.2f}",
            f"{one.smallest_share:.2f}",
            f"{one.makespan_s:.3g}",
            "" if one is shown.chosen else f"{shown.gain(one):.2f}×",
        )
    return table
