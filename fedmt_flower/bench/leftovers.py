"""What a benchmark leaves behind on its host and on its GPU."""

from __future__ import annotations

import time
from collections.abc import Mapping

import psutil

from fedmt_flower.bench.bench import Options
from fedmt_flower.bench.result import Bar, Json
from fedmt_flower.device.profile.telemetry import source_for
from fedmt_flower.domain.device import Backend

_MEMORY_BYTES = 64 << 20
"""How far the GPU's memory in use may be from what it was before: other processes come and go."""


def memory_in_use(options: Options) -> int:
    """Bytes in use on the benchmark's device."""
    source = source_for(options.backend, options.index)
    try:
        return source.read().memory_bytes
    finally:
        source.close()


def processes_marked(variable: str, value: str) -> list[int]:
    """The processes that were started with `variable` set to `value` and have not ended."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(variable) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:  # gone meanwhile, or another user's
            continue
    return found


def left_behind(
    options: Options, mark: tuple[str, str], memory: int, *, patience_s: float = 20.0
) -> dict[str, Json]:
    """Processes and GPU memory that have not gone a while after the end of everything.

    Parameters
    ----------
    mark
        A variable in the environment of the benchmark's processes, and its value.
    memory
        Bytes that were in use on the device before.
    """
    deadline = time.monotonic() + patience_s
    while True:
        processes = processes_marked(*mark)
        more = memory_in_use(options) - memory if options.backend is Backend.MPS else 0
        if (not processes and more < _MEMORY_BYTES) or time.monotonic() > deadline:
            return {"processes": processes, "gpu_memory_bytes": more}
        time.sleep(0.1)


def left_bars(left: Mapping[str, Json]) -> list[Bar]:
    """The goals that nothing is left."""
    processes, more = left["processes"], left["gpu_memory_bytes"]
    return [
        Bar.counted("processes left behind", 0, len(processes), not processes),
        Bar.counted("MB of GPU memory left behind", _MEMORY_BYTES / 1e6, more / 1e6, more < _MEMORY_BYTES),
    ]
