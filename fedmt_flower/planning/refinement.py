"""Budgets of the sets of tasks that a planned round meets, fitted to what is left when it meets them."""

from __future__ import annotations

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
) -> tuple[Reallocation, float]:
    """Change one budget of one set at a time, the best change first, while the round gets shorter.

    Only the sets that compute together in `plan` are looked at: at most two for each task. Returned are
    the new budgets and the round's makespan in seconds.
    """
    jobs, table, budgets, grid = setup.jobs, found.table, found.budgets, setup.grid
    settings = table.steps(plan.choice)
    sizes = setup.batches[np.arange(len(plan.choice)), plan.choice]
    best = plan.makespan_s
    for _ in range(_TURNS):
        sets = _met(jobs, table, plan, overlap)
        state, tried = _variants((sets * settings).sum(axis=1), budgets, sets, grid)
        fits = tried.sum(axis=1) <= setup.most + 1e-9
        state, tried = state[fits], tried[fits]
        rates = setup.rates(sizes, tried)
        wider = replace(table, rates=np.concatenate([table.rates, rates]))
        swap = (state, len(table.rates) + np.arange(len(state)))
        choice = np.tile(plan.choice, (len(state), 1))
        spans = simulate(jobs, wider, plan.order, choice, overlap=overlap, swap=swap).makespan
        spent = tried.sum(axis=1) - budgets[state].sum(axis=1)
        place = int((spans * (1.0 + THRIFT * spent)).argmin())
        if not spans[place] * (1.0 + THRIFT * spent[place]) < best * (1.0 - 1e-9):
            break
        best = float(spans[place])
        new_rates, budgets = table.rates.copy(), budgets.copy()
        new_rates[state[place]], budgets[state[place]] = rates[place], tried[place]
        table = replace(table, rates=new_rates)
    return Reallocation(table=table, budgets=budgets), best


def _met(jobs: Jobs, table: RateTable, plan: OrderPlan, overlap: Overlap) -> Index:
    """The distinct sets of tasks that compute together, as rows of 0 and 1."""
    times = simulate(jobs, table, plan.order, plan.choice, overlap=overlap)
    moments = np.unique(np.concatenate([times.started[0], times.computed[0]]))[:, None]
    running = (times.started[0] <= moments) & (moments < times.computed[0])
    return np.unique(running[running.any(axis=1)], axis=0).astype(np.intp)


def _variants(states: Index, budgets: Array, sets: Index, grid: Array) -> tuple[Index, Array]:
    """Every budget of every set with one task's level changed: the states, and the budgets."""
    place, task = np.nonzero(sets)
    width = grid.shape[1]
    tried = np.repeat(budgets[states[place]], width, axis=0)
    tried[np.arange(len(tried)), np.repeat(task, width)] = grid[task].ravel()
    return np.repeat(states[place], width), tried
