import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmt_flower.domain.profile import DeviceFeatures, TaskFeatures
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.correction import CorrectedModel, Correction, Moderation, Observation
from fedmt_flower.planning.throughput import CoRuns
from fedmt_flower.planning.xgboost_model import XGBoostModel


def seen(ratio: float, task: str = "a", budget: float = 60.0) -> Observation:
    return Observation(task=task, budget=budget, ratio=ratio)


def test_a_rate_thrice_too_high_is_nearly_right_after_three_rounds() -> None:
    correction, errors = Correction(), []
    for _ in range(4):
        predicted = float(correction.of("a", np.array([60.0]))[0])
        errors.append(predicted / (1 / 3))
        correction = correction.observed([seen((1 / 3) / predicted)])
    assert errors[0] == pytest.approx(3.0)
    assert errors[3] < 1.2
    assert all(error >= 1.0 for error in errors)


def test_a_correction_is_bounded_and_so_is_its_memory() -> None:
    correction = Correction(gain=1.0)
    for turn in range(700):
        correction = correction.observed([seen(1e-3, budget=1.0 + turn / 10)])
    assert min(correction.factors.values()) == 0.25
    assert len(correction.factors) == 512
    assert ("a", 1.0) not in correction.factors


def test_what_tasks_deviate_by_together_is_the_devices_and_goes_with_it_everywhere() -> None:
    small = [Observation(task=task, budget=20.0, ratio=0.4) for task in "abc"]
    whole = [Observation(task=task, budget=100.0, ratio=1 / 0.4) for task in "abc"]
    slowed = Correction(gain=1.0).observed(small)
    assert slowed.of("a", np.array([20.0, 100.0])).tolist() == pytest.approx([0.4, 0.4])
    recovered = slowed.observed(whole)
    assert recovered.of("a", np.array([20.0, 100.0])).tolist() == pytest.approx([1.0, 1.0])


def test_what_one_task_shows_alone_is_its_own_whatever_slows_all() -> None:
    correction = Correction()
    for _ in range(12):
        rates = [0.5 / float(correction.of("a", np.array([60.0]))[0])]
        rates += [1.0 / float(correction.of(task, np.array([60.0]))[0]) for task in "bc"]
        correction = correction.observed(map(seen, rates, "abc"))
    assert correction.device == 1.0
    assert correction.factors["a", 60.0] == pytest.approx(0.5, rel=0.01)
    before = dict(correction.factors)
    correction = correction.observed([seen(0.4, task) for task in "abc"])
    assert correction.device == pytest.approx(0.4**0.5)
    assert correction.factors == pytest.approx(before)


def test_corrections_are_near_by_what_they_make_of_rates() -> None:
    place = ("a", 60.0)
    correction = Correction(device=0.8, factors={place: 1.0})
    assert correction.is_near(Correction(factors={place: 0.8}), 1e-9)
    assert not correction.is_near(Correction(factors={place: 1.0}), 0.05)


@given(st.dictionaries(st.sampled_from([20.0, 40.0, 60.0, 80.0, 100.0]), st.floats(0.1, 10.0), max_size=5))
def test_factors_never_fall_with_the_budget(ratios: dict[float, float]) -> None:
    correction = Correction(gain=1.0, factors={("a", budget): ratio for budget, ratio in ratios.items()})
    factors = correction.of("a", np.linspace(1, 100, 50))
    assert (np.diff(factors) >= -1e-12).all()


def test_a_budget_never_seen_takes_after_its_neighbours() -> None:
    correction = Correction(factors={("a", 40.0): 0.5, ("a", 80.0): 0.9})
    assert correction.of("a", np.array([10.0, 60.0, 100.0])).tolist() == pytest.approx([0.5, 0.7, 0.9])
    assert correction.of("b", np.array([60.0])).tolist() == [1.0]


def test_a_corrected_model_scales_the_task_observed_and_stays_monotone(
    fitted: XGBoostModel, device: DeviceFeatures, zoo: dict[str, TaskFeatures]
) -> None:
    runs = CoRuns(
        device=device,
        tasks=(zoo["r18"], zoo["m3"]),
        batches=np.full((2, 2), 128.0),
        budgets=np.array([[60.0, 60.0], [0.0, 60.0]]),
    )
    correction = Correction(gain=1.0).observed([seen(0.5, "r18"), seen(1.0, "m3")])
    model = CorrectedModel(model=fitted, correction=correction)
    assert model.rates(runs) == pytest.approx(fitted.rates(runs) * [0.5, 1.0])
    assert model.monotone


def test_rates_well_below_prediction_lower_the_next_rounds_virtual_resource() -> None:
    slow = [seen(0.6, "a", 80.0), seen(0.7, "b", 100.0), seen(0.65, "c", 100.0)]
    moderation = Moderation().observed(slow, 3, 0.8)
    assert moderation.limit == pytest.approx(0.85 * 280)
    for _ in range(20):
        moderation = moderation.observed(slow, 3, 0.65)
    assert moderation.limit == 100.0


def test_the_limit_comes_back_once_the_device_is_as_fast_as_before() -> None:
    moderation = Moderation(limit=150.0)
    assert moderation.observed([seen(0.85)], 3, 1.0).limit == 150.0
    for _ in range(10):
        moderation = moderation.observed([seen(1.0)], 3, 0.95)
    assert moderation.limit == float("inf")
    assert moderation.observed([], 3, 0.95) == moderation


def test_a_load_that_is_predicted_by_now_has_not_gone() -> None:
    """Workers for smaller budgets start slowly under it: the limit must still be there when they have."""
    moderation = Moderation(usual=0.7).observed([seen(0.5, budget=200.0)], 3, 0.5)
    assert moderation.limit == pytest.approx(170.0)
    for _ in range(12):
        moderation = moderation.observed([seen(1.0)], 3, 0.35)
        assert moderation.limit == pytest.approx(170.0)
        assert moderation.observed([seen(1.0)], 3, 0.7).limit > 170.0
    for _ in range(40):
        moderation = moderation.observed([seen(1.0)], 3, 0.35)
    assert moderation.limit == float("inf")


def test_one_slow_task_of_three_is_no_contention() -> None:
    round_ = [seen(0.3, "a"), seen(1.0, "b"), seen(0.98, "c")]
    assert Moderation().observed(round_, 3, 1.0).limit == float("inf")


def test_a_gain_outside_its_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="correction gain: got 0"):
        Correction(gain=0.0)
