"""How well co-running rates are predicted, from the samples of a profile: no device is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.models import profiled
from fedmt_flower.bench.result import Bar, Json, Result, Sample
from fedmt_flower.bench.specimen import draw_samples
from fedmt_flower.bench.spread import Spread, spread
from fedmt_flower.domain.allocation import Objective
from fedmt_flower.domain.profile import CoRunSample
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.alternatives import BOOSTED, SPLITS, fits
from fedmt_flower.planning.evaluation import noise, relative_errors
from fedmt_flower.planning.regression import Fit
from fedmt_flower.planning.throughput import ThroughputModel, by_mix
from fedmt_flower.planning.xgboost_model import fit_xgboost

CLAIM = "the rates of tasks that run together are predicted from what each does alone and from their budgets"

GOALS: Final = {"seen mixes": 0.06, "a mix left out": 0.10, "a model left out": 0.15}
"""Largest mean error by what was held out."""
_OBJECTIVES: Final = (Objective.RAW, Objective.FAIRNESS)
_SHOWN_FEATURES: Final = 8


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with."""
    return {
        "splits": list(SPLITS)[: 1 if quick else None],
        "models": list(fits(1))[: 2 if quick else None],
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Fit and test every kind of model once for every part that is held out."""
    samples = _samples(bench)
    recorder, complete = bench.recorder, True
    kinds = fits(threads=1)
    for split in bench.settings["splits"]:
        parts = [
            (name, training, together)
            for name, training, held_out in SPLITS[split](samples)
            if training and (together := [sample for sample in held_out if len(sample.tasks) > 1])
        ]
        for kind in bench.settings["models"]:
            cell = f"{split} | {kind}"
            for _, repeat in recorder.interleave([cell], len(parts)):
                name, training, held_out = parts[repeat]
                recorder.add(cell, repeat, {"part": name} | _tested(kinds[kind], training, held_out))
            complete &= recorder.has_all([cell], len(parts))
    floor = noise(samples)
    bench.facts |= {
        "samples": len(samples),
        "devices": sorted({sample.device.name for sample in samples}),
        "mixes": len({sample.mix for sample in samples if len(sample.tasks) > 1}),
        "noise": floor,
        "importance": fit_xgboost(samples, threads=1).importance(),
    }
    for split, goal in GOALS.items():
        error = _errors(recorder.samples, split, BOOSTED)
        if error is not None:
            bench.bars.append(Bar.at_most(f"{split}: mean error of the {BOOSTED}", goal, error))
    return complete


def selection_regret(model: ThroughputModel, samples: Sequence[CoRunSample], objective: Objective) -> float:
    """What is lost by taking, of the measured settings of a mix, that which `model` likes best.

    A fraction of the best measured one's score, 0 or more; the mean over the mixes.
    """
    lost = []
    for group in by_mix(samples):
        weights = 1.0 / group.runs.reference_rates if objective is Objective.FAIRNESS else 1.0
        measured = (group.rates * weights).sum(axis=1)
        chosen = (model.rates(group.runs) * weights).sum(axis=1).argmax()
        lost.append(1.0 - measured[chosen] / measured.max())
    return float(np.mean(lost))


def report(result: Result) -> str:
    """Errors by kind of model and by what was held out, in Markdown; then regret, noise and features."""
    facts, splits = result.facts, result.settings["splits"]
    lines = [
        f"{facts['samples']} samples of {facts['mixes']} mixes on {', '.join(facts['devices'])}. Mean error "
        "of rates that were held out, over the parts held out in turn:",
        "",
        f"| model | {' | '.join(splits)} |",
        f"|---|{'---:|' * len(splits)}",
    ]
    for kind in result.settings["models"]:
        errors = (_errors(result.samples, split, kind) for split in splits)
        lines.append(f"| {kind} | {' | '.join(_per_cent(error) for error in errors)} |")
    if facts["noise"] is not None:
        floor = [f"{facts['noise']:.1%}"] * len(splits)
        lines.append(f"| *the same measured again* | {' | '.join(floor)} |")
    lines += ["", "| held out | part | error | regret, P | regret, P_f |", "|---|---|---:|---:|---:|"]
    for split in splits:
        for sample in _worst(result.of(f"{split} | {BOOSTED}")):
            values = sample.values
            regrets = " | ".join(f"{values['regret'][objective]:.1%}" for objective in _OBJECTIVES)
            lines.append(f"| {split} | {values['part']} | {values['mape']:.1%} | {regrets} |")
    shares = [f"{name} {share:.0%}" for name, share in list(facts["importance"].items())[:_SHOWN_FEATURES]]
    return "\n".join(
        [
            *lines,
            "",
            "Regret: what is lost by taking, of a mix's measured settings, the one that the "
            f"{BOOSTED} like best. Parts with the largest error only, where there are many.",
            "",
            f"What the trees go by (share of the gain): {', '.join(shares)}.",
        ]
    )


def _samples(bench: Bench) -> Sequence[CoRunSample]:
    if bench.options.profiles:
        return profiled(bench.options.profiles)
    if bench.options.quick:
        return draw_samples(mixes=20)
    raise ConfigError("predict: got no profile, expected --profile FILE as fedmt profile writes it")


def _tested(fit: Fit, training: Sequence[CoRunSample], held_out: Sequence[CoRunSample]) -> dict[str, Json]:
    model = fit(training)
    errors = relative_errors(model, held_out)
    return {
        "mape": float(errors.mean()),
        "p95": float(np.quantile(errors, 0.95)),
        "rates": int(errors.size),
        "regret": {objective: selection_regret(model, held_out, objective) for objective in _OBJECTIVES},
    }


def _errors(samples: Sequence[Sample], split: str, kind: str) -> Spread | None:
    """Mean errors of the parts that were held out."""
    taken = [sample.values["mape"] for sample in samples if sample.cell == f"{split} | {kind}"]
    return spread(taken) if taken else None


def _worst(samples: Sequence[Sample], most: int = 10) -> list[Sample]:
    """The parts with the largest errors."""
    return sorted(samples, key=lambda sample: -sample.values["mape"])[:most]


def _per_cent(error: Spread | None) -> str:
    if error is None:
        return "–"
    text = f"{error.mean:.1%}"
    return text if error.n < 2 else f"{text} ± {error.half_width:.1%}"
