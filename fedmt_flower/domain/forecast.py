"""What a plan promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedmt_flower.domain.timeline import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A round as it is predicted to run.

    Parameters
    ----------
    makespan_s
        Seconds from the first download's start to the last upload's end.
    lower_bound_s
        Seconds below which no start order (and no batch sizes among those searched) can go, at the same
        predicted rates.
    timeline
        Downloads, computation and uploads, in seconds since the round's start.
    rates
        Samples/s of each task while all tasks run.
    constant_s
        The makespan if each task kept that rate throughout: the paper's Dᵢ/Pᵢ.
    basis
        What the prediction rests on, in a few words.
    """

    makespan_s: float
    lower_bound_s: float
    timeline: tuple[Span, ...]
    rates: Mapping[str, float]
    constant_s: float
    basis: str = ""

    @property
    def gap(self) -> float:
        """How far the makespan may be from the best, as a fraction of the lower bound."""
        return self.makespan_s / self.lower_bound_s - 1.0 if self.lower_bound_s > 0 else 0.0
