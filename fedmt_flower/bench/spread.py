"""A measured quantity and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.stats import t


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """What repeats of one measurement came to.

    Parameters
    ----------
    n
        How many repeats.
    mean, median, deviation
        Of the repeats; `deviation` is their standard deviation, 0 for one repeat.
    ci95
        95 % confidence interval of the mean by Student's t; infinitely wide for one repeat.
    """

    n: int
    mean: float
    median: float
    deviation: float
    ci95: tuple[float, float]

    @property
    def half_width(self) -> float:
        """Half the width of `ci95`."""
        return (self.ci95[1] - self.ci95[0]) / 2


def spread(values: Iterable[float]) -> Spread:
    """The spread of repeats; ValueError if there is none or one is not finite."""
    repeats = np.array(list(values), dtype=float)
    if repeats.size == 0 or not np.isfinite(repeats).all():
        raise ValueError(
            f"repeats of a measurement: got {repeats.tolist()}, expected at least one finite number"
        )
    mean, n = float(repeats.mean()), int(repeats.size)
    deviation = float(repeats.std(ddof=1)) if n > 1 else 0.0
    half = float(t.ppf(0.975, n - 1)) * deviation / math.sqrt(n) if n > 1 else math.inf
    return Spread(
        n=n,
        mean=mean,
        median=float(np.median(repeats)),
        deviation=deviation,
        ci95=(mean - half, mean + half),
    )
