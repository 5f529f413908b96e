import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmt_flower.domain.network import Overlap
from fedmt_flower.planning.bounds import lower_bound
from fedmt_flower.planning.rates import RateTable, states
from fedmt_flower.planning.simulator import Jobs, simulate


def random_round(n: int, seed: int, *, full_duplex: bool = True) -> tuple[Jobs, RateTable]:
    generator = np.random.default_rng(seed)
    scale = 10 ** generator.uniform(-1, 1)
    jobs = Jobs(
        names=tuple(map(str, range(n))),
        samples=generator.uniform(0.1, 5, n),
        down_s=scale * generator.uniform(0, 1, n),
        up_s=scale * generator.uniform(0, 1, n),
        full_duplex=full_duplex,
    )
    digits = states(n, 2)
    size = np.maximum(1, (digits > 0).sum(axis=1, keepdims=True))
    rates = generator.uniform(0.5, 1.0, digits.shape) / size ** generator.uniform(0, 1)
    return jobs, RateTable(choices=2, rates=np.where(digits > 0, rates, 0.0))


def best(jobs: Jobs, table: RateTable, overlap: Overlap) -> float:
    n = len(jobs.names)
    orders = np.array(list(itertools.permutations(range(n))))
    choices = np.indices((2,) * n).reshape(n, -1).T
    pairs = np.repeat(orders, len(choices), axis=0), np.tile(choices, (len(orders), 1))
    return float(simulate(jobs, table, *pairs, overlap=overlap).makespan.min())


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(0, 10**6),
    st.sampled_from([Overlap.OFF, Overlap.SERIAL, Overlap.FLEXIBLE]),
    st.booleans(),
)
def test_no_order_with_any_settings_beats_the_bound(n, seed, overlap, full_duplex) -> None:
    jobs, table = random_round(n, seed, full_duplex=full_duplex)
    assert lower_bound(jobs, table.fastest(), overlap) <= best(jobs, table, overlap) * (1 + 1e-9)


def test_the_bound_is_near_what_can_be_had() -> None:
    gaps = []
    for seed in range(40):
        jobs, table = random_round(4, seed)
        fixed = RateTable(choices=1, rates=table.rates[(states(4, 1) * table.weights).sum(axis=1)])
        orders = np.array(list(itertools.permutations(range(4))))
        span = simulate(jobs, fixed, orders, np.zeros((24, 4), dtype=np.intp)).makespan.min()
        gaps.append(span / lower_bound(jobs, fixed.fastest()) - 1)
    assert np.median(gaps) < 0.1


def test_one_task_takes_its_three_parts() -> None:
    jobs = Jobs(names=("a",), samples=np.array([10.0]), down_s=np.array([1.0]), up_s=np.array([3.0]))
    for overlap in Overlap:
        assert lower_bound(jobs, np.array([[0.0], [5.0]]), overlap) == pytest.approx(6.0)


def test_beyond_eight_tasks_the_links_bound_is_still_one() -> None:
    n = 9
    generator = np.random.default_rng(0)
    jobs = Jobs(
        names=tuple(map(str, range(n))),
        samples=np.full(n, 1e-3),
        down_s=generator.uniform(0, 1, n),
        up_s=generator.uniform(0, 1, n),
    )
    rates = np.where(states(n, 1) > 0, 1.0, 0.0)
    bound = lower_bound(jobs, rates)
    assert max(jobs.down_s.sum(), jobs.up_s.sum()) < bound
    order = np.argsort(-jobs.up_s)
    span = simulate(jobs, RateTable(choices=1, rates=rates), order, np.zeros(n, dtype=np.intp)).makespan[0]
    assert bound <= span
