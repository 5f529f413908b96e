"""`fedmt plan`: what a device would do in a round, what that promises, and why."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from fedmt_flower.cli.tables import number, plural
from fedmt_flower.device.backends import chosen
from fedmt_flower.device.course import Course
from fedmt_flower.device.models import Models
from fedmt_flower.device.scout import Known
from fedmt_flower.domain.allocation import Allocation, Objective, Policy
from fedmt_flower.domain.device import Backend
from fedmt_flower.domain.round import Assignment, Mode, RoundOrder
from fedmt_flower.domain.task import TaskKind
from fedmt_flower.domain.timeline import Phase
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.case import Case
from fedmt_flower.planning.outcomes import Outcome, by_remaining, equal_budgets, outcome, sweep
from fedmt_flower.planning.planner import PlannedRound

if TYPE_CHECKING:
    from fedmt_flower.federation.settings import Settings

_BASELINES: Final = (Policy.TEMPORAL, Policy.TIMESLICE, Policy.ISOLATED, Policy.SHARING, Policy.STATIC)
_WANTED: Final[Mapping[Objective, str]] = {
    Objective.MAKESPAN: "the round's volumes finished soonest",
    Objective.RAW: "the most samples/s over all tasks",
    Objective.FAIRNESS: "the largest sum of shares Pᵢ/P_bᵢ",
}
_LITTLE: Final = 0.02
"""A gain below this is within what repeats of a round differ by."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="Hydra overrides as of `fedmt sim`; allocation=fedmt unless another is named",
    )
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="SAMPLES",
        help="take tasks and device from this file of `fedmt profile` instead of measuring them",
    )
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("plan.png"), help="the chart (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


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


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from fedmt_flower.federation.compose import compose

    words = list(arguments.overrides)
    if not any(word.startswith("allocation=") for word in words):
        words.insert(0, "allocation=fedmt")
    settings = compose(words)
    if settings.device.backend is Backend.INLINE:
        raise ConfigError("device inline: its tasks run in turn and share nothing; take cpu or mps")
    with _progress(Console(stderr=True, highlight=False)) as tell:
        order = _order(settings)
        known = _look(settings, order, arguments.profile, tell)
        if known.unknown:
            raise ConfigError(
                *(f"task {task} cannot be planned: {why}" for task, why in known.unknown.items())
            )
        shown = _plan(settings, order, known, tell)
        tell("drawing")
        arguments.out.write_bytes(_picture(shown))
    if arguments.json:
        print(json.dumps(_as_json(shown, arguments.out)))
    else:
        _show(Console(highlight=False), shown, arguments.out)
    return 0


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str], None]]:
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        bar = progress.add_task("starting", total=None)
        yield lambda doing: progress.update(bar, description=doing)


def _order(settings: Settings) -> RoundOrder:
    """The first round of the first site, as Flower would have it trained."""
    site = {"partition-id": 0, "num-partitions": settings.federation.sites}
    return RoundOrder(
        run="plan",
        round=1,
        site="site-0",
        assignments=tuple(
            Assignment(task=replace(task, parameters={**site, **task.parameters}), mode=Mode.TRAIN)
            for task in settings.tasks
        ),
        allocation=settings.allocation,
        coordination=settings.coordination,
        seed=settings.federation.seed,
    )


def _look(settings: Settings, order: RoundOrder, profile: Path | None, tell: Callable[[str], None]) -> Known:
    from fedmt_flower.device.outlook import measured, profiled
    from fedmt_flower.federation.running import initial_models

    tell("building the models")
    weights = initial_models(settings)
    if profile is not None:
        return profiled(profile, order, weights, tell)
    return measured(settings.device, order, weights, tell)


def _plan(settings: Settings, order: RoundOrder, known: Known, tell: Callable[[str], None]) -> Shown:
    model = known.model(Models(chosen(settings.device)), order.allocation.model)

    def case_of(allocation: Allocation) -> Case:
        return Course().case(replace(order, allocation=allocation), known.device, known.tasks, model)

    tell("planning")
    case = case_of(order.allocation)
    planned = case.solve()
    baselines = []
    for policy in _BASELINES:
        if policy is not order.allocation.policy:
            tell(f"planning {policy}")
            other = case_of(Allocation(policy=policy))
            baselines.append(outcome(policy, other, other.solve()))
    free = order.allocation.policy is Policy.FEDMT
    return Shown(
        case=case,
        planned=planned,
        chosen=outcome(order.allocation.policy, case, planned),
        objective=order.allocation.objective,
        baselines=tuple(baselines),
        equal=_told(equal_budgets(case), tell) if free else (),
        swept=_told(sweep(case), tell) if free else (),
    )


def _told(outcomes: Iterator[Outcome], tell: Callable[[str], None]) -> tuple[Outcome, ...]:
    found = []
    for one in outcomes:
        tell(f"planning {one.scheme}")
        found.append(one)
    return tuple(found)


def _picture(shown: Shown) -> bytes:
    from fedmt_flower.plots.plan import plan_png

    title = f"{shown.chosen.scheme}: R_v {shown.chosen.virtual_resource:.0f} %, by the {shown.basis}"
    changes = len(list(by_remaining(shown.planned))) > 1
    return plan_png(title, shown.swept, shown.chosen, shown.planned.forecast, changes=changes)


def _as_json(shown: Shown, chart: Path) -> dict[str, object]:
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
    steps = len(problem.levels[0])
    limits.append(f"{plural(steps, 'budget')} that the device tells apart")
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


def _show(console: Console, shown: Shown, chart: Path) -> None:
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
