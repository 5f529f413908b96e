"""`fedmt plan`: what a device would do in a round, what that promises, and why."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

from fedmt_flower.cli.plan_tables import Shown, as_json, show
from fedmt_flower.device.planner.course import Course
from fedmt_flower.device.planner.models import Models
from fedmt_flower.device.planner.scout import Known
from fedmt_flower.domain.allocation import Allocation, Policy
from fedmt_flower.domain.device import Backend
from fedmt_flower.domain.round import Assignment, Mode, RoundOrder
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.case import Case
from fedmt_flower.planning.outcomes import Outcome, by_remaining, equal_budgets, outcome, sweep

if TYPE_CHECKING:
    from fedmt_flower.federation.settings import Settings

_BASELINES: Final = (Policy.TEMPORAL, Policy.TIMESLICE, Policy.ISOLATED, Policy.SHARING, Policy.STATIC)


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
        shown = _plan(order, known, tell)
        tell("drawing")
        arguments.out.write_bytes(_picture(shown))
    if arguments.json:
        print(json.dumps(as_json(shown, arguments.out)))
    else:
        show(Console(highlight=False), shown, arguments.out)
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
    from fedmt_flower.device.planner.outlook import measured, profiled
    from fedmt_flower.federation.running import initial_models

    tell("building the models")
    weights = initial_models(settings)
    if profile is not None:
        return profiled(profile, order, weights, tell)
    return measured(settings.device, order, weights, tell)


def _plan(order: RoundOrder, known: Known, tell: Callable[[str], None]) -> Shown:
    model = known.model(Models(known.backend), order.allocation.model)

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
