"""Budgets of the sets of tasks that a planned round meets, fitted to what is left when it meets them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Final

import numpy as np

from fedmt_flower.domain.network import Overlap
from fedmt_flower.planning.budgets import THRIFT
from fedmt_flower.planning.overlap import OrderPlan
from fedmt_flower.planning.rates import Index, RateTable
from fedmt_flower.planning.reallocation import Reallocation, RoundSetup
from fedmt_flower.planning.simulator import Jobs, simulate
from fedmt_flower.planning.throughput import Array

_TURNS: Final = 40


def refine(
    setup: RoundSetup, found: Reallocation, plan: OrderPlan, *, overlap: Overlap = Overlap.FLEXIBLE
) -> Reallocation:
    """Change one budget of one set at a time, the best change first, while the round gets shorter.

    Only the sets that compute together in `plan` are looked at: at most two for each task.
    """
    grid = setup.grid
    best = plan.makespan_s
    for _ in range(_TURNS):
        sets = _met(setup.jobs, found.table, plan, overlap)
        state, tried = _variants(
            (sets * found.table.steps(plan.choice)).sum(axis=1), found.budgets, sets, grid
        )
        fits = tried.sum(axis=1) <= setup.most + 1e-9
        state, tried = state[fits], tried[fits]
        rates, spans = _tried(setup, found, plan, overlap, state, tried)
        spent = tried.sum(axis=1) - found.budgets[state].sum(axis=1)
        place = int((spans * (1.0 + THRIFT * spent)).argmin())
        if not spans[place] * (1.0 + THRIFT * spent[place]) < best * (1.0 - 1e-9):
            break
        best = float(spans[place])
        found = _changed(found, int(state[place]), tried[place], rates[place])
    return found


def settle(
    setup: RoundSetup,
    found: Reallocation,
    plan: OrderPlan,
    handover_s: float,
    *,
    overlap: Overlap = Overlap.FLEXIBLE,
) -> Reallocation:
    """Leave a task its budget when the set changes, unless the change is worth `handover_s` seconds."""
    span = float(simulate(setup.jobs, found.table, plan.order, plan.choice, overlap=overlap).makespan[0])
    steps = found.table.steps(plan.choice)
    sets = _met(setup.jobs, found.table, plan, overlap)
    for before, after in itertools.pairwise(sets):
        for task in np.flatnonzero(before & after):
            state = np.array([after @ steps])
            tried = found.budgets[state].copy()
            tried[0, task] = found.budgets[before @ steps, task]
            rates, spans = _tried(setup, found, plan, overlap, state, tried)
            if tried.sum() <= setup.most + 1e-9 and spans[0] <= span + handover_s:
                span = float(spans[0])
                found = _changed(found, int(state[0]), tried[0], rates[0])
    return found


def _tried(
    setup: RoundSetup, found: Reallocation, plan: OrderPlan, overlap: Overlap, state: Index, budgets: Array
) -> tuple[Array, Array]:
    """Rates, and the round's makespan, with the budgets of one state changed: one row for each change."""
    rates = setup.rates(setup.batches[np.arange(len(plan.choice)), plan.choice], budgets)
    wider = replace(found.table, rates=np.concatenate([found.table.rates, rates]))
    swap = (state, len(found.table.rates) + np.arange(len(state)))
    choice = np.tile(plan.choice, (len(state), 1))
    return rates, simulate(setup.jobs, wider, plan.order, choice, overlap=overlap, swap=swap).makespan


def _changed(found: Reallocation, state: int, budgets: Array, rates: Array) -> Reallocation:
    """The same with other budgets, and so other rates, in one state."""
    all_budgets, all_rates = found.budgets.copy(), found.table.rates.copy()
    all_budgets[state], all_rates[state] = budgets, rates
    return Reallocation(table=replace(found.table, rates=all_rates), budgets=all_budgets)


def _met(jobs: Jobs, table: RateTable, plan: OrderPlan, overlap: Overlap) -> Index:
    """The sets of tasks that compute together, in the order of time, as rows of 0 and 1."""
    times = simulate(jobs, table, plan.order, plan.choice, overlap=overlap)
    moments = np.unique(np.concatenate([times.started[0], times.computed[0]]))[:, None]
    running = (times.started[0] <= moments) & (moments < times.computed[0])
    return np.asarray(running[running.any(axis=1)], dtype=np.intp)


def _variants(states: Index, budgets: Array, sets: Index, grid: Array) -> tuple[Index, Array]:
    """Every budget of every set with one task's level changed: the states, and the budgets."""
    place, task = np.nonzero(sets)
    width = grid.shape[1]
    tried = np.repeat(budgets[states[place]], width, axis=0)
    tried[np.arange(len(tried)), np.repeat(task, width)] = grid[task].ravel()
    return np.repeat(states[place], width), tried
