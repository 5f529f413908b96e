"""Which device an engine owns, and how it runs tasks there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from fedmt_flower.errors import ConfigError


class Backend(StrEnum):
    """How an engine runs tasks."""

    AUTO = "auto"
    """`mps` where there is an NVIDIA GPU, else `cpu`."""
    MPS = "mps"
    """A process per task on an NVIDIA GPU, under MPS; a budget is a share of the GPU's SMs."""
    CPU = "cpu"
    """A process per task on the host's CPUs; a budget is a number of threads."""
    INLINE = "inline"
    """In the calling process, one task after another, budgets unused: for a debugger and for tests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSettings:
    """The device of a site.

    Parameters
    ----------
    backend
        How tasks are run.
    index
        Which GPU, counted as NVML counts them; unused without a GPU.
    idle_timeout_s
        Seconds without a client after which an engine ends itself and its workers.
    deadline_s
        Seconds after which a task of a round is given up; None waits as long as it takes.
    metrics_port
        Port of the loopback at which an engine gives its metrics to Prometheus, and to any other user of the
        host; None gives them only to this user, through `fedmt engine metrics`.
    """

    backend: Backend = Backend.AUTO
    index: int = 0
    idle_timeout_s: float = 600.0
    deadline_s: float | None = None
    metrics_port: int | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.index < 0:
            problems.append(f"device index: got {self.index}, expected 0 or more")
        if not (math.isfinite(self.idle_timeout_s) and self.idle_timeout_s > 0):
            problems.append(f"idle_timeout_s: got {self.idle_timeout_s}, expected more than 0 seconds")
        if self.deadline_s is not None and not self.deadline_s > 0:
            problems.append(f"deadline_s: got {self.deadline_s}, expected more than 0 seconds, or none")
        if self.metrics_port is not None and not 0 < self.metrics_port < 1 << 16:
            problems.append(f"metrics_port: got {self.metrics_port}, expected 1 to 65535, or none")
        if problems:
            raise ConfigError(*problems)
