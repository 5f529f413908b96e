"""Rates of tasks alone and together, cell by cell: taken here, compared in `shares`."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import Final

from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.result import Json
from fedmt_flower.device.profile.measurement import Probe, Window
from fedmt_flower.device.profile.profiler import Profiler
from fedmt_flower.device.profile.telemetry import Usage

Cells = Mapping[str, Sequence[Probe]]
"""Tasks in their seats, by the cell of their samples."""
WINDOW: Final = Window(settle_s=0.1, length_s=0.4)
"""How benchmarks take rates: many of them, each several times."""


def take_rates(bench: Bench, profiler: Profiler, cells: Cells, until: float) -> bool:
    """Measure what is missing of `cells` until that moment, interleaved; whether all is there then."""
    repeats = int(bench.settings["repeats"])
    recorder = bench.recorder
    if recorder.has_all(list(cells), repeats):
        return True
    if time.monotonic() >= until:
        return False
    profiler.workers.prepare([probe for together in cells.values() for probe in together])
    for cell, repeat in recorder.interleave(list(cells), repeats, until, alike=lambda c: seats_of(cells[c])):
        take_rate(bench, profiler, cell, repeat, cells[cell])
    return recorder.has_all(list(cells), repeats)


def seats_of(together: Sequence[Probe]) -> Hashable:
    """What is alike in co-runs whose workers are the same, or some of them.

    A worker that has rested must take its memory again, which in a random order most would need.
    """
    return frozenset(repr(probe.seat) for probe in together)


def take_rate(bench: Bench, profiler: Profiler, cell: str, repeat: int, together: Sequence[Probe]) -> None:
    """Measure one repeat of tasks running together."""
    taken = profiler.measure(together)
    values: dict[str, Json] = {
        "rates": {p.task.name: round(rate, 1) for p, rate in zip(together, taken.rates, strict=True)},
        "levels": {p.task.name: p.seat.level for p in together},
        "steps": list(taken.steps),
    }
    bench.recorder.add(cell, repeat, values | usage_values(taken.usage), taken.spoiled)


def usage_values(usage: Usage) -> dict[str, Json]:
    """A device's usage as a record keeps it."""
    values = {
        key: round(value, 3) if isinstance(value, float) else value for key, value in asdict(usage).items()
    }
    return values | {"slowdowns": sorted(usage.slowdowns)}
