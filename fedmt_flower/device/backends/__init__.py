"""How budgets become seats on a device: one module per backend that has worker processes."""

from __future__ import annotations

from typing import Protocol

from fedmt_flower.device.seat import Seat
from fedmt_flower.domain.plan import Sharing


class DeviceBackend(Protocol):
    """What the engine needs to know of its device; lives in the engine's process."""

    name: str

    def open(self) -> None:
        """Make the device ready (start what must run beside the workers); EngineError if it cannot be."""
        ...

    def seat(self, budget: float, sharing: Sharing) -> Seat:
        """The seat of a task with `budget` % (0, 100] in a round that shares the device as `sharing` says."""
        ...

    def close(self) -> None:
        """End what `open` started, after the last worker has left."""
        ...
