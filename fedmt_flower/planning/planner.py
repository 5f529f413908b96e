"""The plan of a round: batch sizes, budgets and start order, with what they promise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from fedmt_flower.domain.allocation import Objective
from fedmt_flower.domain.coordination import Batching
from fedmt_flower.domain.forecast import Forecast
from fedmt_flower.domain.network import Link, Overlap, Volume
from fedmt_flower.domain.plan import RoundPlan, Sharing, TaskPlan
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.batching import BatchPlan, choose_batches
from fedmt_flower.planning.bounds import lower_bound
from fedmt_flower.planning.budgets import BudgetPlan, BudgetProblem, common_levels
from fedmt_flower.planning.overlap import EXACT, OrderPlan, nearby_batches, plan_order
from fedmt_flower.planning.rates import Index, RateTable, states
from fedmt_flower.planning.reallocation import Reallocation, RoundSetup, hold, reallocate
from fedmt_flower.planning.refinement import refine, settle
from fedmt_flower.planning.search import solve
from fedmt_flower.planning.simulator import Jobs, alone, simulate, timeline
from fedmt_flower.planning.throughput import Array, Mask, ThroughputModel
from fedmt_flower.planning.workload import Workload

_TURNS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What a plan starts from.

    Parameters
    ----------
    problem
        Device, tasks, valid batch sizes, levels, objective and limits (Eq. 5); its tasks in the order in
        which the server named them.
    volumes
        What each task of `problem` has to do, in the same order.
    link
        The device's link; None: transfers take no time worth planning for.
    batching, overlap
        The policies.
    loads
        Loads for Eq. 6 by task; empty takes the volumes.
    epsilon
        ε of § V-A.
    delta
        δ of Algorithm 1, in [0, 1).
    workload
        Eq. 3 fitted on this device, for `Overlap.WORKLOAD`; None ranks by solo time.
    sharing
        How the tasks share the device; with `IN_TURN` the model's rates count where one computes alone.
    reallocates
        Whether budgets may change when a task starts or ends: only if all tasks are stepped.
    handover_s
        Seconds of training that a task loses when its budget changes.
    """

    problem: BudgetProblem
    volumes: tuple[Volume, ...]
    link: Link | None = None
    batching: Batching = Batching.FIXED
    overlap: Overlap = Overlap.OFF
    loads: Mapping[str, float] = field(default_factory=dict)
    epsilon: float = 0.5
    delta: float = 0.2
    workload: Workload | None = None
    sharing: Sharing = Sharing.CAPPED
    reallocates: bool = False
    handover_s: float = 0.01

    def __post_init__(self) -> None:
        planned = [task.task for task in self.problem.tasks]
        if planned != [volume.task for volume in self.volumes]:
            raise ConfigError(
                f"plan: got volumes of {[volume.task for volume in self.volumes]}, expected those of "
                f"{planned}, in that order"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRound:
    """A round's plan.

    Parameters
    ----------
    plan
        The tasks in start order, each with its batch size and its budget while all run.
    forecast
        The predicted timeline, its makespan and a lower bound of it.
    budgets
        Rᵢ in per cent by set of computing tasks, where budgets change when the set does; else empty.
    chosen
        The solution of Eq. 5 from which budgets and order were settled.
    balance
        The solution of Eq. 6 with its front; None for `Batching.FIXED`.
    """

    plan: RoundPlan
    forecast: Forecast
    budgets: Mapping[frozenset[str], Mapping[str, float]]
    chosen: BudgetPlan
    balance: BatchPlan | None = None


def pays(wished: PlannedRound, present: PlannedRound, problem: BudgetProblem) -> bool:
    """Whether `wished`, which solves `problem`, is worth leaving the budgets of `present` for it.

    It is if it promises more by more than the problem's caution, or if `present` is beyond its limit on R_v.
    """
    if sum(place.budget for place in present.plan.tasks) > problem.virtual_resource[1] + 1e-9:
        return True
    if problem.objective is Objective.MAKESPAN:
        gain = present.forecast.makespan_s / wished.forecast.makespan_s
    else:
        gain = wished.chosen.score / present.chosen.score
    return gain > 1.0 + problem.caution


def plan_device_round(request: PlanRequest, model: ThroughputModel) -> PlannedRound:
    """Plan a round of one device: Eq. 6 and Eq. 5, then Algorithm 1.

    Raises
    ------
    ConfigError
        If nothing that the request allows keeps its limits.
    """
    problem, balance = request.problem, None
    if request.batching is Batching.PROPORTIONAL:
        loads = [request.loads.get(volume.task, float(volume.samples)) for volume in request.volumes]
        balance = choose_batches(problem, model, loads, epsilon=request.epsilon)
        chosen = balance.chosen.plan
    else:
        chosen = solve(problem, model)
    batches, start = _batch_settings(request, chosen)
    setup = RoundSetup(
        model=model,
        device=problem.device,
        tasks=problem.tasks,
        jobs=Jobs.over(request.volumes, request.link, in_turn=request.sharing is Sharing.IN_TURN),
        batches=batches,
        levels=problem.levels,
        most=problem.virtual_resource[1],
    )
    found, order = _constant(request, setup, start, np.array(chosen.budgets))
    if request.reallocates and problem.objective is Objective.MAKESPAN:
        found, order = _changing(request, setup, start, (found, order))
    return _planned(request, setup, found, order, chosen, balance)


def _batch_settings(request: PlanRequest, chosen: BudgetPlan) -> tuple[Array, Index]:
    """The batch sizes that Algorithm 1 may choose from, shape (n, choices), and those chosen so far."""
    delta = request.delta if request.overlap is Overlap.FLEXIBLE else 0.0
    rows = [
        nearby_batches(batch, delta, min(valid), max(valid))
        for batch, valid in zip(chosen.batches, request.problem.batches, strict=True)
    ]
    width = max(map(len, rows))
    batches = np.array([[*row, *[row[-1]] * (width - len(row))] for row in rows], dtype=float)
    start = [row.index(batch) for row, batch in zip(rows, chosen.batches, strict=True)]
    return batches, np.array(start, dtype=np.intp)


def _allowed(problem: BudgetProblem, table: RateTable, batches: Array) -> Mask | None:
    """The states whose batch sizes fit into memory; between sizes that were measured it is interpolated."""
    if not problem.memory:
        return None
    needs = np.array(
        [
            np.interp(row, *np.array(sorted(zip(sizes, bytes_, strict=True)), dtype=float).T)
            for row, sizes, bytes_ in zip(batches, problem.batches, problem.memory, strict=True)
        ]
    )
    digits = states(len(batches), table.choices)
    used = np.where(digits > 0, needs[np.arange(len(batches)), np.maximum(digits, 1) - 1], 0.0)
    allowed: Mask = used.sum(axis=1) <= problem.memory_limit
    return allowed


def _ordered(request: PlanRequest, setup: RoundSetup, found: Reallocation, start: Index) -> OrderPlan:
    workloads = None
    if request.workload is not None:
        workloads = np.array(
            [
                request.workload.of_round(task, volume.samples)
                for task, volume in zip(setup.tasks, request.volumes, strict=True)
            ]
        )
    return plan_order(
        setup.jobs,
        found.table,
        start,
        overlap=request.overlap,
        workloads=workloads,
        allowed=_allowed(request.problem, found.table, setup.batches),
    )


def _constant(
    request: PlanRequest, setup: RoundSetup, start: Index, budgets: Array
) -> tuple[Reallocation, OrderPlan]:
    """Budgets for the whole round: those of Eq. 5, or equal ones, moved by a level while that gains."""
    choosing = request.problem.objective is Objective.MAKESPAN and setup.grid.shape[1] > 1
    if choosing and request.link is not None:
        budgets = _best_start(request, setup, start, budgets)
    if choosing and request.overlap is Overlap.FLEXIBLE:
        grid, tasks = setup.grid, np.arange(len(budgets))
        fixed = replace(setup, batches=np.repeat(setup.batches[tasks, start][:, None], 3, axis=1))
        for _ in range(_TURNS if len(tasks) <= EXACT else 1):
            place = np.array([np.searchsorted(row, r) for row, r in zip(grid, budgets, strict=True)])
            near = np.clip(place[:, None] + [-1, 0, 1], 0, grid.shape[1] - 1)
            found = hold(fixed, grid[tasks[:, None], near])
            least, total = request.problem.virtual_resource[0], found.budgets.sum(axis=1)
            fits = (total >= least - 1e-9) & (total <= setup.most + 1e-9)
            order = plan_order(
                setup.jobs, found.table, np.ones_like(start), overlap=Overlap.FLEXIBLE, allowed=fits
            )
            moved = grid[tasks, near[tasks, order.choice]]
            if (moved == budgets).all():
                break
            budgets = moved
    found = hold(setup, budgets[:, None])
    return found, _ordered(request, setup, found, start)


def _best_start(request: PlanRequest, setup: RoundSetup, start: Index, budgets: Array) -> Array:
    """Of `budgets`, found as if all tasks began at once, and of equal ones, those of the shortest round."""
    tasks = np.arange(len(budgets))
    fixed = replace(setup, batches=setup.batches[tasks, start][:, None])
    even = [np.full_like(budgets, level) for level in common_levels(setup.levels)]
    least = request.problem.virtual_resource[0]
    tried = [budgets, *(row for row in even if least - 1e-9 <= row.sum() <= setup.most + 1e-9)]
    overlap = request.overlap
    if overlap is Overlap.FLEXIBLE and len(tasks) > EXACT:
        overlap = Overlap.WORKLOAD
    spans = [
        plan_order(
            setup.jobs, hold(fixed, row[:, None]).table, np.zeros_like(start), overlap=overlap
        ).makespan_s
        for row in tried
    ]
    return np.asarray(tried[int(np.argmin(spans))])


def _changing(
    request: PlanRequest, setup: RoundSetup, start: Index, constant: tuple[Reallocation, OrderPlan]
) -> tuple[Reallocation, OrderPlan]:
    """Budgets that change with the set of computing tasks: the better of two ways to them.

    One begins with the constant budgets, the other with those that are best for each set by itself; both are
    then fitted to the round in which they are used. Neither is taken if it promises no more than the
    problem's caution.
    """
    anew = reallocate(setup)
    ways = []
    for found, order in (constant, (anew, _ordered(request, setup, anew, start))):
        fitted = refine(setup, found, order, overlap=request.overlap)
        order = _ordered(request, setup, fitted, order.choice)
        ways.append((refine(setup, fitted, order, overlap=request.overlap), order))
    *spans, kept = (
        simulate(setup.jobs, found.table, order.order, order.choice, overlap=request.overlap).makespan[0]
        for found, order in (*ways, constant)
    )
    if min(spans) * (1.0 + request.problem.caution) > kept:
        return constant
    found, order = ways[int(np.argmin(spans))]
    return settle(setup, found, order, request.handover_s, overlap=request.overlap), order


def _planned(
    request: PlanRequest,
    setup: RoundSetup,
    found: Reallocation,
    order: OrderPlan,
    chosen: BudgetPlan,
    balance: BatchPlan | None,
) -> PlannedRound:
    names, table = setup.jobs.names, found.table
    settings = table.steps(order.choice)
    full = settings.sum()
    rates = alone(table, order.choice) if setup.jobs.in_turn else table.rates[full]
    times, constant = (
        simulate(setup.jobs, table, order.order, order.choice, overlap=request.overlap, constant_rates=kept)
        for kept in (False, True)
    )
    bound = lower_bound(setup.jobs, table.fastest(), request.overlap)
    plans = tuple(
        TaskPlan(
            task=names[i],
            budget=float(found.budgets[full, i]),
            batch_size=int(setup.batches[i, order.choice[i]]),
        )
        for i in order.order
    )
    return PlannedRound(
        plan=RoundPlan(tasks=plans, sharing=request.sharing),
        forecast=Forecast(
            makespan_s=float(times.makespan[0]),
            lower_bound_s=min(bound, float(times.makespan[0])),
            timeline=timeline(setup.jobs, times),
            rates={name: float(rate) for name, rate in zip(names, rates, strict=True)},
            constant_s=float(constant.makespan[0]),
        ),
        budgets=_by_set(names, settings, found.budgets) if request.reallocates else {},
        chosen=chosen,
        balance=balance,
    )


def _by_set(
    names: tuple[str, ...], settings: Index, budgets: Array
) -> dict[frozenset[str], dict[str, float]]:
    """Budgets of the chosen batch sizes by the names of the tasks that compute."""
    sets = states(len(names), 1)[1:]
    return {
        frozenset(name for name, runs in zip(names, row, strict=True) if runs): {
            name: float(budgets[row @ settings, i]) for i, name in enumerate(names) if row[i]
        }
        for row in sets
    }
