"""What a device does while tasks run on it, sampled beside every measurement."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, Self

import psutil

from fedmt_flower.device.backends import facts

_SLOWDOWNS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""Why a GPU may clock down under load; the power cap is usual on a busy card, the others are not."""

SPOILING = frozenset(_SLOWDOWNS.values()) - {"power cap"}
"""Slowdowns that make a measurement one of the cooling, not of the tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at the device; None is a quantity that cannot be had there.

    Parameters
    ----------
    at
        Seconds of the monotonic clock.
    utilisation
        Per cent of time in which a kernel (on CPUs: any process) ran.
    memory_bytes
        Memory in use on the device.
    sm_utilisation, occupancy
        Per cent of the SMs that had work, and of their warps' places that were taken, over the
        `window_s` seconds before `at`.
    energy_j
        Joules since some moment before the first reading.
    clock_mhz, power_w
        The SMs' clock, and the card's power draw.
    slowdowns
        Why the clock is held down.
    """

    at: float
    utilisation: float
    memory_bytes: int
    sm_utilisation: float | None = None
    occupancy: float | None = None
    window_s: float = 0.0
    energy_j: float | None = None
    clock_mhz: float | None = None
    power_w: float | None = None
    slowdowns: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The device over a stretch of time: means, but for the peak of memory and the joules spent."""

    seconds: float
    utilisation: float | None
    sm_utilisation: float | None
    occupancy: float | None
    memory_bytes: int
    energy_j: float | None
    clock_mhz: float | None
    slowdowns: frozenset[str]


class Source(Protocol):
    """Where readings come from; `lacks` tells in one line what cannot be had there."""

    lacks: str
    capacity_bytes: int
    """All the memory that the device has."""

    def read(self) -> Reading:
        """A reading of this moment."""
        ...

    def close(self) -> None:
        """Let go of the device."""
        ...


class Host:
    """The host's CPUs."""

    lacks = "SM occupancy, energy and clocks are a GPU's"

    def __init__(self) -> None:
        self.capacity_bytes = int(psutil.virtual_memory().total)
        psutil.cpu_percent()  # its first answer has nothing to compare with

    def read(self) -> Reading:
        return Reading(
            at=time.monotonic(),
            utilisation=psutil.cpu_percent(),
            memory_bytes=psutil.virtual_memory().used,
        )

    def close(self) -> None:
        """Nothing is held."""


class Nvml:
    """An NVIDIA GPU through NVML; SM occupancy through its GPM counters where the card has them.

    Parameters
    ----------
    index
        The GPU, as NVML counts.
    window_s
        Seconds that an occupancy covers. NVML documents GPM for samples at least 0.1 s apart.
    """

    def __init__(self, index: int, window_s: float = 0.1) -> None:
        self._closing = ExitStack()
        self._library = self._closing.enter_context(facts.nvml())
        self._handle = self._library.nvmlDeviceGetHandleByIndex(index)
        self.capacity_bytes = int(self._library.nvmlDeviceGetMemoryInfo(self._handle).total)
        self._window_s = window_s
        self._samples: deque[tuple[float, object]] = deque()
        try:
            has_gpm = bool(self._library.nvmlGpmQueryDeviceSupport(self._handle).isSupportedDevice)
        except self._library.NVMLError:
            has_gpm = False
        self._has_gpm = has_gpm
        self.lacks = "" if has_gpm else "SM occupancy: NVML's GPM counters need Hopper or later"

    def read(self) -> Reading:
        library, handle = self._library, self._handle
        reasons = library.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
        at = time.monotonic()
        sm_utilisation, occupancy, window_s = self._counters(at) if self._has_gpm else (None, None, 0.0)
        return Reading(
            at=at,
            utilisation=float(library.nvmlDeviceGetUtilizationRates(handle).gpu),
            memory_bytes=int(library.nvmlDeviceGetMemoryInfo(handle).used),
            sm_utilisation=sm_utilisation,
            occupancy=occupancy,
            window_s=window_s,
            energy_j=library.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000,
            clock_mhz=float(library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_SM)),
            power_w=library.nvmlDeviceGetPowerUsage(handle) / 1000,
            slowdowns=frozenset(name for bit, name in _SLOWDOWNS.items() if reasons & bit),
        )

    def close(self) -> None:
        for _, sample in self._samples:
            self._library.nvmlGpmSampleFree(sample)
        self._samples.clear()
        self._closing.close()

    def _counters(self, at: float) -> tuple[float | None, float | None, float]:
        library = self._library
        latest = library.nvmlGpmSampleAlloc()
        library.nvmlGpmSampleGet(self._handle, latest)
        self._samples.append((at, latest))
        while len(self._samples) > 2 and at - self._samples[1][0] >= self._window_s:
            library.nvmlGpmSampleFree(self._samples.popleft()[1])
        since, earliest = self._samples[0]
        if at - since < self._window_s:
            return None, None, 0.0
        request = library.c_nvmlGpmMetricsGet_t()
        request.version = library.NVML_GPM_METRICS_GET_VERSION
        request.numMetrics = 2
        request.sample1, request.sample2 = earliest, latest
        request.metrics[0].metricId = library.NVML_GPM_METRIC_SM_UTIL
        request.metrics[1].metricId = library.NVML_GPM_METRIC_SM_OCCUPANCY
        library.nvmlGpmMetricsGet(request)
        values = [
            float(metric.value) if metric.nvmlReturn == library.NVML_SUCCESS else None
            for metric in request.metrics[:2]
        ]
        return values[0], values[1], at - since


