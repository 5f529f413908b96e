from dataclasses import replace

import numpy as np
import pytest

from fedmt_flower.domain.allocation import Objective
from fedmt_flower.domain.profile import DeviceFeatures, TaskFeatures
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.budgets import THRIFT, BudgetProblem, distinct_levels
from fedmt_flower.planning.search import exhaustive, solve
from fedmt_flower.planning.throughput import ThroughputModel
from fedmt_flower.planning.xgboost_model import XGBoostModel

TWENTY = tuple(float(level) for level in range(5, 101, 5))
FIVE = (20.0, 40.0, 60.0, 80.0, 100.0)


@pytest.fixture
def problem(device: DeviceFeatures, zoo: dict[str, TaskFeatures]) -> BudgetProblem:
    return BudgetProblem(
        device=device,
        tasks=tuple(zoo[name] for name in ("r50", "v16", "m3")),
        batches=((64, 128, 256),) * 3,
        levels=(FIVE,) * 3,
        samples=(6000, 12000, 18000),
    )


def wider(problem: BudgetProblem, zoo: dict[str, TaskFeatures], names: tuple[str, ...]) -> BudgetProblem:
    return replace(
        problem,
        tasks=tuple(zoo[name] for name in names),
        batches=((128,),) * len(names),
        levels=(FIVE,) * len(names),
        samples=tuple(6000 * (1 + i % 3) for i in range(len(names))),
    )


@pytest.mark.parametrize("objective", list(Objective))
@pytest.mark.parametrize("names", [("r50", "v16", "m3"), ("d121", "v16", "r101"), ("r18", "m3", "s2")])
def test_three_tasks_with_free_batches_are_solved_exactly(
    problem: BudgetProblem,
    zoo: dict[str, TaskFeatures],
    fitted: XGBoostModel,
    objective: Objective,
    names: tuple[str, ...],
) -> None:
    asked = replace(problem, tasks=tuple(zoo[name] for name in names), objective=objective)
    plan, best = solve(asked, fitted), exhaustive(asked, fitted)
    assert plan.exact
    assert plan.score >= best.score * (1 - 300 * THRIFT)
    assert plan.predicted < 0.6 * best.predicted


def test_twenty_levels_need_a_fraction_of_the_predictions(
    problem: BudgetProblem, fitted: XGBoostModel
) -> None:
    asked = replace(problem, batches=((128,),) * 3, levels=(TWENTY,) * 3)
    plan, best = solve(asked, fitted), exhaustive(asked, fitted)
    assert plan.exact
    assert plan.score == pytest.approx(best.score, rel=300 * THRIFT)
    assert best.predicted > 24_000
    assert plan.predicted < 6_000


@pytest.mark.parametrize("objective", list(Objective))
def test_five_tasks_are_within_one_per_cent_of_brute_force(
    problem: BudgetProblem, zoo: dict[str, TaskFeatures], fitted: XGBoostModel, objective: Objective
) -> None:
    asked = replace(wider(problem, zoo, ("r50", "v16", "m3", "d121", "r18")), objective=objective)
    plan, best = solve(asked, fitted, effort=20_000), exhaustive(asked, fitted)
    assert plan.score >= 0.99 * best.score
    assert plan.bound >= best.score * (1 - 500 * THRIFT)
    assert plan.predicted < 40_000


def test_eight_tasks_are_within_one_per_cent_of_brute_force(
    problem: BudgetProblem, zoo: dict[str, TaskFeatures], fitted: XGBoostModel
) -> None:
    asked = replace(wider(problem, zoo, tuple(zoo)), levels=((20.0, 60.0, 100.0),) * 8)
    for objective in (Objective.RAW, Objective.FAIRNESS):
        instance = replace(asked, objective=objective)
        assert solve(instance, fitted).score >= 0.99 * exhaustive(instance, fitted).score


def test_a_model_without_bounds_is_searched_too(
    problem: BudgetProblem, zoo: dict[str, TaskFeatures], truth: ThroughputModel
) -> None:
    few = replace(problem, batches=((128,),) * 3)
    assert solve(few, truth).exact
    many = wider(problem, zoo, ("r50", "v16", "m3", "d121", "r18", "s2", "alex"))
    asked = replace(many, objective=Objective.FAIRNESS)
    plan = solve(asked, truth)
    assert not plan.exact
    assert plan.score >= 0.99 * exhaustive(asked, truth).score


def test_a_plan_never_breaks_the_limit_on_memory(problem: BudgetProblem, fitted: XGBoostModel) -> None:
    memory = tuple((size * 1, size * 2, size * 4) for size in (3, 2, 1))
    for limit in (6, 9, 15, 24):
        asked = replace(problem, objective=Objective.RAW, memory=memory, memory_limit=limit)
        plan = solve(asked, fitted)
        need = sum(
            row[sizes.index(batch)]
            for row, sizes, batch in zip(memory, asked.batches, plan.batches, strict=True)
        )
        assert need <= limit
        assert plan.score == pytest.approx(exhaustive(asked, fitted).score, rel=300 * THRIFT)


