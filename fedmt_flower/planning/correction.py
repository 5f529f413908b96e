"""What observed rates teach between rounds: corrections of the model, and a limit on R_v (§ III-B)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.throughput import Array, CoRuns, ThroughputModel

_MOST: Final = 4.0
"""A factor stays between this and its inverse."""
_KEPT: Final = 512
"""So many factors are kept; the longest unseen goes first."""
_GETTING_USED: Final = 0.05
"""How much of a slowness (of its logarithm) one round makes usual."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """In one round `task` ran at `budget` (%): its observed rate over the one its plan predicted."""

    task: str
    budget: float
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """Factors on predicted rates: one of the device, and one of each task at each budget.

    A round teaches the device's factor what its tasks deviate by together, and the places of its plan only
    what is left. So the slowness of a load from outside stays with no place that plans then leave, and once
    a round anywhere is as fast as before, every place is held to be.

    Parameters
    ----------
    gain
        How much of a deviation (of its logarithm) one round corrects, in (0, 1].
    device
        From 1/4 to 4, on all rates.
    factors
        From 1/4 to 4 and beside the device's, by task and budget in per cent; the longest unseen first.
    """

    gain: float = 0.5
    device: float = 1.0
    factors: Mapping[tuple[str, float], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.gain <= 1:
            raise ConfigError(f"correction gain: got {self.gain:g}, expected above 0 and at most 1")

    def observed(self, observations: Iterable[Observation]) -> Correction:
        """The correction after a round whose plan this correction was part of."""
        seen = [one for one in observations if one.ratio > 0]
        shared = _shared(one.ratio for one in seen)
        factors = dict(self.factors)
        for one in seen:
            before = factors.pop((one.task, one.budget), None)
            if before is None:
                before = float(self._own(one.task, np.array([one.budget]))[0])
            factors[one.task, one.budget] = _bounded(before * (one.ratio / shared) ** self.gain)
        kept = list(factors.items())[-_KEPT:]
        device = _bounded(self.device * shared**self.gain)
        return Correction(gain=self.gain, device=device, factors=dict(kept))

    def of(self, task: str, budgets: Array) -> Array:
        """Factors for `task` at `budgets` (%), between and beyond the budgets seen by interpolation.

        They never fall with the budget, so that a monotone model stays monotone: factors that would are
        averaged with their neighbours.
        """
        return self.device * self._own(task, budgets)

    def is_near(self, other: Correction, tolerance: float) -> bool:
        """Whether no factor on a rate differs by more than `tolerance`, in logarithms."""
        mine, theirs = self.factors, other.factors
        apart = math.log(self.device / other.device)
        return all(
            abs(apart + math.log(mine.get(place, 1.0) / theirs.get(place, 1.0))) <= tolerance
            for place in mine.keys() | theirs.keys()
        )

    def _own(self, task: str, budgets: Array) -> Array:
        """What `of` has beside the device's factor."""
        known = sorted((budget, factor) for (name, budget), factor in self.factors.items() if name == task)
        if not known:
            return np.ones_like(budgets)
        blocks: list[list[float]] = []
        for _, factor in known:
            blocks.append([factor, 1.0])
            while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
                (high, many), (low, few) = blocks[-2], blocks.pop()
                blocks[-1] = [(high * many + low * few) / (many + few), many + few]
        rising = np.concatenate([[factor] * int(count) for factor, count in blocks])
        return np.asarray(np.interp(budgets, [budget for budget, _ in known], rising), dtype=float)


def _shared(ratios: Iterable[float]) -> float:
    """What the tasks of a round deviate by together: their median, with one more vote for no deviation.

    So one task of several says nothing of the device, and of two that differ the lesser deviation counts.
    """
    return math.exp(statistics.median([0.0, *map(math.log, ratios)]))


def _bounded(factor: float) -> float:
    return min(_MOST, max(1 / _MOST, factor))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CorrectedModel:
    """A throughput model whose rates are multiplied by a correction."""

    model: ThroughputModel
    correction: Correction

    @property
    def monotone(self) -> bool:
        """As the model: a correction never falls with the budget."""
        return self.model.monotone

    def rates(self, runs: CoRuns) -> Array:
        """Predict Pᵢ; see `ThroughputModel`."""
        rates = self.model.rates(runs)
        for i, task in enumerate(runs.tasks):
            rates[:, i] *= self.correction.of(task.task, runs.own_budgets[:, i])
        return rates


@dataclass(frozen=True, slots=True, kw_only=True)
class Moderation:
    """A limit on R_v that contention lowers and its end raises again.

    Corrections follow a load from outside within a few rounds, and rates are as predicted then: that is no
    end of it. It has ended once the device is about as fast as it used to be, or has been slow for so many
    rounds that this is what it is.

    Parameters
    ----------
    limit
        The most R_v of the next round, in per cent.
    usual
        The device's factor (`Correction.device`) before contention began; from then on it follows a faster
        device at once, and a slower one by a twentieth a round.
    low, high
        Below `low` of the predicted rates (the median over the tasks) the limit falls. Above `high` it
        rises, if the device has `low` of its usual speed.
    """

    limit: float = float("inf")
    usual: float = 1.0
    low: float = 0.8
    high: float = 0.92

    def observed(self, observations: Iterable[Observation], tasks: int, device: float) -> Moderation:
        """The limit after a round of `tasks` tasks; it stays between 100 % and 100 % for each task.

        Parameters
        ----------
        observations
            Of places that were seen before: elsewhere a deviation is the model's error and no contention.
        device
            The device's factor, after this round.
        """
        seen = list(observations)
        ratio = statistics.median(observation.ratio for observation in seen) if seen else self.high
        if math.isinf(self.limit) and ratio >= self.low:
            return replace(self, usual=device)
        usual = max(device, self.usual * (device / self.usual) ** _GETTING_USED)
        limit = self.limit
        if ratio < self.low:
            limit = max(100.0, 0.85 * min(limit, sum(observation.budget for observation in seen)))
        elif ratio > self.high and device >= self.low * usual:
            limit *= 1.1
        if limit >= 100.0 * tasks:
            limit = math.inf
        return replace(self, limit=limit, usual=usual)
