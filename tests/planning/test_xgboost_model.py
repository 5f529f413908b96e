import json

import numpy as np
import pytest

from fedmt_flower.domain.profile import CoRunSample, DeviceFeatures, TaskFeatures
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.evaluation import relative_errors
from fedmt_flower.planning.throughput import CoRuns, fingerprint
from fedmt_flower.planning.xgboost_model import XGBoostModel, fit_xgboost


@pytest.fixture(scope="module")
def runs(device: DeviceFeatures, zoo: dict[str, TaskFeatures]) -> CoRuns:
    generator = np.random.default_rng(5)
    return CoRuns(
        device=device,
        tasks=tuple(zoo[name] for name in ("r50", "v16", "m3", "s2")),
        batches=generator.choice([32.0, 128.0, 256.0], (200, 4)),
        budgets=generator.choice([0.0, 20.0, 55.0, 100.0], (200, 4)),
    )


def test_it_learns_what_the_samples_say(fitted: XGBoostModel, samples: list[CoRunSample]) -> None:
    assert relative_errors(fitted, samples).mean() < 0.04


def test_a_task_that_does_not_run_has_no_rate(fitted: XGBoostModel, runs: CoRuns) -> None:
    rates = fitted.rates(runs)
    assert ((rates > 0) == (runs.budgets > 0)).all()


def test_the_order_of_the_tasks_does_not_matter(fitted: XGBoostModel, runs: CoRuns) -> None:
    order = [2, 0, 3, 1]
    shuffled = CoRuns(
        device=runs.device,
        tasks=tuple(runs.tasks[i] for i in order),
        batches=runs.batches[:, order],
        budgets=runs.budgets[:, order],
    )
    assert (fitted.rates(runs)[:, order] == fitted.rates(shuffled)).all()


def test_rates_are_monotone_in_every_budget_and_in_company(fitted: XGBoostModel, runs: CoRuns) -> None:
    base = np.where(runs.budgets > 0, runs.budgets, 5.0)
    before = fitted.rates(CoRuns(device=runs.device, tasks=runs.tasks, batches=runs.batches, budgets=base))
    for i in range(4):
        others = [j for j in range(4) if j != i]
        for changed, sign in ((np.minimum(100.0, base[:, i] + 30.0), 1), (np.zeros(len(base)), -1)):
            budgets = base.copy()
            budgets[:, i] = changed
            after = fitted.rates(
                CoRuns(device=runs.device, tasks=runs.tasks, batches=runs.batches, budgets=budgets)
            )
            assert (sign * after[:, others] <= sign * before[:, others] * (1 + sign * 1e-9)).all()
            assert (sign * after[:, i] >= sign * before[:, i] * (1 - sign * 1e-9)).all()


def test_fitting_twice_gives_the_same_model(fitted: XGBoostModel, samples: list[CoRunSample]) -> None:
    assert fit_xgboost(samples, threads=1).to_text() == fitted.to_text()


def test_the_text_brings_the_same_model_back(fitted: XGBoostModel, runs: CoRuns) -> None:
    text = fitted.to_text()
    again = XGBoostModel.from_text(text, threads=1)
    assert (again.rates(runs) == fitted.rates(runs)).all()
    assert again.card == fitted.card
    assert again.to_text() == text


def test_the_card_says_what_it_was_fitted_on(fitted: XGBoostModel, samples: list[CoRunSample]) -> None:
    assert fitted.card.data == fingerprint(samples[::-1])
    assert fitted.card.data != fingerprint(samples[1:])
    assert fitted.card.devices == ("made up",)
    assert fitted.card.models == tuple(sorted(fitted.card.models))


def test_hold_out_errors_travel_with_the_model(samples: list[CoRunSample]) -> None:
    fitted = fit_xgboost(samples[:100], errors={"leave one mix out": 0.07}, threads=1)
    assert XGBoostModel.from_text(fitted.to_text()).card.errors == {"leave one mix out": 0.07}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("version", 99, "its version is 99, this version expects 1"),
        ("features", ["budget"], "its features is"),
        ("trees", "{}", "its digest is"),
        ("format", "other", "its format is other"),
    ],
)
def test_what_does_not_match_is_refused(fitted: XGBoostModel, key: str, value: object, said: str) -> None:
    content = json.loads(fitted.to_text()) | {key: value}
    with pytest.raises(ConfigError, match=said):
        XGBoostModel.from_text(json.dumps(content))


@pytest.mark.parametrize("text", ["", "[]", "{}", "not json"])
def test_what_is_no_model_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a model that fedmt fit wrote"):
        XGBoostModel.from_text(text)


def test_the_importances_add_up_and_come_largest_first(fitted: XGBoostModel) -> None:
    shares = list(fitted.importance().values())
    assert sum(shares) == pytest.approx(1.0)
    assert shares == sorted(shares, reverse=True)


def test_no_samples_is_refused() -> None:
    with pytest.raises(ConfigError, match="no samples to fit"):
        fit_xgboost([])
