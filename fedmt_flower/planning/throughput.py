"""What a throughput model is asked, and what it answers (Eq. 4)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedmt_flower.domain.profile import CoRunSample, DeviceFeatures, TaskFeatures

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CoRuns:
    """Many settings of one mix of tasks on one device.

    Parameters
    ----------
    device, tasks
        The device, and the n tasks whose settings are the columns below.
    batches
        Bᵢ in samples; shape (k, n).
    budgets
        Rᵢ in per cent, 0 for a task that does not run in that setting; shape (k, n).
    ceilings
        Budgets that each task itself may have while the others still see `budgets`, shape (k, n): a
        monotone model's answer is then the most that any budgets from these to those allow.
    """

    device: DeviceFeatures
    tasks: tuple[TaskFeatures, ...]
    batches: Array
    budgets: Array
    ceilings: Array | None = None

    @property
    def running(self) -> Mask:
        """Which tasks run; shape (k, n)."""
        running: Mask = self.budgets > 0
        return running

    @property
    def own_budgets(self) -> Array:
        """What each task itself has, in per cent; shape (k, n)."""
        return self.budgets if self.ceilings is None else self.ceilings

    @property
    def reference_rates(self) -> Array:
        """P_bᵢ in samples/s; shape (n,)."""
        return np.array([task.solo_rate for task in self.tasks])

    @property
    def solo_rates(self) -> Array:
        """What each task does alone at 100 % with its batch size, in samples/s; shape (k, n).

        Between and beyond the batch sizes that were measured it is interpolated by logarithms; where none
        was but the reference, all have its rate.
        """
        columns = zip(self.tasks, self.batches.T, strict=True)
        return np.stack([_alone(task, batches) for task, batches in columns], axis=1)


def _alone(task: TaskFeatures, batches: Array) -> Array:
    """Solo rates of `task` at `batches`."""
    curve = sorted({**dict(task.batch_rates), task.reference_batch: task.solo_rate}.items())
    if len(curve) == 1:
        return np.full(batches.shape, task.solo_rate)
    sizes, rates = np.log(np.array(curve, dtype=float)).T
    return np.asarray(np.exp(np.interp(np.log(batches), sizes, rates)))


class ThroughputModel(Protocol):
    """Predicts how fast tasks run together."""

    @property
    def monotone(self) -> bool:
        """Whether a rate never falls with its own budget, nor rises with another's or one more task."""
        ...

    def rates(self, runs: CoRuns) -> Array:
        """Predict Pᵢ in samples/s, shape (k, n): above 0 for running tasks, else 0.

        The answer for a task depends on its own setting and on the *set* of the other running tasks'
        settings, not on their order.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observed:
    """Measured `rates` (samples/s, shape (k, n)) of the settings `runs`."""

    runs: CoRuns
    rates: Array


def by_mix(samples: Iterable[CoRunSample]) -> tuple[Observed, ...]:
    """Gather samples of one device and one tuple of tasks, in the order of their first sample."""
    groups: dict[tuple[DeviceFeatures, tuple[TaskFeatures, ...]], list[CoRunSample]] = {}
    for sample in samples:
        groups.setdefault((sample.device, sample.tasks), []).append(sample)
    return tuple(
        Observed(
            runs=CoRuns(
                device=device,
                tasks=tasks,
                batches=np.array([sample.batches for sample in group], dtype=float),
                budgets=np.array([sample.budgets for sample in group], dtype=float),
            ),
            rates=np.array([sample.rates for sample in group], dtype=float),
        )
        for (device, tasks), group in groups.items()
    )


def fingerprint(samples: Sequence[CoRunSample]) -> str:
    """Identity of a set of samples: the same for the same samples in any order."""
    lines = sorted(json.dumps(asdict(sample), sort_keys=True) for sample in samples)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
