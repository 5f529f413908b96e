"""What measuring sees of a task: its steps, and the kernels of these."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """An optimiser step: when the device finished it (monotonic clock), and the samples it used."""

    finished: float
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel that ran on the device (on CPUs: an operator); times in seconds of the monotonic clock."""

    name: str
    start: float
    seconds: float
