import pytest

from fedmt_flower.domain.profile import CoRunSample
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.comparison import (
    fit_log_linear,
    fit_neural_net,
    fit_polynomial,
)
from fedmt_flower.planning.evaluation import (
    hold_out_score,
    leave_one_device_out,
    leave_one_mix_out,
    leave_one_model_out,
    within_mixes,
)
from fedmt_flower.planning.trivial import EqualSlowdownModel, ProportionalModel
from fedmt_flower.planning.xgboost_model import fit_xgboost


def test_nothing_held_out_was_fitted_to(samples: list[CoRunSample]) -> None:
    for name, training, held_out in leave_one_model_out(samples):
        assert held_out
        assert all(name in sample.mix for sample in held_out)
        assert not any(name in sample.mix for sample in training)
    for _, training, held_out in leave_one_mix_out(samples):
        assert not {sample.mix for sample in training} & {sample.mix for sample in held_out}


def test_folds_within_mixes_hold_each_sample_out_once(samples: list[CoRunSample]) -> None:
    held = [id(sample) for _, _, held_out in within_mixes(samples) for sample in held_out]
    assert sorted(held) == sorted(map(id, samples))


def test_the_trees_keep_the_bars_on_seen_mixes_and_beat_trivial_predictors(
    samples: list[CoRunSample],
) -> None:
    trees = hold_out_score(lambda s: fit_xgboost(s, threads=1), samples, within_mixes)
    assert trees.mape <= 0.06
    for trivial in (ProportionalModel(), EqualSlowdownModel()):
        assert hold_out_score(lambda _, model=trivial: model, samples, within_mixes).mape > 3 * trees.mape


def test_the_trees_carry_over_to_mixes_and_models_never_seen(samples: list[CoRunSample]) -> None:
    models = hold_out_score(lambda s: fit_xgboost(s, threads=1), samples, leave_one_model_out)
    assert models.mape <= 0.15
    assert set(models.parts) == {model for sample in samples for model in sample.mix}
    few = samples[:120]
    assert hold_out_score(lambda s: fit_xgboost(s, threads=1), few, leave_one_mix_out).mape <= 0.10


@pytest.mark.parametrize("fit", [fit_log_linear, fit_polynomial, fit_neural_net])
def test_the_papers_alternatives_are_scored_by_the_same_split(samples: list[CoRunSample], fit) -> None:
    assert hold_out_score(fit, samples[:300], within_mixes).mape < 0.15


def test_one_device_alone_cannot_be_left_out(samples: list[CoRunSample]) -> None:
    with pytest.raises(ConfigError, match="nothing to hold out"):
        hold_out_score(fit_log_linear, samples, leave_one_device_out)
