import numpy as np
import pytest

from fedmt_flower.domain.profile import TaskFeatures
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.workload import StepTime, Workload, fit_workload


def steps(alpha: float, beta: float, overhead: float, noise: float = 0.0) -> list[StepTime]:
    generator = np.random.default_rng(3)
    return [
        StepTime(
            flops=flops,
            traffic=traffic,
            batch=batch,
            seconds=(overhead + (alpha * flops + beta * traffic) * batch) * generator.normal(1.0, noise),
        )
        for flops, traffic in ((1e8, 2e7), (3e9, 1e7), (7e9, 9e7), (1e9, 6e7))
        for batch in (32, 128, 256)
    ]


def test_coefficients_come_back_from_times_made_of_them() -> None:
    fitted = fit_workload(steps(2e-14, 5e-13, 3e-3))
    assert fitted.alpha == pytest.approx(2e-14, rel=1e-6)
    assert fitted.beta == pytest.approx(5e-13, rel=1e-6)
    assert fitted.overhead_s == pytest.approx(3e-3, rel=1e-6)
    assert fitted.error == pytest.approx(0.0, abs=1e-9)


def test_noise_shows_as_the_fits_error() -> None:
    assert 0.01 < fit_workload(steps(2e-14, 5e-13, 3e-3, noise=0.05)).error < 0.08


def test_no_coefficient_is_negative_even_where_that_would_fit_better() -> None:
    fitted = fit_workload(steps(2e-14, -1e-13, 3e-3))
    assert fitted.beta == 0.0
    assert fitted.alpha > 0


def test_the_workload_of_a_round_grows_with_samples_and_ignores_the_batch() -> None:
    task = TaskFeatures(task="a", model="a", flops=1e9, traffic=1e7, solo_rate=100)
    assert Workload(alpha=1e-12, beta=1e-10).of_round(task, 2000) == pytest.approx(4.0)


def test_too_few_or_impossible_measurements_are_refused() -> None:
    with pytest.raises(ConfigError, match="got 2 single-task measurements, expected at least 3"):
        fit_workload(steps(1e-14, 1e-13, 0.0)[:2])
    with pytest.raises(ConfigError, match="above 0"):
        fit_workload([*steps(1e-14, 1e-13, 0.0), StepTime(flops=1, traffic=1, batch=1, seconds=0.0)])
