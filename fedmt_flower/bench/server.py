"""What a round costs the server as the federation grows, beside Flower's own FedAvg: host time only."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.mixes import synthetic_task
from fedmt_flower.bench.result import Bar, Json, Result, Sample
from fedmt_flower.bench.spread import spread
from fedmt_flower.device.training.initial import initial_weights
from fedmt_flower.errors import EngineError

CLAIM = (
    "a round costs the server time in proportion to its replies and, for a mean, the memory of a few models"
)

MODELS = ("R18", "M3", "S2")
_REHEARSAL = "fedmt_flower.federation.rehearsal"
_COMPARED = 100
_MEMORY_GOAL = 0.25
_GROWTH_GOAL = 1.15
_ROOM = {"temporary disk": 1.05, "memory": 1.3}
"""What is asked to be free, over what the updates take."""


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with."""
    return {
        "models": list(MODELS),
        "replies": [3, 6] if quick else [10, _COMPARED, 300, 1000],
        "repeats": 1 if quick else 8,
        "repeats above 100": 1 if quick else 3,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Rehearse rounds of both servers in processes of their own, in turn."""
    with tempfile.TemporaryDirectory(prefix="fedmt-") as directory:
        models = Path(directory) / "models.npz"
        sizes = _save_models(models, quick=bool(bench.settings["quick"]))
        left_out = dict(_too_large(bench.settings["replies"], sizes))
        complete = True
        cells = [
            cell
            for replies in bench.settings["replies"]
            for server in ("fedmt", "fedavg")
            if (cell := f"{server} | {replies}") not in left_out
        ]
        small = [cell for cell in cells if int(cell.partition(" | ")[2]) <= _COMPARED]
        # All sizes side by side as often as the large ones are taken, for what is compared between them.
        for some, key in ((cells, "repeats above 100"), (small, "repeats")):
            repeats = int(bench.settings[key])
            for cell, repeat in bench.recorder.interleave(some, repeats):
                server, _, replies = cell.partition(" | ")
                bench.recorder.add(cell, repeat, _rehearse(server, int(replies), models))
            complete &= bench.recorder.has_all(some, repeats)
    bench.facts |= {
        "megabytes of an update": {model: round(size / 1e6, 1) for model, size in sizes.items()},
        "left out": left_out,
        "temporary files": tempfile.gettempdir(),
    }
    _judge(bench)
    return complete


def report(result: Result) -> str:
    """A row for each number of replies, in Markdown."""
    lines = [
        "| replies | FedMT (s) | s of CPU | memory it adds (MB) | FedAvg (s) | s of CPU | memory (MB) |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for replies in result.settings["replies"]:
        cells = [_row(result.of(f"{server} | {replies}")) for server in ("fedmt", "fedavg")]
        lines.append(f"| {replies} | {' | '.join(cells)} |")
    notes = [f"- {cell}: {why}" for cell, why in result.facts["left out"].items()]
    return "\n".join([*lines, *(["", "Left out:", "", *notes] if notes else [])])


def _row(samples: Sequence[Sample]) -> str:
    if not samples:
        return "– | – | –"
    seconds, cpu, grown = (
        spread(sample.values[key] for sample in samples).median for key in ("seconds", "cpu_s", "grown_bytes")
    )
    return f"{seconds:.1f} | {cpu:.1f} | {grown / 1e6:.0f}"


def _save_models(path: Path, *, quick: bool) -> dict[str, int]:
    """Write every model's initial weights; the bytes of each."""
    models = {name: initial_weights(synthetic_task(name, quick=quick), 0) for name in MODELS}
    arrays = {f"{name}/{key}": array for name, state in models.items() for key, array in state.items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return {name: sum(array.nbytes for array in state.values()) for name, state in models.items()}


def _too_large(numbers: Sequence[int], sizes: dict[str, int]) -> Iterator[tuple[str, str]]:
    """The cells whose updates find no room here, and why."""
    memory, disk = psutil.virtual_memory().available, shutil.disk_usage(tempfile.gettempdir()).free
    for replies in numbers:
        for server, where, size, free in (
            ("fedmt", "temporary disk", sum(sizes.values()), disk),
            ("fedavg", "memory", max(sizes.values()), memory),
        ):
            if (need := _ROOM[where] * replies * size) > free:
                why = f"wants {need / 1e9:.0f} GB of {where}, {free / 1e9:.0f} GB are free"
                yield f"{server} | {replies}", why


def _rehearse(server: str, replies: int, models: Path) -> dict[str, Json]:
    command = [sys.executable, "-m", _REHEARSAL, server, str(replies), str(models)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(f"{server} with {replies} replies: {' '.join(done.stderr.split())[-300:]}")
    values: dict[str, Any] = json.loads(done.stdout)
    return values


def _judge(bench: Bench) -> None:
    values: dict[tuple[str, int], list[dict[str, Json]]] = {}
    for sample in bench.recorder.samples:
        server, _, replies = sample.cell.partition(" | ")
        values.setdefault((server, int(replies)), []).append(sample.values)
    most = max((replies for server, replies in values if server == "fedmt"), default=0)
    compared = min(_COMPARED, most)

    def ratios(key: str, over: tuple[str, int], under: tuple[str, int], scale: float = 1.0) -> list[float]:
        pairs = zip(values.get(over, ()), values.get(under, ()), strict=False)
        return [one[key] / other[key] * scale for one, other in pairs]

    bars = {
        f"seconds at {compared} replies, FedMT's over FedAvg's": (
            1.0,
            ratios("seconds", ("fedmt", compared), ("fedavg", compared)),
        ),
        f"seconds of CPU at {compared} replies, FedMT's over FedAvg's": (
            1.0,
            ratios("cpu_s", ("fedmt", compared), ("fedavg", compared)),
        ),
        f"memory at {compared} replies, FedMT's over FedAvg's": (
            _MEMORY_GOAL,
            ratios("grown_bytes", ("fedmt", compared), ("fedavg", compared)),
        ),
        f"seconds a reply at {most} replies over those at {compared}": (
            _GROWTH_GOAL,
            ratios("seconds", ("fedmt", most), ("fedmt", compared), compared / most if most else 1.0),
        ),
        f"memory at {most} replies over that at {compared}": (
            _GROWTH_GOAL,
            ratios("grown_bytes", ("fedmt", most), ("fedmt", compared)),
        ),
    }
    bench.bars += [Bar.at_most(name, goal, spread(found)) for name, (goal, found) in bars.items() if found]
    asked = max(bench.settings["replies"])
    bench.bars.append(Bar.counted("most replies taken", asked, most, most >= asked))
    differing = sum(
        one["digests"] != other["digests"]
        for (server, replies), own in values.items()
        if server == "fedmt"
        for one, other in zip(own, values.get(("fedavg", replies), ()), strict=False)
    )
    bench.bars.append(Bar.counted("rounds whose models differ from FedAvg's", 0, differing, not differing))
