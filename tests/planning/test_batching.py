import itertools
from dataclasses import replace

import numpy as np
import pytest

from fedmt_flower.domain.allocation import Objective
from fedmt_flower.domain.profile import DeviceFeatures, TaskFeatures
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.batching import (
    choose_batches,
    mismatch,
    valid_batches,
)
from fedmt_flower.planning.budgets import BudgetProblem
from fedmt_flower.planning.xgboost_model import XGBoostModel


@pytest.fixture
def problem(device: DeviceFeatures, zoo: dict[str, TaskFeatures]) -> BudgetProblem:
    return BudgetProblem(
        device=device,
        tasks=tuple(zoo[name] for name in ("v16", "r18", "m3")),
        batches=((32, 64, 96, 128, 192, 256),) * 3,
        levels=((20.0, 60.0, 100.0),) * 3,
        objective=Objective.RAW,
    )


def test_the_mismatch_is_the_papers_with_the_absolute_value_around_the_difference() -> None:
    loads = np.array([100.0, 200.0])
    assert mismatch(loads, np.array([[64, 128], [128, 128], [128, 64]])).tolist() == [0.0, 1.5, 3.0]
    assert mismatch(np.array([5.0]), np.array([[7.0]])).tolist() == [0.0]


def test_batches_follow_the_volumes(problem: BudgetProblem, fitted: XGBoostModel) -> None:
    plan = choose_batches(problem, fitted, (1000, 2000, 3000), epsilon=0.0)
    small, middle, large = plan.chosen.plan.batches
    assert (middle, large) == (2 * small, 3 * small)
    assert plan.chosen.mismatch == 0.0


def test_the_chosen_combination_is_the_best_within_epsilon(
    problem: BudgetProblem, fitted: XGBoostModel
) -> None:
    strict = choose_batches(problem, fitted, (1000, 2000, 3000), epsilon=0.0)
    loose = choose_batches(problem, fitted, (1000, 2000, 3000), epsilon=3.0)
    assert loose.chosen.mismatch <= 3.0
    assert loose.chosen.plan.score >= strict.chosen.plan.score


def test_nothing_on_the_front_is_beaten_in_both_objectives(
    problem: BudgetProblem, fitted: XGBoostModel
) -> None:
    front = choose_batches(problem, fitted, (1000, 2000, 3000), epsilon=1.0).front
    assert len(front) > 1
    for before, after in itertools.pairwise(front):
        assert before.mismatch < after.mismatch
        assert before.plan.score < after.plan.score


def test_memory_decides_which_combinations_there_are(problem: BudgetProblem, fitted: XGBoostModel) -> None:
    memory = ((32, 64, 96, 128, 192, 256),) * 3
    plan = choose_batches(replace(problem, memory=memory, memory_limit=200), fitted, (1000, 2000, 3000))
    assert sum(plan.chosen.plan.batches) <= 200
    with pytest.raises(ConfigError, match="none of 216 combinations fits into 90 bytes"):
        choose_batches(replace(problem, memory=memory, memory_limit=90), fitted, (1, 2, 3))


def test_very_many_combinations_are_narrowed_to_those_near_the_ratios(
    device: DeviceFeatures, zoo: dict[str, TaskFeatures], fitted: XGBoostModel
) -> None:
    many = BudgetProblem(
        device=device,
        tasks=tuple(zoo.values()),
        batches=(tuple(range(16, 257, 16)),) * 8,
        levels=((50.0, 100.0),) * 8,
        objective=Objective.FAIRNESS,
    )
    loads = (1000, 2000, 3000, 1000, 2000, 3000, 4000, 500)
    plan = choose_batches(many, fitted, loads)
    assert plan.chosen.mismatch < 2.0


@pytest.mark.parametrize("loads", [(0, 1, 1), (-1, 1, 1), (float("nan"), 1, 1)])
def test_loads_that_cannot_be_are_refused(
    problem: BudgetProblem, fitted: XGBoostModel, loads: tuple[float, ...]
) -> None:
    with pytest.raises(ConfigError, match="expected numbers above 0"):
        choose_batches(problem, fitted, loads)


def test_a_negative_epsilon_is_refused(problem: BudgetProblem, fitted: XGBoostModel) -> None:
    with pytest.raises(ConfigError, match="batching epsilon: got -1"):
        choose_batches(problem, fitted, (1, 1, 1), epsilon=-1)


def test_batches_larger_than_the_data_or_the_limit_are_not_valid() -> None:
    assert valid_batches("a", (32, 64, 128, 256), 200) == (32, 64, 128)
    assert valid_batches("a", (32, 64, 128, 256), 1000, least=64, most=128) == (64, 128)
    with pytest.raises(ConfigError, match=r"none of \[64, 128\] lies from 1 to 50"):
        valid_batches("a", (64, 128), 50)


def test_a_last_batch_of_one_example_is_avoided_where_it_can_be() -> None:
    assert valid_batches("a", (32, 48, 64), 129) == (48,)
    assert valid_batches("a", (32, 64), 129) == (32, 64)
    assert valid_batches("a", (1,), 129) == (1,)
