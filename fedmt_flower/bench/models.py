"""The throughput models that plan in benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from fedmt_flower.bench import specimen
from fedmt_flower.bench.bench import Options
from fedmt_flower.device.planner.models import Chosen, Models
from fedmt_flower.device.profile.samples import read_samples
from fedmt_flower.domain.profile import CoRunSample, DeviceFeatures, TaskFeatures
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.xgboost_model import fit_xgboost


def choose(
    options: Options, device: DeviceFeatures, keep: Callable[[CoRunSample], bool] | None = None
) -> Chosen:
    """The model with which a benchmark plans.

    That is one fitted to those samples of the profiles that are kept; where all are, the model that was
    given, and without either the one with which an engine plans.

    Parameters
    ----------
    options
        Of the benchmark.
    device
        Where it runs.
    keep
        Which samples of the profiles to fit to; None takes all.

    Raises
    ------
    ConfigError
        If a file is not what it should be.
    """
    if not options.profiles or (keep is None and options.model is not None):
        return Models(str(options.backend)).choose(str(options.model or ""), device)
    if keep is None:
        return _fitted_to_all(options.profiles)
    return _fitted([sample for sample in profiled(options.profiles) if keep(sample)])


def subjects(options: Options) -> tuple[Chosen, DeviceFeatures, tuple[TaskFeatures, ...]]:
    """A fitted model with a device and at least eight tasks to plan for: those given, or a specimen's."""
    specimens = specimen.DEVICE, tuple(specimen.ZOO.values())
    if options.profiles:
        samples = profiled(options.profiles)
        found = {task.task: task for sample in samples for task in sample.tasks}
        return _fitted(samples), samples[0].device, tuple(found.values())
    if options.model is not None:
        return choose(options, specimen.DEVICE), *specimens
    return _fitted(specimen.draw_samples()), *specimens


@lru_cache(maxsize=1)
def _fitted_to_all(profiles: tuple[Path, ...]) -> Chosen:
    # Once for all the plans of a benchmark: the device waits meanwhile.
    return _fitted(profiled(profiles))


def _fitted(samples: Sequence[CoRunSample]) -> Chosen:
    devices = tuple(sorted({sample.device.name for sample in samples}))
    return Chosen(
        model=fit_xgboost(samples, threads=1),
        basis=f"model fitted to {len(samples)} samples of {', '.join(devices)}",
        devices=devices,
    )


def profiled(paths: Sequence[Path]) -> list[CoRunSample]:
    """The samples of all profiles; ConfigError if there is none."""
    samples = [sample for path in paths for sample in read_samples(path)]
    if not samples:
        raise ConfigError(
            "profiles: got no samples, expected those of at least one task measured alone; "
            "let fedmt profile go on"
        )
    return samples
