"""Two SuperNodes as two sites of one engine, as a user deploys them."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.deployment import deployed, partitions
from fedmt_flower.bench.leftovers import left_bars, left_behind, memory_in_use
from fedmt_flower.bench.result import Bar, Json, Result
from fedmt_flower.device.engine.connection import running
from fedmt_flower.domain.plan import Sharing

CLAIM = "a deployed federation keeps its workers warm on the device, under its budgets, and leaves nothing"

_SITES = 2


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with: overrides as `fedmt sim` takes them."""
    tasks = (
        ("forms", "progression", "cells") if quick else ("resnet18", "mobilenet_v3_large", "shufflenet_v2")
    )
    own = [f"++tasks.{task}.parameters.{'epochs=1' if quick else 'volume=0.25'}" for task in tasks]
    return {
        "overrides": [f"tasks={'hospital' if quick else 'fashion'}", "allocation=isolated", *own],
        "tasks": list(tasks),
        "rounds": 2 if quick else 3,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Start SuperLink and SuperNodes, run the app to its end, and look at what it wrote and what it left."""
    bench.recorder.clear()
    memory = memory_in_use(bench.options)
    with tempfile.TemporaryDirectory(prefix="fedmt-") as directory:
        with deployed(Path(directory), partitions(_SITES), advised=True) as deployment:
            began = time.monotonic()
            folder = Path(directory) / "run"
            overrides = (
                *map(str, bench.settings["overrides"]),
                f"device={bench.options.backend}",
                f"device.index={bench.options.index}",
                f"federation.sites={_SITES}",
                f"federation.rounds={bench.settings['rounds']}",
            )
            entries = deployment.play(overrides, folder, patience_s=max(60.0, bench.recorder.left_s))
            bench.facts["seconds from submission to end"] = round(time.monotonic() - began, 1)
            summary = json.loads((folder / "summary.json").read_text())
            for engine in running():
                bench.facts["engine"] = {
                    "workers": len(engine.status().workers),
                    "rounds": engine.status().rounds,
                }
        left = left_behind(bench.options, ("FLWR_HOME", deployment.home), memory)
    for entry in entries:
        kept = ("status", "error", "backend", "level", "pid", "samples", "compute_s", "wall_s", "waited_s")
        values = {key: entry.get(key) for key in (*kept, "train_metrics", "evaluate_metrics")}
        bench.recorder.add(f"{entry['site']} | {entry['task']}", entry["round"], values)
    bench.facts |= {"summary": summary["tasks"], "left": left}
    _judge(bench, entries, left)
    return True


def report(result: Result) -> str:
    """How each task fared on the sites, a row for each, in Markdown."""
    lines = [
        "| task | metric before | after | samples/s on a site | SMs | worker |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for task in result.settings["tasks"]:
        taken = [sample.values for sample in result.samples if sample.cell.endswith(f"| {task}")]
        trained = [values for values in taken if values.get("samples")]
        summary = result.facts["summary"][task]
        rate = statistics.median(values["samples"] / values["compute_s"] for values in trained)
        levels = sorted({values["level"] for values in trained})
        pids = len({values["pid"] for values in trained})
        lines.append(
            f"| {task} | {summary['before']:.3f} | {summary['after']:.3f} | {rate:.0f} | "
            f"{', '.join(map(str, levels))} | {pids} process for {len(trained)} rounds |"
        )
    return "\n".join(lines)


def _judge(bench: Bench, entries: Sequence[dict[str, Any]], left: dict[str, Json]) -> None:
    tasks = bench.settings["tasks"]
    failures = [entry for entry in entries if entry["status"] != "done"]
    most_pids = max(len({e["pid"] for e in entries if e["task"] == task}) for task in tasks)
    expected = _level(bench, 100 / len(tasks))
    strayed = [entry for entry in entries if entry["level"] != expected]
    backends = {entry["backend"] for entry in entries}
    bench.facts["level"] = expected
    bench.bars += [
        Bar.counted("failed task rounds", 0, len(failures), not failures),
        Bar.counted("processes per task, over all rounds and sites", 1, most_pids, most_pids == 1),
        Bar.counted("task rounds off their budget's SM count", 0, len(strayed), not strayed),
        Bar.counted(
            f"rounds not on the backend {bench.options.backend}",
            0,
            len(backends - {str(bench.options.backend)}),
            backends == {str(bench.options.backend)},
        ),
        *left_bars(left),
    ]


def _level(bench: Bench, budget: float) -> int:
    """What a budget comes to on the benchmark's device."""
    with tempfile.TemporaryDirectory(prefix="fedmt-") as directory:
        backend = bench.backend(Path(directory))
        backend.open()
        try:
            return backend.seat(budget, Sharing.CAPPED).level
        finally:
            backend.close()
