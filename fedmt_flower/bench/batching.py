"""Batch sizes in proportion to the loads, over several devices (Fig. 10)."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedmt_flower.bench.allocation_table import interval
from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.engine_rounds import Rounds, chosen_budgets, computed, makespan
from fedmt_flower.bench.mixes import BATCH, SCHEMES, synthetic_tasks
from fedmt_flower.bench.recorder import shuffled
from fedmt_flower.bench.result import Bar, Json, Result, Sample
from fedmt_flower.bench.spread import Spread, spread
from fedmt_flower.domain.coordination import Batching, BatchRules, Coordination
from fedmt_flower.domain.round import RoundReport

CLAIM = "budgets and batch sizes that follow the loads make rounds shorter and leave less of them idle"

MODELS: Final = ("V16", "R18", "M3")
_VOLUMES: Final = (1, 2, 3)
_DEVICES: Final = {"a": 1.0, "b": 0.75, "c": 0.5}
"""Each device's part of the volumes. One GPU stands for all: they take it in turn."""
_ALLOCATIONS: Final = ("temporal", "isolated", "sharing", "static 60", "fedmt")
_FASTER: Final = 2.8
_IDLE: Final = 0.5


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with."""
    return {
        "models": list(MODELS),
        "volumes": list(_VOLUMES),
        "devices": dict(list(_DEVICES.items())[: 1 if quick else None]),
        "allocations": ["temporal", "fedmt"] if quick else list(_ALLOCATIONS),
        "batch": 8 if quick else BATCH,
        "batches": 4 if quick else 16,
        "repeats": 2 if quick else 3,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Run the devices' rounds under every allocation, with fixed and with adapted batch sizes."""
    recorder, repeats = bench.recorder, int(bench.settings["repeats"])
    batch = int(bench.settings["batch"])
    with tempfile.TemporaryDirectory(prefix="fedmt-") as directory, bench.engine() as engine:
        policies = SCHEMES | {"fedmt": chosen_budgets(bench, Path(directory))}
        tasks = synthetic_tasks(MODELS, bench.settings)
        rounds = Rounds(engine, "batching", tasks)
        ways = [(name, batching) for name in bench.settings["allocations"] for batching in Batching]

        def take(name: str, batching: Batching, device: str) -> RoundReport:
            part = float(bench.settings["devices"][device])
            unit = max(1, round(part * int(bench.settings["batches"])))
            volumes = {task.name: batch * unit * n for task, n in zip(tasks, _VOLUMES, strict=True)}
            # A site of its own for each way: what a planner learns of loads is the site's.
            site = f"{device}.{name}.{batching}".replace(" ", "-").replace("/", "-")
            rules = Coordination(batching=BatchRules(policy=batching))
            return rounds.run(volumes, policies[name], rules, site=site)

        order = [(*way, device) for way in ways for device in bench.settings["devices"]]
        expected_s = 0.0
        if not recorder.has_all(["rounds"], repeats):
            # Workers get warm with their data, and planners see what there is.
            with bench.part("warming up"):
                expected_s = sum(makespan(take(*one)) for one in order)
        for cell, repeat in recorder.interleave(["rounds"], repeats, expected_s=expected_s):
            values: dict[str, Json] = {}
            with bench.part(f"repeat {repeat}"):
                for name, batching, device in shuffled(order, repeat):
                    values[f"{name} | {batching} | {device}"] = _values(take(name, batching, device), batch)
                recorder.add(cell, repeat, values)
    bench.bars += _judge(_rows(recorder.samples, bench.settings))
    return recorder.has_all(["rounds"], repeats)


