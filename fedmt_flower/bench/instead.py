"""What a user would run today instead: a Flower run for each task, one after the other."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

from fedmt_flower.bench import stock
from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.deployment import Deployment, NotEnded, deployed, partitions
from fedmt_flower.bench.leftovers import left_bars, left_behind, memory_in_use
from fedmt_flower.bench.mixes import BATCH
from fedmt_flower.bench.result import Bar, Json, Result, Sample
from fedmt_flower.device.backends import facts
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
_FLOWER_S = 12.0
"""What Flower itself takes for a round of its own strategy, at least: it tells whether there is time."""
_FAST = {"precision": "bfloat16", "memory_format": "channels_last"}
"""Beside the graphs that tasks take by themselves."""


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with: a site has half of the samples, and trains on each once a round."""
    return {
        "settings": {"light": list(_SETTINGS["light"][:1])}
        if quick
        else {name: list(tasks) for name, tasks in _SETTINGS.items()},
        "overrides": ["allocation=sharing"] if quick else ["allocation=fedmt"],
        "step": {} if quick else _FAST,
        "samples": 64 if quick else 20_000,
        "batch": 16 if quick else BATCH,
        "rounds": 1 if quick else 5,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Run each setting both ways, each run on a SuperLink and SuperNodes of its own.

    A task that two settings have is run alone once for both.
    """
    recorder = bench.recorder
    cells = {setting: _cells(setting, tasks) for setting, tasks in bench.settings["settings"].items()}
    left: list[dict[str, Json]] = []
    for own in cells.values():  # one setting whole rather than a part of each
        for cell, number in recorder.interleave(own, 1, expected_s=_expected_s(bench)):
            with bench.part(cell):
                _take(bench, cell, number, left)
    _judge(bench, left)
    return all(recorder.has_all(own, 1) for own in cells.values())


def report(result: Result) -> str:
    """A row for each setting, in Markdown."""
    lines = [
        "| setting | a run for each task (s) | one run of all (s) | times as fast |",
        "|---|---:|---:|---:|",
    ]
    for setting, tasks in result.settings["settings"].items():
        if both := _seconds(result.samples, setting, tasks):
            instead, fedmt = both
            lines.append(f"| {setting} | {instead:.1f} | {fedmt:.1f} | {instead / fedmt:.2f} |")
    alone = [sample for sample in result.samples if sample.cell.endswith(" | alone")]
    if alone:
        took = (f"{sample.cell.split(' | ')[0]} {sample.values['seconds']:.0f}" for sample in alone)
        lines += ["", f"A run for each task, seconds to its last model: {', '.join(took)}."]
    step = result.settings["step"]
    if step:
        lines += [
            "",
            f"One run of all: {', '.join(step.values())}, steps captured as graphs; a run for each: plain.",
        ]
    return "\n".join(lines)


def _expected_s(bench: Bench) -> float:
    """Seconds that a run may take: as long as the longest so far, also of another setting."""
    taken = (s.values for s in bench.recorder.samples)
    longest = max((float(v["to_end_s"] if "to_end_s" in v else v["seconds"]) for v in taken), default=0.0)
    return max(longest, _FLOWER_S * float(bench.settings["rounds"]))


def _cells(setting: str, tasks: Sequence[str]) -> list[str]:
    """What has to be run for a setting."""
    return [*(f"{task} | alone" for task in tasks), f"{setting} | fedmt"]


def _take(bench: Bench, cell: str, number: int, left: list[dict[str, Json]]) -> None:
    """Run what has to be run for `cell` unless the time is up before it ends."""
    name, _, way = cell.partition(" | ")
    try:
        values = (_alone if way == "alone" else _together)(bench, name, left)
    except NotEnded:
        if bench.recorder.left_s > 0:
            raise
    else:
        bench.recorder.add(cell, number, values)


@contextmanager
def _deployed(
    bench: Bench,
    left: list[dict[str, Json]],
    settings: Mapping[str, str] = MappingProxyType({}),
    *,
    advised: bool = False,
) -> Iterator[Deployment]:
    """A deployment; what it leaves goes to `left`, unless it was cut off."""
    memory = memory_in_use(bench.options)
    with tempfile.TemporaryDirectory(prefix="fedmt-") as directory:
        with deployed(Path(directory), partitions(_SITES), settings=settings, advised=advised) as deployment:
            yield deployment
        left.append(left_behind(bench.options, ("FLWR_HOME", deployment.home), memory))


def _patience_s(bench: Bench) -> float:
    return min(_PATIENCE_S, max(0.0, bench.recorder.left_s))


def _alone(bench: Bench, task: str, left: list[dict[str, Json]]) -> dict[str, Json]:
    """Seconds from the submission of a task's own run to its last model, and to the end of its evaluation."""
    device, settings = "cpu", {}
    if bench.options.backend is Backend.MPS:
        # By its name: CUDA may count GPUs in another order than NVML.
        device, settings = "cuda:0", {"CUDA_VISIBLE_DEVICES": facts.gpu(bench.options.index).uuid}
    with _deployed(bench, left, settings) as deployment:
        mark = deployment.directory / "mark"
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
        began = time.time()
        deployment.run(files, words, patience_s=_patience_s(bench))
        if not mark.exists():
            raise EngineError(f"the run of {task} ended without a model; its server aggregated nothing")
        models = [float(line) - began for line in mark.read_text().split()]
        ended = mark.with_name(f"{mark.name}.end").read_text()
        return {
            "seconds": round(models[-1], 2),
            "to_end_s": round(float(ended) - began, 2),
            "rounds_s": [round(later - sooner, 2) for sooner, later in pairwise(models)],
        }


def _together(bench: Bench, setting: str, left: list[dict[str, Json]]) -> dict[str, Json]:
    """Seconds from the submission of one run to the models of its last round of training."""
    tasks = bench.settings["settings"][setting]
    own = {"samples": bench.settings["samples"], "batch_size": bench.settings["batch"], "in_channels": 3}
    own |= bench.settings["step"]
    with _deployed(bench, left, advised=True) as deployment:
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
        ]
        began = time.time()
        entries = deployment.play(overrides, deployment.directory / "run", patience_s=_patience_s(bench))
    failed = [f"{entry['site']}, {entry['task']}: {entry['error']}" for entry in entries if entry["error"]]
    if failed:
        raise EngineError(f"setting {setting}: {failed[0]}")
    # The exchange that evaluates the last models begins when they are there.
    ended = min(entry["started"] for entry in entries if entry["final"])
    return {
        "seconds": round(ended - began, 2),
        "backend": entries[0]["backend"],
        "rounds_s": _rounds_s(entries),
        "steps": {entry["task"]: entry["step"] for entry in entries if not entry["final"]},
    }


