"""The plans of a device's rounds."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from fedmt_flower.device.backends import DeviceBackend, sound_budget
from fedmt_flower.device.planner.course import Course, unpredicted
from fedmt_flower.device.planner.models import Models
from fedmt_flower.device.planner.scout import Known, Scout, file_sizes
from fedmt_flower.device.processes.pool import Pool
from fedmt_flower.domain.allocation import Policy
from fedmt_flower.domain.plan import DevicePlan, RoundPlan, Sharing
from fedmt_flower.domain.round import RoundOrder, RoundReport
from fedmt_flower.errors import ConfigError, FedMTError
from fedmt_flower.planning.case import Case
from fedmt_flower.planning.framing import needs_prediction
from fedmt_flower.planning.planner import PlannedRound, pays

log = logging.getLogger(__name__)

_RUNS: Final = 8
"""So many runs are remembered; the longest unseen goes first."""
_SITES: Final = 256
"""So many sites of a run."""


@dataclass(frozen=True, slots=True)
class _Ahead:
    """A plan in the making, or made, for a round that has not come yet."""

    case: Case
    planned: asyncio.Future[PlannedRound]


@dataclass(slots=True)
class _Run:
    course: Course = field(default_factory=Course)
    known: dict[str, Known] = field(default_factory=dict)
    """What was known of a site's tasks when its last round began."""
    ahead: dict[str, _Ahead] = field(default_factory=dict)
    """The next plan, by site."""

    def remember(self, site: str, known: Known) -> None:
        """Keep what is known of a site's tasks, and forget the site longest unseen if those are many."""
        self.known[site] = known
        if len(self.known) > _SITES:
            oldest = next(iter(self.known))
            del self.known[oldest]
            self.ahead.pop(oldest, None)