def report(result: Result) -> str:
    """A row for each allocation and kind of batch sizes, in Markdown."""
    found = _rows(result.samples, result.settings)
    lines = [
        f"{' + '.join(MODELS)}, volumes {':'.join(map(str, _VOLUMES))}, {len(result.settings['devices'])} "
        "devices with different amounts of data.",
        "",
        "| allocation | batch sizes | average throughput (samples/s) | P_f | round throughput (samples/s) | "
        "idle at the end of a round | throughput over temporal, fixed |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    base = found.get(("temporal", Batching.FIXED))
    for (name, _), row in found.items():
        gain = interval(_ratio(row.throughput, base.throughput), 2) if base else "–"
        lines.append(
            f"| {name} | {row.batches} | {interval(spread(row.throughput), 0)} | "
            f"{interval(spread(row.fairness), 2)} | {interval(spread(row.round_throughput), 0)} | "
            f"{100 * statistics.fmean(row.idle):.0f} % | {gain} |"
        )
    if found:
        best = max(found.values(), key=lambda row: statistics.fmean(row.fairness))
        ceiling = statistics.fmean(best.fairness)
        lines += [
            "",
            f"The highest P_f of all rows is {ceiling:.2f}; P_b is at batch {result.settings['batch']}.",
        ]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One way, repeat by repeat; means over the devices, but for the round, which ends with the slowest."""

    batches: str
    throughput: Sequence[float]
    fairness: Sequence[float]
    round_throughput: Sequence[float]
    idle: Sequence[float]


def _values(report: RoundReport, own: int) -> dict[str, Json]:
    ends = computed(report)
    begun = min(begin for begin, _ in ends.values())
    return {
        "makespan_s": round(makespan(report), 4),
        "samples": {task.task: task.samples for task in report.tasks},
        "rates": {task.task: round(task.rate, 1) for task in report.tasks},
        "ends_s": {task: round(end - begun, 4) for task, (_, end) in ends.items()},
        "budgets": {place.task: place.budget for place in report.plan.tasks},
        "batches": {place.task: place.batch_size or own for place in report.plan.tasks},
    }


def _rows(samples: Sequence[Sample], known: Mapping[str, Json]) -> dict[tuple[str, Batching], _Row]:
    taken = [sample.values for sample in samples if sample.cell == "rounds"]
    if not taken:
        return {}
    # Alone in its turn, with the whole device and its own batch size, a task runs at P_b.
    solo = [_devices(values, "temporal", Batching.FIXED, known) for values in taken]
    rows = {}
    for name in known["allocations"]:
        for batching in Batching:
            repeats = [_devices(values, name, batching, known) for values in taken]
            rows[name, batching] = _Row(
                batches=f"{batching}: {', '.join(map(str, repeats[-1][0]['batches'].values()))}",
                throughput=[_mean(_throughput, devices) for devices in repeats],
                fairness=[
                    statistics.fmean(
                        sum(rate / alone["rates"][task] for task, rate in device["rates"].items())
                        / (len(device["rates"]) if name == "temporal" else 1)
                        for device, alone in zip(devices, own, strict=True)
                    )
                    for devices, own in zip(repeats, solo, strict=True)
                ],
                round_throughput=[
                    sum(sum(device["samples"].values()) for device in devices)
                    / max(device["makespan_s"] for device in devices)
                    for devices in repeats
                ],
                idle=[_mean(_idle, devices) for devices in repeats],
            )
    return rows


def _devices(
    values: Mapping[str, Json], name: str, batching: Batching, known: Mapping[str, Json]
) -> list[dict[str, Json]]:
    return [values[f"{name} | {batching} | {device}"] for device in known["devices"]]


def _mean(what: Callable[[dict[str, Json]], float], devices: Sequence[dict[str, Json]]) -> float:
    return statistics.fmean(map(what, devices))


def _throughput(device: dict[str, Json]) -> float:
    """Samples over the device's own makespan."""
    return float(sum(device["samples"].values()) / device["makespan_s"])


def _idle(device: dict[str, Json]) -> float:
    """The part of the round for which a task has computed and waits for the last one, on average."""
    ends = device["ends_s"].values()
    return float(1.0 - statistics.fmean(ends) / max(ends))


def _ratio(values: Sequence[float], base: Sequence[float]) -> Spread:
    return spread(value / other for value, other in zip(values, base, strict=True))


def _judge(rows: Mapping[tuple[str, Batching], _Row]) -> Iterator[Bar]:
    both = rows.get(("fedmt", Batching.PROPORTIONAL))
    fixed, base = rows.get(("fedmt", Batching.FIXED)), rows.get(("temporal", Batching.FIXED))
    if both and base:
        yield Bar.at_least(
            "average throughput of fedmt with both, over temporal",
            _FASTER,
            _ratio(both.throughput, base.throughput),
        )
    if both and fixed and all(fixed.idle):
        yield Bar.at_most(
            "idle time at the end of a round, over that with fixed batch sizes",
            _IDLE,
            _ratio(both.idle, fixed.idle),
        )
