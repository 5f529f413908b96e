import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmt_flower.domain.profile import DeviceFeatures, TaskFeatures
from fedmt_flower.planning import features
from fedmt_flower.planning.features import EXPECTED, FEATURES
from fedmt_flower.planning.throughput import Array, CoRuns

DEVICE = DeviceFeatures(name="gpu", units=132, peak=6e13, bandwidth=2.4e12)
RAISES = np.array([sign > 0 for sign in FEATURES.values()])
LOWERS = np.array([sign < 0 for sign in FEATURES.values()])


def tasks(n: int) -> tuple[TaskFeatures, ...]:
    generator = np.random.default_rng(n)
    return tuple(
        TaskFeatures(
            task=f"t{i}",
            model=f"t{i}",
            flops=float(generator.uniform(1e8, 7e9)),
            traffic=float(generator.uniform(1e6, 9e7)),
            solo_rate=float(generator.uniform(1e3, 2e4)),
            quarter_share=float(generator.uniform(0.26, 1.0)),
        )
        for i in range(n)
    )


def runs(mix: tuple[TaskFeatures, ...], batches: list[float], budgets: list[float]) -> CoRuns:
    return CoRuns(device=DEVICE, tasks=mix, batches=np.array([batches]), budgets=np.array([budgets]))


def design(asked: CoRuns) -> Array:
    return features.design(asked, asked.solo_rates)


settings = st.lists(
    st.tuples(st.sampled_from([16.0, 100.0, 512.0]), st.floats(1, 100)), min_size=2, max_size=6
)


@given(settings, st.randoms(use_true_random=False))
def test_the_order_of_the_tasks_does_not_show_in_a_single_bit(chosen, random) -> None:
    mix = tasks(len(chosen))
    batches, budgets = map(list, zip(*chosen, strict=True))
    order = list(range(len(chosen)))
    random.shuffle(order)
    straight = design(runs(mix, batches, budgets))
    shuffled = design(
        runs(tuple(mix[i] for i in order), [batches[i] for i in order], [budgets[i] for i in order])
    )
    assert (straight[order] == shuffled).all()


@given(settings, st.floats(0, 100))
def test_more_for_oneself_and_more_for_others_move_the_signed_features_one_way(chosen, more) -> None:
    mix = tasks(len(chosen))
    batches, budgets = map(list, zip(*chosen, strict=True))
    richer = [min(100.0, budgets[0] + more), *budgets[1:]]
    before, after = design(runs(mix, batches, budgets)), design(runs(mix, batches, richer))
    assert (after[0, RAISES] >= before[0, RAISES]).all()
    assert (after[0, LOWERS] == before[0, LOWERS]).all()
    assert (after[1:, RAISES] <= before[1:, RAISES]).all()
    assert (after[1:, LOWERS] >= before[1:, LOWERS]).all()


@given(settings)
def test_one_more_task_only_adds_contention(chosen) -> None:
    mix = tasks(len(chosen))
    batches, budgets = map(list, zip(*chosen, strict=True))
    without = design(runs(mix, batches, [*budgets[:-1], 0.0]))
    beside = design(runs(mix, batches, budgets))[:-1]
    assert (beside[:, RAISES] <= without[:, RAISES]).all()
    assert (beside[:, LOWERS] >= without[:, LOWERS]).all()


def test_a_ceiling_is_what_a_task_has_itself_and_the_others_do_not_see() -> None:
    mix = tasks(3)
    low, high = np.array([[20.0, 40.0, 60.0]]), np.array([[80.0, 40.0, 100.0]])
    batches = np.full((1, 3), 128.0)
    bounds = design(CoRuns(device=DEVICE, tasks=mix, batches=batches, budgets=low, ceilings=high))
    for i in range(3):
        own = low.copy()
        own[0, i] = high[0, i]
        plain = design(CoRuns(device=DEVICE, tasks=mix, batches=batches, budgets=own))
        assert (bounds[i] == plain[i]).all()


def test_alone_with_the_whole_device_a_task_is_expected_to_run_at_its_solo_rate() -> None:
    assert design(runs(tasks(1), [128.0], [100.0]))[0, EXPECTED] == pytest.approx(0.0, abs=1e-6)
