"""What is measured of a device, of a task alone and of tasks that share a device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from fedmt_flower.domain.plan import check_budget
from fedmt_flower.errors import ConfigError


class StepKind(StrEnum):
    """How a training step reaches the device."""

    EAGER = "eager"
    """Kernel by kernel, as the host launches them."""
    GRAPH = "graph"
    """As one captured graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFeatures:
    """A device, as the throughput model sees it.

    Parameters
    ----------
    name
        The vendor's name of the device; it labels samples and is no feature.
    units
        Streaming multiprocessors, or cores.
    peak
        Measured peak of the arithmetic that training uses, in FLOP/s.
    bandwidth
        Measured memory bandwidth, in bytes/s.
    """

    name: str
    units: int
    peak: float
    bandwidth: float

    def __post_init__(self) -> None:
        _check_positive(f"device {self.name}", units=self.units, peak=self.peak, bandwidth=self.bandwidth)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFeatures:
    """A task alone on a device: fᵢ and mᵢ of § IV and what its solo runs gave.

    Parameters
    ----------
    task
        The task's name.
    model
        What is trained; tasks of one model have it in common. It labels samples and is no feature.
    flops
        fᵢ: floating-point operations per sample, forward and backward.
    traffic
        mᵢ: bytes moved per sample, forward and backward.
    solo_rate
        P_bᵢ: samples/s alone at 100 % with `reference_batch`.
    reference_batch
        The batch size at which `solo_rate` was measured.
    step
        How the step reaches the device.
    quarter_share
        Solo rate at a budget of 25 % over `solo_rate`; near 1 for a task that leaves most of the device
        idle, near 0.25 for one that fills it. 0.5 where it was not measured.
    batch_rates
        Solo rates at 100 % by batch size: pairs of samples and samples/s, as far as they were measured.
    """

    task: str
    model: str
    flops: float
    traffic: float
    solo_rate: float
    reference_batch: int = 128
    step: StepKind = StepKind.EAGER
    quarter_share: float = 0.5
    batch_rates: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        _check_positive(
            f"features of {self.task}",
            flops=self.flops,
            traffic=self.traffic,
            solo_rate=self.solo_rate,
            reference_batch=self.reference_batch,
            quarter_share=self.quarter_share,
        )
        for batch, rate in self.batch_rates:
            _check_positive(f"features of {self.task}, batch_rates", batch=batch, rate=rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoRunSample:
    """One measurement: `tasks` at `batches` (samples) and `budgets` (%), and the `rates` (samples/s) seen.

    A single task is a sample too. All four tuples have the same length and order.
    """

    device: DeviceFeatures
    tasks: tuple[TaskFeatures, ...]
    batches: tuple[int, ...]
    budgets: tuple[float, ...]
    rates: tuple[float, ...]

    def __post_init__(self) -> None:
        lengths = {len(self.tasks), len(self.batches), len(self.budgets), len(self.rates)}
        if len(lengths) != 1 or not self.tasks:
            raise ConfigError(
                f"co-run sample: got {len(self.tasks)} tasks, {len(self.batches)} batches, "
                f"{len(self.budgets)} budgets and {len(self.rates)} rates, expected one of each per task"
            )
        for task, batch, budget, rate in zip(self.tasks, self.batches, self.budgets, self.rates, strict=True):
            check_budget(task.task, budget)
            _check_positive(f"sample of {task.task}", batch=batch, rate=rate)

    @property
    def mix(self) -> tuple[str, ...]:
        """The models that ran together, sorted."""
        return tuple(sorted(task.model for task in self.tasks))


def _check_positive(what: str, **values: float) -> None:
    wrong = [
        f"{what}, {name}: got {value:g}, expected a finite number above 0"
        for name, value in values.items()
        if not (math.isfinite(value) and value > 0)
    ]
    if wrong:
        raise ConfigError(*wrong)
