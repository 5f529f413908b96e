"""The throughput models that plan in benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmt_flower.bench import specimen
from fedmt_flower.bench.driver import Options
from fedmt_flower.device.samples import read_samples
from fedmt_flower.domain.profile import CoRunSample, DeviceFeatures, TaskFeatures
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.analytic import AnalyticModel
from fedmt_flower.planning.throughput import ThroughputModel
from fedmt_flower.planning.xgboost_model import XGBoostModel, fit_xgboost


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A throughput model, and in a few words which one it is."""

    model: ThroughputModel
    origin: str


def choose(options: Options, keep: Callable[[CoRunSample], bool] = lambda sample: True) -> Chosen:
    """The model fitted to the profiles that were given, the one that was given, or the analytic estimate.

    Parameters
    ----------
    options
        Of the benchmark.
    keep
        Which samples of the profiles to fit to.

    Raises
    ------
    ConfigError
        If a file is not what it should be.
    """
    if options.profiles:
        samples = [sample for sample in profiled(options.profiles) if keep(sample)]
        return Chosen(model=fit_xgboost(samples, threads=1), origin=f"fitted to {len(samples)} samples")
    if options.model is not None:
        model = load_model(options.model)
        devices = ", ".join(model.card.devices)
        return Chosen(model=model, origin=f"{model.card.samples} samples of {devices}")
    return Chosen(model=AnalyticModel(), origin="the analytic estimate, fitted to nothing")


def subjects(options: Options) -> tuple[Chosen, DeviceFeatures, tuple[TaskFeatures, ...]]:
    """A fitted model with a device and at least eight tasks to plan for: those given, or a specimen's."""
    if options.profiles:
        samples = profiled(options.profiles)
        found = {task.task: task for sample in samples for task in sample.tasks}
        return choose(options), samples[0].device, tuple(found.values())
    if options.model is not None:
        return choose(options), specimen.DEVICE, tuple(specimen.ZOO.values())
    samples = specimen.draw_samples()
    chosen = Chosen(
        model=fit_xgboost(samples, threads=1), origin=f"fitted to {len(samples)} samples of a made-up GPU"
    )
    return chosen, specimen.DEVICE, tuple(specimen.ZOO.values())


def load_model(path: Path) -> XGBoostModel:
    """Read what `fedmt fit` wrote; ConfigError if it is not that."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a model of fedmt fit ({error})") from error
    return XGBoostModel.from_text(text)


def profiled(paths: Sequence[Path]) -> list[CoRunSample]:
    """The samples of all profiles; ConfigError if there is none."""
    samples = [sample for path in paths for sample in read_samples(path)]
    if not samples:
        raise ConfigError(
            "profiles: got no samples, expected those of at least one task measured alone; "
            "let fedmt profile go on"
        )
    return samples
