"""How budgets become seats on a device: one module per backend that has worker processes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from fedmt_flower.device.ipc.seat import Seat
from fedmt_flower.domain.device import Backend, DeviceSettings
from fedmt_flower.domain.plan import Sharing
from fedmt_flower.domain.task import Scalar, Task
from fedmt_flower.errors import EngineError


class DeviceBackend(Protocol):
    """What the engine needs to know of its device; lives in the engine's process."""

    name: str
    max_workers: int
    """Most workers that the device takes at once."""

    @property
    def spares(self) -> bool:
        """Whether its memory allows a task to have warm workers at several budgets."""
        ...

    def open(self) -> None:
        """Make the device ready (start what must run beside the workers); EngineError if it cannot be."""
        ...

    def seat(self, budget: float, sharing: Sharing, *, yields: bool = False) -> Seat:
        """The seat of a task with `budget` % (0, 100] in a round that shares the device as `sharing` says.

        A task that `yields` lets the others go first, where the device can do that.
        """
        ...

    def sound(self, budget: float) -> float:
        """The largest share of at most `budget` % (0, 100] in which steps of less than 32 bits are right."""
        ...

    def welcome(self, pid: int, seat: Seat) -> None:
        """Check that the worker `pid`, its device initialised, sits where it should; EngineError if not."""
        ...

    def healthy(self) -> str:
        """One line telling why no worker can go on; empty if they can."""
        ...

    def lost(self) -> str:
        """One line telling what workers at work have just lost; empty if nothing. Asked often, so cheap."""
        ...

    def memory(self) -> tuple[int, int]:
        """Bytes of memory in use on the device, and those that it has; EngineError if it does not tell."""
        ...

    def reopen(self) -> None:
        """Make the device ready anew, after the last worker has left; EngineError if it cannot be."""
        ...

    def evict(self, pid: int) -> None:
        """Take the worker `pid`, which is about to be killed, from the device."""
        ...

    def close(self) -> None:
        """End what `open` started, after the last worker has left."""
        ...


def sound_budget(
    backend: DeviceBackend, task: Task, budget: float, parameters: Mapping[str, Scalar] | None = None
) -> float:
    """`budget` % for `task` with a round's `parameters`, or the next below in which its steps are right."""
    return backend.sound(budget) if task.step_rules(parameters).is_reduced else budget


def chosen(settings: DeviceSettings) -> Backend:
    """The backend of `settings`; where that is left open, MPS if NVML finds a GPU, else CPUs."""
    if settings.backend is not Backend.AUTO:
        return settings.backend
    from fedmt_flower.device.backends import facts

    return Backend.MPS if facts.gpu_count() else Backend.CPU


def device_name(settings: DeviceSettings) -> str:
    """What the device of `settings` is called, in file names too: ``cpu``, ``gpu0``."""
    return f"gpu{settings.index}" if chosen(settings) is Backend.MPS else "cpu"


def make_backend(settings: DeviceSettings, directory: Path) -> DeviceBackend:
    """The backend of `settings`, whose engine lives in `directory`; EngineError if it needs no engine."""
    match chosen(settings):
        case Backend.MPS:
            from fedmt_flower.device.backends.mps import MpsBackend

            return MpsBackend(settings.index, directory)
        case Backend.CPU:
            from fedmt_flower.device.backends.cpu import CpuBackend

            return CpuBackend()
        case other:
            raise EngineError(f"backend {other}: runs in its client's process and has no engine")
