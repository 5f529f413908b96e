"""How far a throughput model errs on what it was not fitted to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedmt_flower.domain.profile import CoRunSample
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.regression import Fit
from fedmt_flower.planning.throughput import Array, ThroughputModel, by_mix

Split = tuple[str, Sequence[CoRunSample], Sequence[CoRunSample]]
"""What is left out, the samples to fit to, and the samples held out."""
Splitter = Callable[[Sequence[CoRunSample]], Iterable[Split]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Hold-out error of a model over co-runs of two tasks and more.

    Parameters
    ----------
    mape
        Mean over all held-out rates of |predicted - observed| / observed.
    rates
        How many rates were held out.
    parts
        The same mean for each part that was left out in turn.
    """

    mape: float
    rates: int
    parts: Mapping[str, float] = field(default_factory=dict)


def relative_errors(model: ThroughputModel, samples: Sequence[CoRunSample]) -> Array:
    """|predicted - observed| / observed of every rate of every sample: shape (rates,)."""
    return np.concatenate(
        [(np.abs(model.rates(group.runs) - group.rates) / group.rates).ravel() for group in by_mix(samples)]
    )


def hold_out_score(fit: Fit, samples: Sequence[CoRunSample], split: Splitter) -> Score:
    """Fit and test once for every part that `split` holds out.

    Raises
    ------
    ConfigError
        If `split` holds nothing out.
    """
    errors = {}
    for name, training, held_out in split(samples):
        co_runs = [sample for sample in held_out if len(sample.tasks) > 1]
        if training and co_runs:
            errors[name] = relative_errors(fit(training), co_runs)
    if not errors:
        raise ConfigError("hold-out error: nothing to hold out; profile more than one mix of tasks")
    together = np.concatenate(list(errors.values()))
    return Score(
        mape=float(together.mean()),
        rates=together.size,
        parts={name: float(values.mean()) for name, values in errors.items()},
    )


def noise(samples: Iterable[CoRunSample]) -> float | None:
    """How far a rate measured again lies from the median of its repeats, as a fraction of that, on average.

    No model can be better than this. None if nothing was measured twice.
    """
    repeats: dict[tuple[object, ...], list[tuple[float, ...]]] = {}
    for sample in samples:
        names = [(task.task, task.step) for task in sample.tasks]
        *setting, rates = zip(
            *sorted(zip(names, sample.batches, sample.budgets, sample.rates, strict=True)), strict=True
        )
        repeats.setdefault((sample.device.name, *setting), []).append(rates)
    deviations = [
        np.abs(np.array(seen) / np.median(seen, axis=0) - 1.0).ravel()
        for seen in repeats.values()
        if len(seen) > 1
    ]
    return float(np.concatenate(deviations).mean()) if deviations else None


def within_mixes(samples: Sequence[CoRunSample]) -> Iterable[Split]:
    """Five folds in which every mix is seen: each fifth sample of every mix is held out."""
    place: dict[tuple[str, ...], int] = {}
    fold = []
    for sample in samples:
        fold.append(place.get(sample.mix, 0) % 5)
        place[sample.mix] = place.get(sample.mix, 0) + 1
    for held in range(5):
        yield (
            f"fold {held + 1}",
            [sample for sample, f in zip(samples, fold, strict=True) if f != held],
            [sample for sample, f in zip(samples, fold, strict=True) if f == held],
        )


def leave_one_mix_out(samples: Sequence[CoRunSample]) -> Iterable[Split]:
    """Each set of models of two and more in turn; what its members do alone stays known."""
    for mix in sorted({sample.mix for sample in samples if len(sample.tasks) > 1}):
        yield "+".join(mix), [s for s in samples if s.mix != mix], [s for s in samples if s.mix == mix]


def leave_one_model_out(samples: Sequence[CoRunSample]) -> Iterable[Split]:
    """Each model in turn: no sample with it is fitted to, not even of it alone."""
    for model in sorted({model for sample in samples for model in sample.mix}):
        yield model, [s for s in samples if model not in s.mix], [s for s in samples if model in s.mix]


def leave_one_device_out(samples: Sequence[CoRunSample]) -> Iterable[Split]:
    """Each device in turn."""
    for device in sorted({sample.device.name for sample in samples}):
        yield (
            device,
            [sample for sample in samples if sample.device.name != device],
            [sample for sample in samples if sample.device.name == device],
        )
