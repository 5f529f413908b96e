from dataclasses import replace

import numpy as np
import pytest

from fedmt_flower.domain.network import Link, Overlap, Volume
from fedmt_flower.domain.profile import DeviceFeatures, TaskFeatures
from fedmt_flower.planning.overlap import plan_order
from fedmt_flower.planning.rates import states
from fedmt_flower.planning.reallocation import RoundSetup, hold, reallocate
from fedmt_flower.planning.refinement import refine, settle
from fedmt_flower.planning.simulator import Jobs, simulate
from fedmt_flower.planning.xgboost_model import XGBoostModel

FIVE = (20.0, 40.0, 60.0, 80.0, 100.0)
SIZES = {"v16": 55, "r18": 45, "m3": 15}


@pytest.fixture
def setup(device: DeviceFeatures, zoo: dict[str, TaskFeatures], fitted: XGBoostModel) -> RoundSetup:
    volumes = tuple(
        Volume(
            task=name, samples=samples, download_bytes=SIZES[name] * 10**6, upload_bytes=SIZES[name] * 10**6
        )
        for name, samples in (("v16", 6000), ("r18", 12000), ("m3", 18000))
    )
    return RoundSetup(
        model=fitted,
        device=device,
        tasks=tuple(zoo[name] for name in SIZES),
        jobs=Jobs.over(volumes, Link(up_mbps=400, down_mbps=400)),
        batches=np.tile([102.0, 128.0, 154.0], (3, 1)),
        levels=(FIVE,) * 3,
    )


def compute_span(setup: RoundSetup, table) -> float:
    still = replace(setup.jobs, down_s=np.zeros(3), up_s=np.zeros(3))
    return float(simulate(still, table, np.arange(3), np.ones(3, dtype=np.intp)).makespan[0])


def test_rates_of_every_state_are_those_of_its_budgets(setup: RoundSetup) -> None:
    found = reallocate(setup)
    digits = states(3, 3)
    batches = setup.batches[np.arange(3), np.maximum(digits, 1) - 1]
    assert found.table.rates == pytest.approx(setup.rates(batches, found.budgets))
    assert ((found.budgets > 0) == (digits > 0)).all()
    assert np.isin(found.budgets, [0.0, *FIVE]).all()


def test_budgets_that_follow_the_set_are_no_slower_than_any_that_are_held(setup: RoundSetup) -> None:
    no_uploads = replace(setup, jobs=replace(setup.jobs, up_s=np.zeros(3)))
    ours = compute_span(setup, reallocate(no_uploads).table)
    grid = np.array(np.meshgrid(FIVE, FIVE, FIVE)).reshape(3, -1).T
    held = min(compute_span(setup, hold(setup, budgets[:, None]).table) for budgets in grid)
    assert ours <= held * 1.01


def test_no_set_gets_more_than_the_limit(setup: RoundSetup) -> None:
    assert reallocate(replace(setup, most=120.0)).budgets.sum(axis=1).max() <= 120.0


def test_refining_shortens_the_round_and_keeps_the_limit(setup: RoundSetup) -> None:
    limited = replace(setup, most=200.0)
    found = reallocate(limited)
    plan = plan_order(setup.jobs, found.table, np.ones(3, dtype=np.intp), overlap=Overlap.FLEXIBLE)
    better = refine(limited, found, plan)
    span = simulate(setup.jobs, better.table, plan.order, plan.choice).makespan[0]
    assert span <= plan.makespan_s
    assert better.budgets.sum(axis=1).max() <= 200.0


def test_refining_gives_the_longest_task_what_it_needs(setup: RoundSetup) -> None:
    longer = replace(setup, jobs=replace(setup.jobs, samples=6 * setup.jobs.samples))
    full = hold(longer, np.full((3, 1), 100.0))
    plan = plan_order(longer.jobs, full.table, np.ones(3, dtype=np.intp), overlap=Overlap.FLEXIBLE)
    better = refine(longer, full, plan)
    span = simulate(longer.jobs, better.table, plan.order, plan.choice).makespan[0]
    assert span < 0.98 * plan.makespan_s


def handovers(setup: RoundSetup, found, plan) -> int:
    times = simulate(setup.jobs, found.table, plan.order, plan.choice)
    moments = np.unique([*times.started[0], *times.computed[0]])[:-1]
    steps, count, last = found.table.steps(plan.choice), 0, np.zeros(3)
    for moment in moments:
        running = (times.started[0] <= moment) & (moment < times.computed[0])
        budgets = found.budgets[steps @ running]
        count += int(((budgets != last) & (budgets > 0) & (last > 0)).sum())
        last = budgets
    return count


def test_a_handover_that_is_not_worth_its_price_is_left_out(setup: RoundSetup) -> None:
    found = reallocate(setup)
    plan = plan_order(setup.jobs, found.table, np.ones(3, dtype=np.intp), overlap=Overlap.FLEXIBLE)
    before = handovers(setup, found, plan)
    assert before > 0
    assert handovers(setup, settle(setup, found, plan, 1e9), plan) == 0
    cheap = settle(setup, found, plan, 0.01)
    assert handovers(setup, cheap, plan) <= before
    span = simulate(setup.jobs, cheap.table, plan.order, plan.choice).makespan[0]
    assert span <= plan.makespan_s + 0.01 * before


def test_held_budgets_are_the_same_in_every_set(setup: RoundSetup) -> None:
    budgets = np.array([[20.0], [60.0], [100.0]])
    found = hold(setup, budgets)
    assert (found.budgets == np.where(states(3, 3) > 0, budgets[:, 0], 0.0)).all()
