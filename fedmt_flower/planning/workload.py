"""A task's workload, and its coefficients from single-task measurements (Eq. 3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from fedmt_flower.domain.profile import CoRunSample, TaskFeatures
from fedmt_flower.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """One task alone at 100 %: a step of `batch` samples took `seconds`.

    `flops` and `traffic` are fᵢ (FLOP) and mᵢ (bytes) per sample.
    """

    flops: float
    traffic: float
    batch: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Oᵢ = α·fᵢ·Bᵢ + β·mᵢ·Bᵢ, in seconds of the device on which it was fitted.

    Parameters
    ----------
    alpha
        Seconds per FLOP, 0 or more.
    beta
        Seconds per byte, 0 or more.
    overhead_s
        γ₀: seconds of a step that depend on neither, 0 or more.
    error
        Mean absolute relative error of the fit over its own measurements.
    """

    alpha: float
    beta: float
    overhead_s: float = 0.0
    error: float = 0.0

    def per_sample(self, task: TaskFeatures) -> float:
        """Oᵢ/Bᵢ in seconds: the workload of one sample."""
        return self.alpha * task.flops + self.beta * task.traffic

    def of_round(self, task: TaskFeatures, samples: int) -> float:
        """Oᵢ·Dᵢ/Bᵢ in seconds: the workload by which § V-B ranks tasks."""
        return self.per_sample(task) * samples


def step_times(samples: Iterable[CoRunSample]) -> tuple[StepTime, ...]:
    """The steps of tasks that ran alone with the whole device."""
    return tuple(
        StepTime(
            flops=sample.tasks[0].flops,
            traffic=sample.tasks[0].traffic,
            batch=sample.batches[0],
            seconds=sample.batches[0] / sample.rates[0],
        )
        for sample in samples
        if len(sample.tasks) == 1 and sample.budgets[0] >= 100.0
    )


def fit_workload(steps: Sequence[StepTime]) -> Workload:
    """Fit time ≈ γ₀ + α·f·B + β·m·B by least squares with no negative coefficient.

    γ₁ of § IV is 1: only its products with α and β are identifiable. Residuals are taken relative to each
    measured time, or the largest model would decide alone.

    Raises
    ------
    ConfigError
        If there are fewer than three measurements or one of them is not above 0.
    """
    if len(steps) < 3:
        raise ConfigError(f"workload fit: got {len(steps)} single-task measurements, expected at least 3")
    table = np.array([(s.flops, s.traffic, s.batch, s.seconds) for s in steps], dtype=float)
    if not (np.isfinite(table).all() and (table > 0).all()):
        raise ConfigError("workload fit: every FLOP count, traffic, batch and time must be above 0")
    flops, traffic, batch, seconds = table.T
    columns = np.stack([np.ones_like(batch), flops * batch, traffic * batch], axis=1) / seconds[:, None]
    scale = columns.max(axis=0)
    scaled, _ = nnls(columns / scale, np.ones_like(seconds))
    overhead, alpha, beta = scaled / scale
    error = np.abs(columns @ (scaled / scale) - 1.0).mean()
    return Workload(alpha=float(alpha), beta=float(beta), overhead_s=float(overhead), error=float(error))
