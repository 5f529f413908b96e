import itertools

import numpy as np
import pytest

from fedmt_flower.domain.network import Overlap
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.overlap import nearby_batches, plan_order
from fedmt_flower.planning.rates import RateTable, states
from fedmt_flower.planning.simulator import Jobs, simulate


def random_round(n: int, choices: int, seed: int) -> tuple[Jobs, RateTable]:
    generator = np.random.default_rng(seed)
    jobs = Jobs(
        names=tuple(map(str, range(n))),
        samples=generator.uniform(0.2, 3, n),
        down_s=generator.uniform(0, 1, n),
        up_s=generator.uniform(0, 1, n),
    )
    digits = states(n, choices)
    size = np.maximum(1, (digits > 0).sum(axis=1, keepdims=True))
    rates = generator.uniform(0.7, 1.0, digits.shape) / size**0.5
    return jobs, RateTable(choices=choices, rates=np.where(digits > 0, rates, 0.0))


def brute_force(jobs: Jobs, table: RateTable) -> float:
    n = len(jobs.names)
    return min(
        float(simulate(jobs, table, np.array(order), np.array(choice)).makespan[0])
        for order in itertools.permutations(range(n))
        for choice in itertools.product(range(table.choices), repeat=n)
    )


@pytest.mark.parametrize(("n", "choices"), [(1, 3), (2, 3), (3, 3), (4, 2), (5, 1)])
def test_up_to_five_tasks_the_flexible_order_is_the_best_there_is(n: int, choices: int) -> None:
    for seed in range(3):
        jobs, table = random_round(n, choices, seed)
        plan = plan_order(jobs, table, np.zeros(n, dtype=np.intp), overlap=Overlap.FLEXIBLE)
        assert plan.makespan_s == brute_force(jobs, table)
        assert plan.makespan_s == simulate(jobs, table, plan.order, plan.choice).makespan[0]
        assert plan.lower_bound_s <= plan.makespan_s * (1 + 1e-9)


def test_the_points_of_three_and_five_tasks_are_those_of_the_paper() -> None:
    for n, points in ((3, 162), (5, 29_160)):
        jobs, table = random_round(n, 3, 0)
        assert plan_order(jobs, table, np.ones(n, dtype=np.intp), overlap=Overlap.FLEXIBLE).points == points


@pytest.mark.parametrize("seed", range(4))
def test_seven_tasks_are_searched_to_within_one_per_cent(seed: int) -> None:
    jobs, table = random_round(7, 1, seed)
    orders = np.array(list(itertools.permutations(range(7))))
    best = simulate(jobs, table, orders, np.zeros(7, dtype=np.intp)).makespan.min()
    plan = plan_order(jobs, table, np.zeros(7, dtype=np.intp), overlap=Overlap.FLEXIBLE)
    assert plan.makespan_s <= 1.01 * best
    assert plan.points < len(orders)


def even_rates(n: int, rate: float) -> RateTable:
    digits = states(n, 1)
    size = np.maximum(1, digits.sum(axis=1, keepdims=True))
    return RateTable(choices=1, rates=np.where(digits > 0, rate / size**0.3, 0.0))


@pytest.mark.parametrize(
    ("samples", "transfers"),
    [
        pytest.param((10.0, 8.0, 1.0), (1.0, 1.0, 4.0), id="small computation, large model"),
        pytest.param((10.0, 9.5, 9.0), (4.0, 1.0, 1.0), id="both large"),
    ],
)
def test_flexible_beats_workload_where_the_paper_says_it_must(
    samples: tuple[float, ...], transfers: tuple[float, ...]
) -> None:
    jobs = Jobs(
        names=("a", "b", "c"),
        samples=np.array(samples),
        down_s=np.array(transfers),
        up_s=np.array(transfers),
    )
    choice = np.zeros(3, dtype=np.intp)
    table = even_rates(3, 2.0)
    workload, flexible = (
        plan_order(jobs, table, choice, overlap=overlap, workloads=np.array(samples)).makespan_s
        for overlap in (Overlap.WORKLOAD, Overlap.FLEXIBLE)
    )
    assert flexible < 0.98 * workload


def test_workload_starts_the_largest_first_and_fifo_keeps_the_order_given() -> None:
    jobs, table = random_round(4, 1, 0)
    choice = np.zeros(4, dtype=np.intp)
    workloads = np.array([2.0, 5.0, 5.0, 1.0])
    by_workload = plan_order(jobs, table, choice, overlap=Overlap.WORKLOAD, workloads=workloads)
    assert by_workload.order.tolist() == [1, 2, 0, 3]
    for overlap in (Overlap.FIFO, Overlap.OFF, Overlap.SERIAL):
        assert plan_order(jobs, table, choice, overlap=overlap).order.tolist() == [0, 1, 2, 3]


def test_settings_that_are_not_allowed_are_not_chosen() -> None:
    for n in (3, 6):
        jobs, table = random_round(n, 2, 1)
        allowed = (states(n, 2) == 1).all(axis=1)
        plan = plan_order(jobs, table, np.zeros(n, dtype=np.intp), overlap=Overlap.FLEXIBLE, allowed=allowed)
        assert plan.choice.tolist() == [0] * n


def test_batches_change_only_for_a_shorter_round() -> None:
    jobs = Jobs(names=("a", "b"), samples=np.full(2, 100.0), down_s=np.full(2, 5.0), up_s=np.full(2, 5.0))
    table = RateTable(choices=3, rates=np.where(states(2, 3) > 0, 1000.0, 0.0))
    for start in itertools.product(range(3), repeat=2):
        plan = plan_order(jobs, table, np.array(start), overlap=Overlap.FLEXIBLE)
        assert tuple(plan.choice) == start


def test_nearby_batches_stay_within_their_limits() -> None:
    assert nearby_batches(128, 0.2, 1, 1000) == (102, 128, 154)
    assert nearby_batches(128, 0.2, 120, 130) == (120, 128, 130)
    assert nearby_batches(1, 0.2, 1, 8) == (1,)
    assert nearby_batches(64, 0.0, 1, 1000) == (64,)


@pytest.mark.parametrize("delta", [-0.1, 1.0, float("nan")])
def test_a_delta_outside_its_range_is_refused(delta: float) -> None:
    with pytest.raises(ConfigError, match="overlap delta: got"):
        nearby_batches(128, delta, 1, 256)
