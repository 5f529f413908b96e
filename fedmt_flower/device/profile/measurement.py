"""What is measured of tasks on a device, for how long, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass

from fedmt_flower.device.ipc.seat import Seat
from fedmt_flower.device.profile.telemetry import Usage
from fedmt_flower.domain.task import Task
from fedmt_flower.errors import FedMTError


@dataclass(frozen=True, slots=True)
class Probe:
    """A task in a seat, at the batch size that its parameters name."""

    task: Task
    seat: Seat

    @property
    def key(self) -> str:
        """What tells this probe's worker from others."""
        return repr((self.task.name, self.seat, sorted(self.task.parameters.items())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """How a rate is taken: after `settle_s` of running, over `length_s` or as long as `steps` steps take."""

    settle_s: float = 0.15
    length_s: float = 0.6
    longest_s: float = 5.0
    steps: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Speeds of tasks that ran together.

    Parameters
    ----------
    rates
        Pᵢ in samples per second, in the order of the probes.
    steps
        How many steps each rate rests on.
    usage
        The device meanwhile.
    spoiled
        What spoiled earlier attempts at this measurement.
    """

    rates: tuple[float, ...]
    steps: tuple[int, ...]
    usage: Usage
    spoiled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Makespan:
    """A round's training run to the end.

    Parameters
    ----------
    seconds
        From the start of the first task to the end of the last.
    ends
        When each task ended, in seconds after the start.
    usage
        The device meanwhile.
    began
        The start, on the monotonic clock.
    spoiled
        What spoiled earlier attempts at this measurement.
    """

    seconds: float
    ends: tuple[float, ...]
    usage: Usage
    began: float
    spoiled: tuple[str, ...] = ()


class Spoiled(FedMTError):
    """A measurement that does not count, because something went wrong during it."""