class Sampler:
    """Reads a source at `hertz` in a thread of its own between `__enter__` and `__exit__`.

    Closes the source at the end. A source that fails ends the sampling; `usage` then raises its error.
    """

    def __init__(self, source: Source, hertz: float = 30.0) -> None:
        self.lacks = source.lacks
        self.capacity_bytes = source.capacity_bytes
        self._source = source
        self._period_s = 1 / hertz
        self._readings: list[Reading] = []
        self._error: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._source.close()

    def readings(self, start: float, end: float) -> tuple[Reading, ...]:
        """The readings taken from `start` to `end`, seconds of the monotonic clock."""
        if self._error is not None:
            raise self._error
        return tuple(reading for reading in tuple(self._readings) if start <= reading.at <= end)

    def fresh(self) -> Reading:
        """A reading taken after this call."""
        now = time.monotonic()
        while not (later := self.readings(now, math.inf)):
            time.sleep(self._period_s / 4)
        return later[0]

    def usage(self, start: float, end: float) -> Usage:
        """The device between two moments of the monotonic clock."""
        return summarise(self.readings(start, end), end - start)

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._period_s):
                self._readings.append(self._source.read())
        except Exception as error:  # handed to whoever asks for readings
            self._error = error


def summarise(readings: Sequence[Reading], seconds: float) -> Usage:
    """The usage over `seconds` that `readings`, all from within them, tell of.

    Counters that look back count only if their window lies within. Energy is the power's mean times the
    time where the joule counter has not moved often enough to be read at both ends.
    """
    first = readings[0].at if readings else 0.0
    looking_back = [reading for reading in readings if reading.at - reading.window_s >= first]
    return Usage(
        seconds=seconds,
        utilisation=_mean(readings, lambda reading: reading.utilisation),
        sm_utilisation=_mean(looking_back, lambda reading: reading.sm_utilisation),
        occupancy=_mean(looking_back, lambda reading: reading.occupancy),
        memory_bytes=max((reading.memory_bytes for reading in readings), default=0),
        energy_j=_energy(readings, seconds),
        clock_mhz=_mean(readings, lambda reading: reading.clock_mhz),
        slowdowns=frozenset().union(*(reading.slowdowns for reading in readings)),
    )


def _mean(readings: Sequence[Reading], value: Callable[[Reading], float | None]) -> float | None:
    values = [known for reading in readings if (known := value(reading)) is not None]
    return statistics.fmean(values) if values else None


def _energy(readings: Sequence[Reading], seconds: float) -> float | None:
    moved = [
        (later.at, later.energy_j)
        for before, later in pairwise(readings)
        if later.energy_j is not None and before.energy_j is not None and later.energy_j > before.energy_j
    ]
    if len(moved) < 2:
        power = _mean(readings, lambda reading: reading.power_w)
        return None if power is None else power * seconds
    (start, joules_before), (end, joules_after) = moved[0], moved[-1]
    return (joules_after - joules_before) / (end - start) * seconds


def source_for(backend: str, index: int) -> Source:
    """The telemetry of what an engine's backend runs on: the GPU `index`, or the host's CPUs."""
    return Nvml(index) if backend in {"mps", "timeslice"} else Host()