@pytest.mark.parametrize("limits", [(0.0, 100.0), (100.0, 140.0), (240.0, 300.0)])
def test_the_virtual_resource_stays_within_its_limits(
    problem: BudgetProblem, fitted: XGBoostModel, limits: tuple[float, float]
) -> None:
    asked = replace(problem, virtual_resource=limits)
    plan = solve(asked, fitted)
    assert limits[0] - 1e-9 <= plan.virtual_resource <= limits[1] + 1e-9
    assert plan.score == pytest.approx(exhaustive(asked, fitted).score, rel=300 * THRIFT)


def test_limits_that_nothing_keeps_are_one_clear_line(problem: BudgetProblem, fitted: XGBoostModel) -> None:
    with pytest.raises(ConfigError, match="found no setting with R_v from 0 to 50 %"):
        solve(replace(problem, virtual_resource=(0.0, 50.0)), fitted)
    crowded = replace(problem, memory=((2, 3, 4),) * 3, memory_limit=5)
    with pytest.raises(ConfigError, match="that fits into 5 bytes"):
        solve(crowded, fitted)


@pytest.mark.parametrize("objective", list(Objective))
def test_equal_budgets_are_left_only_for_a_gain_that_passes_the_caution(
    problem: BudgetProblem, fitted: XGBoostModel, objective: Objective
) -> None:
    asked = replace(problem, objective=objective)
    best = solve(asked, fitted)
    fixed = tuple((batch,) for batch in best.batches)
    even = [
        exhaustive(replace(asked, batches=fixed, levels=((level,),) * 3), fitted)
        for level in problem.levels[0]
    ]
    equal = max(even, key=lambda plan: plan.score)
    gain = best.score / equal.score - 1.0
    assert gain > 0.002
    assert solve(replace(asked, caution=0.9 * gain), fitted).budgets == best.budgets
    careful = solve(replace(asked, caution=1.1 * gain), fitted)
    assert careful.budgets == equal.budgets
    assert careful.batches == best.batches
    assert careful.bound >= best.score * (1.0 - 300 * THRIFT)


def test_equal_budgets_are_those_that_all_tasks_can_have(
    problem: BudgetProblem, fitted: XGBoostModel
) -> None:
    rows = ((25.0, 50.0, 100.0), (20.0, 50.0, 80.0, 100.0), (40.0, 50.0, 100.0))
    asked = replace(problem, levels=rows, batches=tuple((row[-1],) for row in problem.batches))
    even = [exhaustive(replace(asked, levels=((level,),) * 3), fitted) for level in (50.0, 100.0)]
    careful = solve(replace(asked, caution=0.9), fitted)
    assert careful.budgets == max(even, key=lambda plan: plan.score).budgets
    none = replace(asked, levels=((25.0,), (20.0, 50.0), (40.0, 50.0)), caution=0.9)
    assert solve(none, fitted).budgets[0] == 25.0


class Saturating:
    """Rates that stop growing at a budget of 40 %."""

    monotone = True

    def rates(self, runs):
        return np.where(runs.running, runs.solo_rates * np.minimum(0.4, runs.own_budgets / 100), 0.0)


@pytest.mark.parametrize("objective", list(Objective))
def test_a_budget_that_brings_nothing_is_given_back(problem: BudgetProblem, objective: Objective) -> None:
    plan = solve(replace(problem, batches=((128,),) * 3, objective=objective), Saturating())
    assert max(plan.budgets) == 40.0
    if objective is not Objective.MAKESPAN:
        assert plan.budgets == (40.0, 40.0, 40.0)


def test_the_makespan_counts_what_a_task_leaves_to_the_others(
    problem: BudgetProblem, fitted: XGBoostModel
) -> None:
    plan = solve(problem, fitted)
    constant = max(d / p for d, p in zip(problem.samples, plan.rates, strict=True))
    assert sum(problem.samples) / plan.score <= constant


def test_levels_that_come_to_the_same_units_are_one_level() -> None:
    assert distinct_levels((100, 50, 25, 26, 30, 1), 4) == (1, 50, 100)
    assert distinct_levels(TWENTY, 132) == TWENTY


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"samples": (1,)}, "got 1 volumes for 3 tasks"),
        ({"levels": ((50.0,), (0.0,), (50.0,))}, "budget of v16: got 0 %"),
        ({"levels": ((50.0,), (), (50.0,))}, "budgets of v16: got no level"),
        ({"batches": ((64,), (0, 64), (64,))}, r"batch sizes of v16: got \[0, 64\]"),
        ({"memory": ((1,), (1,), (1,))}, "expected the bytes of every task"),
        ({"virtual_resource": (200.0, 100.0)}, "R_v: got at least 200 and at most 100 %"),
    ],
)
def test_a_problem_that_cannot_be_is_refused(
    problem: BudgetProblem, wrong: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(problem, **wrong)
