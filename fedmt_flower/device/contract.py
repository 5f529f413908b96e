"""What an engine promises to the rooms above it; every backend keeps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from fedmt_flower.domain.round import RoundOrder, RoundReport

Weights = Mapping[str, NDArray[Any]]
"""A model's state: arrays by the names of its `state_dict`, in its order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """`task` has trained on `samples` of the `total` samples of its round (0: not known)."""

    task: str
    samples: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """A round's report, and the new weights of every task that trained and did not fail."""

    report: RoundReport
    weights: Mapping[str, Weights]


class Engine(Protocol):
    """Runs rounds on one device."""

    def run_round(
        self,
        order: RoundOrder,
        weights: Mapping[str, Weights],
        on_progress: Callable[[Progress], None] | None = None,
    ) -> RoundResult:
        """Run one round of one site.

        Parameters
        ----------
        order
            The round.
        weights
            The global weights, by task, for every task that `order` brings.
        on_progress
            Called now and then while tasks train.

        Returns
        -------
        RoundResult
            Of the tasks that `order` brings; complete also where some failed: a failed task has its error in
            its report and no weights.

        Raises
        ------
        EngineError
            If the engine itself cannot serve the round.
        """
        ...

    def close(self) -> None:
        """Let go of the engine; one that this process did not start goes on for its other clients."""
        ...
