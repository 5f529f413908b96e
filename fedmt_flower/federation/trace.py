"""A run's timelines in the Trace Event Format, which Perfetto and chrome://tracing open."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from fedmt_flower.domain.timeline import Span
from fedmt_flower.federation.record import Entry

_MICROSECONDS = 1e6


def trace(lines: Sequence[Entry]) -> dict[str, Any]:
    """The trace of a run: a process per site, a thread per task, a slice per phase.

    What was planned of a site's rounds is a process of its own. Times count from the moment when the run's
    first round reached a site, by the sites' own clocks. Sites that share a device appear one after another.
    """
    tasks = list(dict.fromkeys(entry.task for entry in lines))
    begin = min((entry.arrived for entry in lines if entry.spans), default=0.0)
    processes: dict[str, list[tuple[Entry, Sequence[Span], float]]] = {}
    for entry in lines:
        processes.setdefault(f"site {entry.site}", []).append((entry, entry.spans, entry.arrived))
    for entry in (entry for entry in lines if entry.planned):
        rows = processes.setdefault(f"site {entry.site}, as planned", [])
        rows.append((entry, entry.planned, entry.arrived + entry.waited_s))
    names: list[dict[str, Any]] = []
    slices: list[dict[str, Any]] = []
    for pid, (process, rows) in enumerate(processes.items(), start=1):
        names.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": process}})
        names += [
            {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": task}}
            for tid, task in enumerate(tasks, start=1)
        ]
        slices += [
            {
                "ph": "X",
                "cat": "round",
                "name": str(span.phase),
                "pid": pid,
                "tid": tasks.index(entry.task) + 1,
                "ts": (origin - begin + span.start_s) * _MICROSECONDS,
                "dur": (span.end_s - span.start_s) * _MICROSECONDS,
                "args": {"round": entry.round, "budget %": entry.budget, "level": entry.level},
            }
            for entry, spans, origin in rows
            for span in spans
        ]
    return {"displayTimeUnit": "ms", "traceEvents": names + sorted(slices, key=itemgetter("ts"))}
