"""What a user would run today instead: a Flower run for each task, one after the other."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedmt_flower.bench import stock
from fedmt_flower.bench.deployment import Deployment, deployed, partitions
from fedmt_flower.bench.driver import Bench, memory_in_use
from fedmt_flower.bench.federation import APP
from fedmt_flower.bench.leftovers import left_bars, left_behind
from fedmt_flower.bench.mixes import BATCH
from fedmt_flower.bench.result import Bar, Json, Result
from fedmt_flower.bench.spread import Spread, spread
from fedmt_flower.domain.device import Backend
from fedmt_flower.errors import EngineError

CLAIM = "one run of all tasks ends long before a run for each of them, one after the other, would"

_SETTINGS = {
    "light": ("resnet18", "mobilenet_v3_large", "shufflenet_v2"),
    "hybrid": ("resnet50", "vgg16", "mobilenet_v3_large"),
    "heavy": ("densenet121", "vgg16", "resnet101"),
}
_SITES = 2
_GOAL = 4.0
_PATIENCE_S = 560.0


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with: a site has half of the samples, and trains on each once a round."""
    return {
        "settings": {"light": list(_SETTINGS["light"][:2])}
        if quick
        else {name: list(tasks) for name, tasks in _SETTINGS.items()},
        "overrides": ["allocation=sharing"] if quick else ["allocation=fedmt"],
        "samples": 64 if quick else 50_000,
        "batch": 16 if quick else BATCH,
        "rounds": 1 if quick else 5,
        "repeats": 1 if quick else 3,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Run each setting both ways, each time on a SuperLink and SuperNodes of its own."""
    ways = {"instead": _one_by_one, "fedmt": _together}
    cells = [f"{setting} | {way}" for setting in bench.settings["settings"] for way in ways]
    repeats = int(bench.settings["repeats"])
    memory = memory_in_use(bench.options)
    left: list[dict[str, Json]] = []
    for cell, repeat in bench.recorder.interleave(cells, repeats):
        setting, _, way = cell.partition(" | ")
        with tempfile.TemporaryDirectory(prefix="fedmt-") as directory:
            with deployed(Path(directory), partitions(_SITES)) as deployment:
                values = ways[way](bench, deployment, setting)
            left.append(left_behind(bench.options, ("FLWR_HOME", deployment.home), memory))
        bench.recorder.add(cell, repeat, values)
    _judge(bench, left)
    return bench.recorder.has_all(cells, repeats)


def report(result: Result) -> str:
    """A row for each setting, in Markdown."""
    lines = [
        "| setting | a run for each task (s) | one run of all (s) | times as fast |",
        "|---|---:|---:|---:|",
    ]
    for setting in result.settings["settings"]:
        taken = [result.of(f"{setting} | {way}") for way in ("instead", "fedmt")]
        if not all(taken):
            continue
        instead, fedmt = ([sample.values["seconds"] for sample in samples] for samples in taken)
        both = f"{spread(instead).median:.1f} | {spread(fedmt).median:.1f}"
        lines.append(f"| {setting} | {both} | {_gain(instead, fedmt).mean:.2f} |")
    return "\n".join(lines)


def _one_by_one(bench: Bench, deployment: Deployment, setting: str) -> dict[str, Json]:
    """Seconds from the first submission to the last model; a run waits for the end of the one before."""
    device = f"cuda:{bench.options.index}" if bench.options.backend is Backend.MPS else "cpu"
    mark = deployment.directory / "mark"
    began, runs = time.time(), {}
    for task in bench.settings["settings"][setting]:
        started = time.time()
        mark.unlink(missing_ok=True)
        config: dict[str, Json] = {
            "model": _model(bench, task),
            "rounds": bench.settings["rounds"],
            "samples": bench.settings["samples"],
            "batch-size": bench.settings["batch"],
            "device": device,
            "mark": str(mark),
        }
        words = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        files = {"pyproject.toml": stock.PROJECT, "stock_app.py": stock.APP}
        deployment.run(files, words, patience_s=_PATIENCE_S)
        if not mark.exists():
            raise EngineError(f"the run of {task} ended without a model; its server aggregated nothing")
        runs[task] = round(float(mark.read_text()) - started, 2)
    return {"seconds": round(float(mark.read_text()) - began, 2), "runs": runs}


def _together(bench: Bench, deployment: Deployment, setting: str) -> dict[str, Json]:
    """Seconds from the submission of one run to the models of its last round of training."""
    folder = deployment.directory / "run"
    tasks = bench.settings["settings"][setting]
    own = {"samples": bench.settings["samples"], "batch_size": bench.settings["batch"], "in_channels": 3}
    overrides = [
        f"tasks={setting}",
        *(f"~tasks.{task}" for task in _SETTINGS[setting] if task not in tasks),
        *(f"tasks.{task}.model={_model(bench, task)}" for task in tasks),
        *(f"++tasks.{task}.parameters.{key}={value}" for task in tasks for key, value in own.items()),
        *map(str, bench.settings["overrides"]),
        f"device={bench.options.backend}",
        f"device.index={bench.options.index}",
        f"federation.sites={_SITES}",
        f"federation.rounds={bench.settings['rounds']}",
        f"folder={folder}",
    ]
    began = time.time()
    deployment.run({"pyproject.toml": APP}, f'fedmt="{" ".join(overrides)}"', patience_s=_PATIENCE_S)
    entries = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    failed = [f"{entry['site']}, {entry['task']}: {entry['error']}" for entry in entries if entry["error"]]
    if failed:
        raise EngineError(f"setting {setting}: {failed[0]}")
    # The exchange that evaluates the last models begins when they are there.
    ended = min(entry["started"] for entry in entries if entry["final"])
    return {"seconds": round(ended - began, 2), "backend": entries[0]["backend"]}


def _model(bench: Bench, task: str) -> str:
    return "lenet" if bench.settings["quick"] else task


def _gain(instead: list[float], fedmt: list[float]) -> Spread:
    return spread(one / other for one, other in zip(instead, fedmt, strict=False))


def _judge(bench: Bench, left: Sequence[Mapping[str, Json]]) -> None:
    taken: dict[str, list[float]] = {}
    for sample in bench.recorder.samples:
        taken.setdefault(sample.cell, []).append(sample.values["seconds"])
    for setting in bench.settings["settings"]:
        instead, fedmt = (taken.get(f"{setting} | {way}", []) for way in ("instead", "fedmt"))
        if instead and fedmt:
            bar = f"{setting}: a run for each task over one run of all"
            bench.bars.append(Bar.at_least(bar, _GOAL, _gain(instead, fedmt)))
    if left:
        most = {key: max((one[key] for one in left), default=0) for key in ("processes", "gpu_memory_bytes")}
        bench.bars += left_bars(most)