class Planner:
    """Plans the rounds of one device, and learns from those that it has run.

    A site's next round is planned while the present one runs, as if nothing changed. If what the round then
    shows moves the predictions by more than a little, it is planned anew before its order comes.

    No round waits for workers to start, which takes seconds on a GPU, only because other budgets promise a
    little more: tasks stay at those where they are warm until the others' workers are too, and these are
    started, beside whatever runs, where they promise enough.

    Parameters
    ----------
    backend, pool
        The device and its workers.
    """

    def __init__(self, backend: DeviceBackend, pool: Pool) -> None:
        self._backend = backend
        self._scout = Scout(backend, pool)
        self._models = Models(backend.name)
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        self._preparing: asyncio.Task[None] | None = None

    async def call_off(self) -> None:
        """Call off what is being prepared for later rounds."""
        if self._preparing is not None:
            self._preparing.cancel()
            await asyncio.wait({self._preparing})

    async def plan(self, order: RoundOrder, weights: Mapping[str, int]) -> DevicePlan:
        """How the device runs `order`; `weights` are the memory files of those tasks whose weights came.

        Raises
        ------
        ConfigError
            If what is asked for cannot be planned.
        """
        planned = await self._planned(order, weights)
        return replace(planned, plan=self._sound(order, planned.plan))

    async def _planned(self, order: RoundOrder, weights: Mapping[str, int]) -> DevicePlan:
        if not needs_prediction(order.allocation, order.coordination):
            return DevicePlan(plan=unpredicted(order))
        run = self._run(order.run)
        run.known.pop(order.site, None)
        if not any(assignment.mode.trains for assignment in order.assignments):
            return DevicePlan(plan=run.course.without_training(order))
        # Sizes matter to an emulated link, which a site of several nodes has not.
        names = (assignment.task.name for assignment in order.assignments)
        sizes = dict.fromkeys(names, 0) if order.lane else file_sizes(weights)
        if not self._scout.has_met(order):
            await self.call_off()  # rates that are measured beside other work would be wrong in every round
        known = await self._scout.look(order, sizes, run.course.experience.solo)
        run.remember(order.site, known)
        if known.unknown:
            reasons = "; ".join(f"{task}: {reason}" for task, reason in known.unknown.items())
            log.warning("round %d of site %s is not predicted. %s", order.round, order.site, reasons)
            return DevicePlan(plan=unpredicted(order))
        return await self._predicted(order, run, known)

    def observe(self, order: RoundOrder, report: RoundReport) -> None:
        """Learn from how `order` went, and see to the plan of the site's next round."""
        self._scout.saw(report)
        run = self._runs.get(order.run)
        known = run.known.get(order.site) if run else None
        if run is not None and known is not None:
            run.course.learn(report, known.tasks)
            if not known.unknown:
                self._look_ahead(order, run, known)
                self._prepare(order, run)

    def _sound(self, order: RoundOrder, plan: RoundPlan) -> RoundPlan:
        """`plan`, where no task that trains has a budget in which its steps are wrong."""
        if plan.sharing is not Sharing.CAPPED:
            return plan
        places = {place.task: place for place in plan.tasks}
        for assignment in order.assignments:
            if not assignment.mode.trains:
                continue
            task = assignment.task
            place = places[task.name]
            budget = sound_budget(self._backend, task, place.budget, assignment.parameters)
            if budget < place.budget:
                places[task.name] = replace(place, budget=budget)
                log.info(
                    "task %s trains in %s: of %g %% of the device it is given %g %%",
                    task.name,
                    task.step_rules(assignment.parameters).precision,
                    place.budget,
                    budget,
                )
        return replace(plan, tasks=tuple(places.values()))

    async def _predicted(self, order: RoundOrder, run: _Run, known: Known) -> DevicePlan:
        began = time.monotonic()
        case = await self._case(order, run, known)
        ahead = run.ahead.pop(order.site, None)
        if in_time := ahead is not None and ahead.case.serves(case):
            planned = await ahead.planned
        else:
            ahead = _ahead(case)
            planned = await ahead.planned
        warm = await self._at_warm_budgets(order, run, ahead.case, planned)
        if warm is not None:
            planned = warm
        elif not self._scout.are_warm(order, _budgets(planned)):
            await self.call_off()  # the round starts what it lacks; there need not be two workers in a seat
        log.info(
            "round %d of site %s planned in %.0f ms%s%s: %s",
            order.round,
            order.site,
            1e3 * (time.monotonic() - began),
            ", ahead of it" if in_time else "",
            ", for workers that are warm" if warm is not None else "",
            _in_words(planned),
        )
        plan = run.course.with_the_others(order, ahead.case.device_plan(planned))
        run.course.begin(order, known.tasks, plan)
        run.ahead[order.site] = ahead
        self._look_ahead(order, run, known)
        return plan

    async def _case(self, order: RoundOrder, run: _Run, known: Known) -> Case:
        chosen = await asyncio.to_thread(known.model, self._models, order.allocation.model)
        return run.course.case(order, known.device, known.tasks, chosen)

    def _look_ahead(self, order: RoundOrder, run: _Run, known: Known) -> None:
        """Plan the site's next round by what is known, unless the plan that there is serves."""
        try:
            chosen = known.model(self._models, order.allocation.model)
            case = run.course.case(order, known.device, known.tasks, chosen)
        except ConfigError as error:
            log.info("the next round of site %s cannot be planned ahead: %s", order.site, error)
            return
        ahead = run.ahead.get(order.site)
        if ahead is None or not ahead.case.serves(case):
            run.ahead[order.site] = _ahead(case)

    async def _at_warm_budgets(
        self, order: RoundOrder, run: _Run, case: Case, wished: PlannedRound
    ) -> PlannedRound | None:
        """The plan at budgets where all tasks wait, if not all do at those wished; None if there is none."""
        wanted = _budgets(wished)
        if order.allocation.policy is not Policy.FEDMT or self._scout.are_warm(order, wanted):
            return None
        most = order.allocation.virtual_resource
        for budgets in (run.course.budgets(wanted), dict.fromkeys(wanted, 100.0)):
            allowed = most is None or sum(budgets.values()) <= most
            if allowed and self._scout.are_warm(order, budgets):
                return await asyncio.to_thread(case.at(budgets).solve)
        return None

    def _prepare(self, order: RoundOrder, run: _Run) -> None:
        """Have workers started that the site's next round should have, unless some are being started."""
        if self._preparing is None or self._preparing.done():
            self._preparing = asyncio.create_task(self._warm(order, run))

    async def _warm(self, order: RoundOrder, run: _Run) -> None:
        ahead = run.ahead.get(order.site)
        if ahead is None:
            return
        try:
            # The plan is the next round's too, which must not be cancelled with what is prepared for it.
            wished = await asyncio.shield(ahead.planned)
            warm = await self._at_warm_budgets(order, run, ahead.case, wished)
            if warm is not None and pays(wished, warm, ahead.case.request.problem):
                log.info("workers for later rounds of site %s: %s", order.site, _in_words(wished))
                await self._scout.warm(order, wished.plan.tasks)
        except FedMTError as error:
            log.info("nothing is prepared for site %s: %s", order.site, error)

    def _run(self, name: str) -> _Run:
        run = self._runs[name] = self._runs.pop(name, _Run())
        while len(self._runs) > _RUNS:
            self._runs.popitem(last=False)
        return run


def _ahead(case: Case) -> _Ahead:
    """Begin to plan `case` in another thread."""
    planned = asyncio.get_running_loop().run_in_executor(None, case.solve)
    # Nobody may ever ask for it.
    planned.add_done_callback(lambda done: done.cancelled() or done.exception())
    return _Ahead(case, planned)


def _budgets(planned: PlannedRound) -> dict[str, float]:
    return {place.task: place.budget for place in planned.plan.tasks}


def _in_words(planned: PlannedRound) -> str:
    forecast = planned.forecast
    places = ", ".join(f"{place.task} {place.budget:.0f} %" for place in planned.plan.tasks)
    return (
        f"{places}; {forecast.makespan_s:.3g} s by the {forecast.basis}, "
        f"{forecast.gap:.0%} above the lower bound"
    )
