"""What a round moves over a device's link, and how transfers and computation overlap."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from fedmt_flower.errors import ConfigError


class Overlap(StrEnum):
    """How the transfers of a round overlap with its computation (§ V-B)."""

    OFF = "off"
    """Phased: all downloads, then all computation, then all uploads."""
    SERIAL = "serial"
    """One transfer in flight over both directions; computation overlaps freely."""
    FIFO = "fifo"
    """Pipelined, tasks in the order given."""
    WORKLOAD = "workload"
    """Pipelined, the largest workload Oᵢ·Dᵢ/Bᵢ first."""
    FLEXIBLE = "flexible"
    """Pipelined, in the order (and with the batch sizes) that Algorithm 1 finds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A device's link: one transfer at a time in each direction, or in both together at half duplex.

    A transfer holds its direction for `latency_s` plus its bits over the rate. Where a download and an
    upload wait for a half-duplex link, the download goes first: it lets another task compute.

    Parameters
    ----------
    up_mbps, down_mbps
        Rates in Mbit/s (10⁶ bits), above 0.
    full_duplex
        Whether both directions run at once.
    latency_s
        Seconds, 0 or more.
    """

    up_mbps: float
    down_mbps: float
    full_duplex: bool = True
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        problems = [
            f"network {name}: got {rate:g} Mbit/s, expected a finite rate above 0"
            for name, rate in (("up", self.up_mbps), ("down", self.down_mbps))
            if not (math.isfinite(rate) and rate > 0)
        ]
        if not (math.isfinite(self.latency_s) and self.latency_s >= 0):
            problems.append(f"network latency: got {self.latency_s:g} s, expected 0 or more")
        if problems:
            raise ConfigError(*problems)

    def __str__(self) -> str:
        """The link in a few words, such as ``15 Mbit/s up and 60 down, one direction at a time``."""
        if self.up_mbps == self.down_mbps:
            words = [f"{self.up_mbps:g} Mbit/s each way"]
        else:
            words = [f"{self.up_mbps:g} Mbit/s up and {self.down_mbps:g} down"]
        if not self.full_duplex:
            words.append("one direction at a time")
        if self.latency_s:
            words.append(f"{1000 * self.latency_s:g} ms latency")
        return ", ".join(words)

    def download_s(self, size: int) -> float:
        """Seconds for which `size` bytes hold the downlink."""
        return self.latency_s + size * 8e-6 / self.down_mbps

    def upload_s(self, size: int) -> float:
        """Seconds for which `size` bytes hold the uplink."""
        return self.latency_s + size * 8e-6 / self.up_mbps


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """What one task has to do in a round.

    Parameters
    ----------
    task
        The task's name.
    samples
        Samples to train on (E epochs over Dᵢ count E·Dᵢ), above 0.
    download_bytes, upload_bytes
        Sizes of the model received and of the update sent, 0 or more.
    """

    task: str
    samples: int
    download_bytes: int = 0
    upload_bytes: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"volume of {self.task}: got {self.samples} samples, expected at least 1")
        if self.download_bytes < 0 or self.upload_bytes < 0:
            raise ConfigError(
                f"volume of {self.task}: got {self.download_bytes} bytes down and {self.upload_bytes} up, "
                "expected 0 or more"
            )