def _rounds_s(entries: Sequence[Mapping[str, Json]]) -> list[float]:
    """Seconds from the beginning of each round to that of the next."""
    return [round(later - begun, 2) for begun, later in pairwise(sorted({e["started"] for e in entries}))]


def _model(bench: Bench, task: str) -> str:
    return "lenet" if bench.settings["quick"] else task


def _seconds(samples: Sequence[Sample], setting: str, tasks: Sequence[str]) -> tuple[float, float] | None:
    """Seconds of a run for each task of a setting and of one run of all; None unless all were taken.

    A run begins when the one before has ended, and the last one counts to its last model.
    """
    taken = {sample.cell: sample.values for sample in samples}
    cells = _cells(setting, tasks)
    if not all(cell in taken for cell in cells):
        return None
    *before, last, together = (taken[cell] for cell in cells)
    alone = sum(float(values["to_end_s"]) for values in before) + float(last["seconds"])
    return alone, float(together["seconds"])


def _judge(bench: Bench, left: Sequence[Mapping[str, Json]]) -> None:
    for setting, tasks in bench.settings["settings"].items():
        if both := _seconds(bench.recorder.samples, setting, tasks):
            instead, fedmt = both
            bar = f"{setting}: a run for each task over one run of all"
            bench.bars.append(Bar.once(bar, _GOAL, instead / fedmt))
    if left:
        most = {key: max((one[key] for one in left), default=0) for key in ("processes", "gpu_memory_bytes")}
        bench.bars += left_bars(most)
