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
from fedmt_flower.bench.spread import Spread, spread
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
        "settings": {"light": list(_SETTINGS["light"][:2])}
        if quick
        else {name: list(tasks) for name, tasks in _SETTINGS.items()},
        "overrides": ["allocation=sharing"] if quick else ["allocation=fedmt"],
        "step": {} if quick else _FAST,
        "samples": 64 if quick else 20_000,
        "batch": 16 if quick else BATCH,
        "rounds": 1 if quick else 5,
        "repeats": 1 if quick else 2,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Run each setting both ways, each run on a SuperLink and SuperNodes of its own.

    A task that two settings have is run alone once for both.
    """
    recorder, repeats = bench.recorder, int(bench.settings["repeats"])
    cells = {setting: _cells(setting, tasks) for setting, tasks in bench.settings["settings"].items()}
    left: list[dict[str, Json]] = []
    for repeat in range(repeats):
        for own in cells.values():  # one setting whole rather than a part of each
            for cell, number in recorder.interleave(own, repeat + 1, expected_s=_expected_s(bench)):
                with bench.part(cell):
                    _take(bench, cell, number, left)
    _judge(bench, left)
    return all(recorder.has_all(own, repeats) for own in cells.values())


def report(result: Result) -> str:
    """A row for each setting, in Markdown."""
    lines = [
        "| setting | a run for each task (s) | one run of all (s) | times as fast |",
        "|---|---:|---:|---:|",
    ]
    for setting, tasks in result.settings["settings"].items():
        both = _seconds(result.samples, setting, tasks)
        if both:
            instead, fedmt = zip(*both, strict=True)
            medians = f"{spread(instead).median:.1f} | {spread(fedmt).median:.1f}"
            lines.append(f"| {setting} | {medians} | {_gain(both).mean:.2f} |")
    alone = {cell: result.of(cell) for cell in result.cells() if cell.endswith(" | alone")}
    if alone:
        took = (f"{cell.split(' | ')[0]} {_median(samples):.0f}" for cell, samples in alone.items())
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
        ended = mark.with_name(f"{mark.name}.end").read_text()
        return {
            "seconds": round(float(mark.read_text()) - began, 2),
            "to_end_s": round(float(ended) - began, 2),
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


def _seconds(samples: Sequence[Sample], setting: str, tasks: Sequence[str]) -> list[tuple[float, float]]:
    """Of each whole repeat of a setting, the seconds of a run for each task and those of one run of all.

    A run begins when the one before has ended, and the last one counts to its last model.
    """
    taken = {(sample.cell, sample.repeat): sample.values for sample in samples}
    *cells, together = _cells(setting, tasks)
    numbers = sorted(number for cell, number in taken if cell == together)
    whole = [number for number in numbers if all((cell, number) in taken for cell in cells)]
    found = []
    for number in whole:
        *before, last = (taken[cell, number] for cell in cells)
        alone = sum(float(values["to_end_s"]) for values in before) + float(last["seconds"])
        found.append((alone, float(taken[together, number]["seconds"])))
    return found


def _median(samples: Sequence[Sample]) -> float:
    return spread(float(sample.values["seconds"]) for sample in samples).median


def _gain(both: Sequence[tuple[float, float]]) -> Spread:
    return spread(instead / fedmt for instead, fedmt in both)


def _judge(bench: Bench, left: Sequence[Mapping[str, Json]]) -> None:
    for setting, tasks in bench.settings["settings"].items():
        if both := _seconds(bench.recorder.samples, setting, tasks):
            bar = f"{setting}: a run for each task over one run of all"
            bench.bars.append(Bar.at_least(bar, _GOAL, _gain(both)))
    if left:
        most = {key: max((one[key] for one in left), default=0) for key in ("processes", "gpu_memory_bytes")}
        bench.bars += left_bars(most)
