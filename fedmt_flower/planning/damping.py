"""Smoothed loads, by which batch sizes follow what tasks have to do without oscillating (§ V-A)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from fedmt_flower.errors import ConfigError

_MOST: Final = 4.0
"""No task's lag counts for more than this, nor for less than its inverse."""
_KEPT: Final = 0.8
"""A lag fades to this power of itself: a difference that batch sizes cannot mend must not grow round by round
until they are at their limits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loads:
    """What each task is held to have to do, for Eq. 6 in place of Dᵢ.

    A load is a smoothed volume times a lag. Volumes are smoothed by their logarithms: a spike weighs as
    much as a drop of the same factor. A task's lag grows while it finishes later than the others would
    at the volumes they had, falls while it finishes earlier, and fades to 1 of itself.

    Parameters
    ----------
    gain
        Weight of the newest round, in (0, 1]; 1 forgets all others.
    volumes
        Smoothed Dᵢ in samples, by task.
    lags
        Factors from 1/4 to 4, by task; 1 until a round was observed.
    """

    gain: float = 0.3
    volumes: Mapping[str, float] = field(default_factory=dict)
    lags: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.gain <= 1:
            raise ConfigError(f"damping gain: got {self.gain:g}, expected above 0 and at most 1")

    def of(self, task: str) -> float:
        """The load of `task` in samples; KeyError if its volume was never seen."""
        return self.volumes[task] * self.lags.get(task, 1.0)

    def seen(self, volumes: Mapping[str, float]) -> Loads:
        """The loads once a round's volumes are known; the first volume of a task counts at once."""
        smoothed = {
            task: math.exp(self.gain * math.log(volume) + (1 - self.gain) * math.log(self.volumes[task]))
            if task in self.volumes
            else float(volume)
            for task, volume in volumes.items()
        }
        return Loads(gain=self.gain, volumes={**self.volumes, **smoothed}, lags=self.lags)

    def finished(self, volumes: Mapping[str, float], finish_s: Mapping[str, float]) -> Loads:
        """The loads once a round has run: when each task finished (s), with the volumes it had."""
        tasks = [task for task in finish_s if finish_s[task] > 0 and task in self.volumes]
        if len(tasks) < 2:
            return self
        late = {task: math.log(finish_s[task] * self.volumes[task] / volumes[task]) for task in tasks}
        mean = sum(late.values()) / len(late)
        lags = {
            task: min(
                _MOST,
                max(1 / _MOST, self.lags.get(task, 1.0) ** _KEPT * math.exp(self.gain * (late[task] - mean))),
            )
            for task in tasks
        }
        return Loads(gain=self.gain, volumes=self.volumes, lags={**self.lags, **lags})
