"""The planner's searches as a benchmark sees them, with a model that needs no fit."""

from __future__ import annotations

import numpy as np
import pytest

from fedmt_flower.bench.searches import best_order, budget_regret, search_budgets, search_order, thinned
from fedmt_flower.domain.allocation import Objective
from fedmt_flower.domain.network import Link, Volume
from fedmt_flower.domain.profile import DeviceFeatures, TaskFeatures
from fedmt_flower.planning.budgets import BudgetProblem
from fedmt_flower.planning.reallocation import RoundSetup, reallocate
from fedmt_flower.planning.simulator import Jobs
from fedmt_flower.planning.throughput import Array, CoRuns

DEVICE = DeviceFeatures(name="gpu", units=132, peak=6e13, bandwidth=2.4e12)
TASKS = tuple(
    TaskFeatures(task=f"t{i}", model=f"t{i}", flops=1e9, traffic=1e7, solo_rate=2000.0 * (i + 1))
    for i in range(3)
)


class Shared:
    """Tasks share one device in proportion to their budgets once they ask for more than all of it."""

    monotone = True

    def rates(self, runs: CoRuns) -> Array:
        others = runs.budgets.sum(axis=1, keepdims=True) - runs.budgets
        parts = runs.own_budgets / np.maximum(100.0, runs.own_budgets + others)
        return np.where(runs.running, runs.solo_rates * parts**0.7, 0.0)


@pytest.fixture
def problem() -> BudgetProblem:
    return BudgetProblem(
        device=DEVICE,
        tasks=TASKS,
        batches=((64, 128),) * 3,
        levels=((20.0, 40.0, 60.0, 80.0, 100.0),) * 3,
        objective=Objective.MAKESPAN,
        samples=(4000, 9000, 20000),
    )


def test_an_order_search_says_what_it_took_and_finds_what_brute_force_finds() -> None:
    volumes = tuple(
        Volume(task=task.task, samples=5000, download_bytes=10**7 * (i + 1), upload_bytes=10**7)
        for i, task in enumerate(TASKS)
    )
    setup = RoundSetup(
        model=Shared(),
        device=DEVICE,
        tasks=TASKS,
        jobs=Jobs.over(volumes, Link(up_mbps=400, down_mbps=400)),
        batches=np.tile([100.0, 128.0, 156.0], (3, 1)),
        levels=((20.0, 60.0, 100.0),) * 3,
    )
    taken = search_order(setup)
    assert taken.points == 162
    assert taken.seconds == taken.rates_s + taken.search_s > 0
    assert taken.makespan_s == best_order(setup.jobs, reallocate(setup).table)
    assert taken.lower_bound_s <= taken.makespan_s


def test_a_budget_search_counts_its_predictions_and_bounds_its_score(problem: BudgetProblem) -> None:
    taken = search_budgets(problem, Shared())
    assert taken.rates > 0
    assert taken.seconds > 0
    assert taken.bound >= taken.score
    assert budget_regret(problem, Shared()) < 0.01


def test_an_instance_for_brute_force_is_small_and_a_part_of_the_problem(problem: BudgetProblem) -> None:
    first, second = (thinned(problem, 200, seed) for seed in (1, 2))
    for small in (first, second):
        assert np.prod([len(row) for row in (*small.batches, *small.levels)]) <= 200
        for kept, given in zip(
            (*small.batches, *small.levels), (*problem.batches, *problem.levels), strict=True
        ):
            assert set(kept) <= set(given)
    assert first != second
    assert first == thinned(problem, 200, 1)
