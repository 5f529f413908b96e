"""Every kind of throughput model, and every way to hold samples out, under the names that reports use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fedmt_flower.planning import comparison, evaluation, trivial
from fedmt_flower.planning.analytic import AnalyticModel
from fedmt_flower.planning.regression import Fit
from fedmt_flower.planning.xgboost_model import fit_xgboost

BOOSTED: Final = "boosted trees"
"""The kind that plans."""
SPLITS: Final[Mapping[str, evaluation.Splitter]] = {
    "seen mixes": evaluation.within_mixes,
    "a mix left out": evaluation.leave_one_mix_out,
    "a model left out": evaluation.leave_one_model_out,
    "a device left out": evaluation.leave_one_device_out,
}


def fits(threads: int) -> Mapping[str, Fit]:
    """How each kind is fitted: § IV's alternatives, and three that are not; `threads` 0 uses all CPUs."""
    return {
        BOOSTED: lambda samples: fit_xgboost(samples, threads=threads),
        "log-linear": comparison.fit_log_linear,
        "polynomial": comparison.fit_polynomial,
        "neural net": comparison.fit_neural_net,
        "analytic": lambda _: AnalyticModel(),
        "solo × budget": lambda _: trivial.ProportionalModel(),
        "equal slowdown": lambda _: trivial.EqualSlowdownModel(),
    }
