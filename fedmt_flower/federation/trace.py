"""A run's observed timelines in the Trace Event Format, which Perfetto and chrome://tracing open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedmt_flower.federation.record import Entry

_MICROSECONDS = 1e6


def trace(lines: Sequence[Entry]) -> dict[str, Any]:
    """The trace of a run: a process per site, a thread per task, a slice per phase.

    Times count from the moment when the run's first round reached a site, by the sites' own clocks. Sites
    that share a device appear one after another.
    """
    sites = list(dict.fromkeys(entry.site for entry in lines))
    tasks = list(dict.fromkeys(entry.task for entry in lines))
    begin = min((entry.arrived for entry in lines if entry.spans), default=0.0)
    names: list[dict[str, Any]] = []
    for pid, site in enumerate(sites, start=1):
        names.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": f"site {site}"}})
        names += [
            {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": task}}
            for tid, task in enumerate(tasks, start=1)
        ]
    slices = [
        {
            "ph": "X",
            "cat": "round",
            "name": str(span.phase),
            "pid": sites.index(entry.site) + 1,
            "tid": tasks.index(entry.task) + 1,
            "ts": (entry.arrived - begin + span.start_s) * _MICROSECONDS,
            "dur": (span.end_s - span.start_s) * _MICROSECONDS,
            "args": {"round": entry.round, "budget %": entry.budget, "level": entry.level},
        }
        for entry in lines
        for span in entry.spans
    ]
    return {"displayTimeUnit": "ms", "traceEvents": names + slices}
