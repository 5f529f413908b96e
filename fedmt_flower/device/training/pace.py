"""How far a host runs ahead of its device."""

from __future__ import annotations

from collections import deque

import torch

AHEAD = 2
"""Steps that the host may queue before the device has finished them: enough to keep it busy, and few enough
that the moment when the host learns of a step's end is the moment when it ended."""


class Pace:
    """Keeps a loop of steps at most `AHEAD` of them before `device`, without waiting for each."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._pending: deque[torch.cuda.Event] = deque()

    def keep(self) -> None:
        """To be called after each step: wait while the device is too far behind."""
        if not self._on_gpu:
            return
        # A host that spins while it waits takes a core from the tasks beside it.
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        self._pending.append(event)
        if len(self._pending) > AHEAD:
            self._pending.popleft().synchronize()
