"""Where a worker runs: its backend's answer to a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A worker's place on its device, fixed when the worker starts.

    Parameters
    ----------
    device
        A torch device: ``cpu`` or ``cuda:0`` (a worker sees one GPU only).
    level
        What the budget comes to there: streaming multiprocessors, or threads. Two budgets of one level
        are one seat.
    environment
        Variables that the worker sets before torch touches the device.
    """

    device: str
    level: int
    environment: Mapping[str, str] = field(default_factory=dict)
