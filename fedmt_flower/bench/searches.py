"""How long the planner's searches take, and how far from brute force they end: host time only."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, replace

import numpy as np

from fedmt_flower.domain.network import Overlap
from fedmt_flower.planning.budgets import BudgetProblem
from fedmt_flower.planning.overlap import plan_order
from fedmt_flower.planning.rates import Index, RateTable
from fedmt_flower.planning.reallocation import RoundSetup, reallocate
from fedmt_flower.planning.search import exhaustive, solve
from fedmt_flower.planning.simulator import Jobs, simulate
from fedmt_flower.planning.throughput import ThroughputModel


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderSearch:
    """One search of Algorithm 1, everything included (Table II).

    Parameters
    ----------
    rates_s
        Seconds to solve Rᵢ for every set of computing tasks at every choice of batch sizes.
    search_s
        Seconds to simulate the orders and to bound the makespan.
    points
        Simulated rounds.
    makespan_s, lower_bound_s
        What was found, and what no order can beat.
    """

    rates_s: float
    search_s: float
    points: int
    makespan_s: float
    lower_bound_s: float

    @property
    def seconds(self) -> float:
        """All of the search."""
        return self.rates_s + self.search_s


def search_order(setup: RoundSetup) -> OrderSearch:
    """Search order and batch sizes from each task's middle one, once."""
    start = np.full(len(setup.tasks), setup.batches.shape[1] // 2)
    begun = time.perf_counter()
    table = reallocate(setup).table
    rated = time.perf_counter()
    plan = plan_order(setup.jobs, table, start, overlap=Overlap.FLEXIBLE)
    ended = time.perf_counter()
    return OrderSearch(
        rates_s=rated - begun,
        search_s=ended - rated,
        points=plan.points,
        makespan_s=plan.makespan_s,
        lower_bound_s=plan.lower_bound_s,
    )


def best_order(jobs: Jobs, table: RateTable) -> float:
    """The shortest makespan by brute force: one round after another through the same simulator."""
    n = len(jobs.names)
    return min(
        float(simulate(jobs, table, _row(order), _row(choice)).makespan[0])
        for order in itertools.permutations(range(n))
        for choice in itertools.product(range(table.choices), repeat=n)
    )


def _row(values: tuple[int, ...]) -> Index:
    return np.array(values, dtype=np.intp)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSearch:
    """One solution of Eq. 5.

    Parameters
    ----------
    seconds
        How long it took.
    rates
        Rates predicted for it.
    score, bound
        The objective, and what no setting can pass.
    """

    seconds: float
    rates: int
    score: float
    bound: float


def search_budgets(problem: BudgetProblem, model: ThroughputModel) -> BudgetSearch:
    """Solve Eq. 5 once."""
    begun = time.perf_counter()
    plan = solve(problem, model)
    seconds = time.perf_counter() - begun
    return BudgetSearch(seconds=seconds, rates=plan.predicted, score=plan.score, bound=plan.bound)


def budget_regret(problem: BudgetProblem, model: ThroughputModel) -> float:
    """What the search misses of the best score by brute force, as a fraction of it, 0 or more."""
    best = exhaustive(problem, model).score
    return max(0.0, 1.0 - solve(problem, model).score / best)


def thinned(problem: BudgetProblem, settings: int, seed: int) -> BudgetProblem:
    """An instance drawn from `problem` that has at most `settings` settings, for brute force.

    Batch sizes and levels are struck out at random, from the longest lists first, until few enough are
    left.
    """
    generator = np.random.default_rng(seed)
    lists = [list(row) for row in (*problem.batches, *problem.levels)]
    while np.prod([len(row) for row in lists], dtype=float) > settings:
        longest = max(map(len, lists))
        row = lists[generator.choice([i for i, row in enumerate(lists) if len(row) == longest])]
        row.pop(int(generator.integers(len(row))))
    n = len(problem.tasks)
    return replace(
        problem,
        batches=tuple(tuple(int(size) for size in row) for row in lists[:n]),
        levels=tuple(tuple(float(level) for level in row) for row in lists[n:]),
        memory=(),
        memory_limit=0,
    )
