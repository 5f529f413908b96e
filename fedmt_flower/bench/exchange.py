"""What a deployed round costs where the tasks have next to nothing to do: Flower's own time. Host only."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.deployment import deployed, partitions
from fedmt_flower.bench.result import Bar, Json, Result
from fedmt_flower.bench.spread import spread

CLAIM = "Flower's own time in a deployed round is short where messages start as the documentation advises"

_SITES = 2
_TASKS = ("resnet18", "mobilenet_v3_large", "shufflenet_v2")
_ADVISED = {"as Flower starts them": False, "as advised": True}
"""The cells, by how messages start."""
_GOAL_S = 4.5
_PATIENCE_S = 300.0


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with: three tasks of a tiny model and a few samples."""
    own = {"model": "lenet", "parameters.batch_size": 8}
    new = {"parameters.samples": 16, "parameters.in_channels": 3}
    return {
        "overrides": [
            "tasks=light",
            "allocation=sharing",
            *(f"tasks.{task}.{key}={value}" for task in _TASKS for key, value in own.items()),
            *(f"++tasks.{task}.{key}={value}" for task in _TASKS for key, value in new.items()),
        ],
        "rounds": 2 if quick else 5,
        "repeats": 1 if quick else 2,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Run the federation both ways in turn, each time on a SuperLink and SuperNodes of its own."""
    repeats = int(bench.settings["repeats"])
    for cell, repeat in bench.recorder.interleave(list(_ADVISED), repeats):
        bench.recorder.add(cell, repeat, _lengths(_entries(bench, advised=_ADVISED[cell])))
    found = [
        seconds
        for sample in bench.recorder.samples
        if sample.cell == "as advised"
        for seconds in sample.values["own_s"]
    ]
    if found:
        name = "seconds of a round outside the engine, as advised"
        bench.bars.append(Bar.at_most(name, _GOAL_S, spread(found)))
    return bench.recorder.has_all(list(_ADVISED), repeats)


def report(result: Result) -> str:
    """A row for each way of starting messages, in Markdown."""
    lines = [
        "| messages start | round (s) | outside the engine (s) | from | to |",
        "|---|---:|---:|---:|---:|",
    ]
    for cell in _ADVISED:
        rounds, own = (
            [seconds for sample in result.of(cell) for seconds in sample.values[column]]
            for column in ("round_s", "own_s")
        )
        if own:
            medians = f"{spread(rounds).median:.1f} | {spread(own).median:.1f}"
            lines.append(f"| {cell} | {medians} | {min(own):.1f} | {max(own):.1f} |")
    return "\n".join(lines)


def _entries(bench: Bench, *, advised: bool) -> list[dict[str, Any]]:
    """The lines of a run's rounds."""
    with (
        tempfile.TemporaryDirectory(prefix="fedmt-") as directory,
        deployed(Path(directory), partitions(_SITES), advised=advised) as deployment,
    ):
        overrides = (
            *map(str, bench.settings["overrides"]),
            "device=cpu",
            f"federation.sites={_SITES}",
            f"federation.rounds={bench.settings['rounds']}",
        )
        return deployment.play(overrides, Path(directory) / "run", patience_s=_PATIENCE_S)


def _lengths(entries: Sequence[dict[str, Any]]) -> dict[str, Json]:
    """Seconds from the begin of each round to that of the next but for the first, in which engines start."""
    begun = {entry["round"]: entry["started"] for entry in entries}
    served = {
        number: max(e["waited_s"] + e["wall_s"] for e in entries if e["round"] == number) for number in begun
    }
    lengths = {one: begun[other] - begun[one] for one, other in pairwise(sorted(begun)) if one > 1}
    return {
        "round_s": [round(seconds, 3) for seconds in lengths.values()],
        "own_s": [round(seconds - served[number], 3) for number, seconds in lengths.items()],
    }
