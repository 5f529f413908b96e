"""How long it takes to choose the start order, everything included (Table II): host time only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.models import subjects
from fedmt_flower.bench.result import Bar, Json, Result, Sample
from fedmt_flower.bench.searches import best_order, search_order
from fedmt_flower.bench.spread import spread
from fedmt_flower.domain.network import Link, Volume
from fedmt_flower.domain.profile import DeviceFeatures, TaskFeatures
from fedmt_flower.planning.overlap import EXACT, nearby_batches
from fedmt_flower.planning.reallocation import RoundSetup, reallocate
from fedmt_flower.planning.simulator import Jobs
from fedmt_flower.planning.throughput import ThroughputModel

CLAIM = (
    "start order and batch sizes are found in a small part of a second, up to five tasks the best there are"
)

GOALS_MS: Final = {3: 30.0, 5: 300.0, 8: 2000.0}
"""Longest search by number of tasks, on two cores (paper: 290 ms for 3 tasks)."""
_LEVELS: Final = tuple(float(level) for level in range(20, 101, 10))
_LINK: Final = Link(up_mbps=400, down_mbps=400)
_DELTA: Final = 0.2


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with."""
    return {
        "tasks": [3] if quick else list(GOALS_MS),
        "levels": list(_LEVELS),
        "mbps": _LINK.up_mbps,
        "delta": _DELTA,
        "searches": 2 if quick else 20,
        # A brute force of five tasks simulates 29,160 rounds one after another: half a minute.
        "brute_force": {"3": 1} if quick else {"3": 5, "5": 1},
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Search orders of drawn rounds, and the best of some of them once more by brute force."""
    chosen, device, zoo = subjects(bench.options)
    bench.facts["model"] = chosen.basis
    recorder, complete = bench.recorder, True
    searches = int(bench.settings["searches"])
    cells = [f"{n} tasks | search" for n in bench.settings["tasks"]]
    for cell, repeat in recorder.interleave(cells, searches):
        taken = search_order(draw(chosen.model, device, zoo, int(cell.split()[0]), seed=repeat))
        values: dict[str, Json] = {
            "rates_s": taken.rates_s,
            "search_s": taken.search_s,
            "points": taken.points,
            "makespan_s": taken.makespan_s,
            "lower_bound_s": taken.lower_bound_s,
        }
        recorder.add(cell, repeat, values)
    complete &= recorder.has_all(cells, searches)
    for n, instances in bench.settings["brute_force"].items():
        cell = f"{n} tasks | brute force"
        for _, repeat in recorder.interleave([cell], instances):
            setup = draw(chosen.model, device, zoo, int(n), seed=repeat)
            recorder.add(cell, repeat, {"makespan_s": best_order(setup.jobs, reallocate(setup).table)})
        complete &= recorder.has_all([cell], instances)
    _judge(bench)
    return complete


def draw(
    model: ThroughputModel, device: DeviceFeatures, zoo: tuple[TaskFeatures, ...], n: int, *, seed: int
) -> RoundSetup:
    """A round of `n` tasks of `zoo`, models of 9 to 170 MB, that computes about as long as it transfers."""
    generator = np.random.default_rng((n, seed))
    tasks = tuple(zoo[i] for i in generator.choice(len(zoo), n, replace=False))
    sizes = generator.integers(9_000_000, 170_000_001, n)
    seconds = sum(map(_LINK.upload_s, sizes.tolist()))
    parts = generator.uniform(1.0, 4.0, n) * seconds / n  # alone: together they take about half of that
    volumes = tuple(
        Volume(
            task=task.task,
            samples=max(task.reference_batch, round(part * task.solo_rate)),
            download_bytes=int(size),
            upload_bytes=int(size),
        )
        for task, part, size in zip(tasks, parts, sizes, strict=True)
    )
    return RoundSetup(
        model=model,
        device=device,
        tasks=tasks,
        jobs=Jobs.over(volumes, _LINK),
        batches=np.array(
            [nearby_batches(task.reference_batch, _DELTA, 1, 1024) for task in tasks], dtype=float
        ),
        levels=(_LEVELS,) * n,
    )


def report(result: Result) -> str:
    """A row for each number of tasks, in Markdown."""
    lines = [
        f"Model: {result.facts['model']}.",
        "",
        "| tasks | simulated rounds | rates of all states (ms) | orders (ms) | both (ms) | slowest (ms) | "
        "above the lower bound | same as brute force |",
        "|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for n in result.settings["tasks"]:
        taken = [sample.values for sample in result.of(f"{n} tasks | search")]
        if not taken:
            continue
        both = [1e3 * (values["rates_s"] + values["search_s"]) for values in taken]
        gap = np.median([values["makespan_s"] / values["lower_bound_s"] - 1.0 for values in taken])
        same = _same(result.of(f"{n} tasks | search"), result.of(f"{n} tasks | brute force"))
        lines.append(
            f"| {n} | {np.median([v['points'] for v in taken]):.0f} | "
            f"{1e3 * np.median([v['rates_s'] for v in taken]):.0f} | "
            f"{1e3 * np.median([v['search_s'] for v in taken]):.0f} | "
            f"{np.median(both):.0f} | {max(both):.0f} | {gap:.1%} | "
            f"{f'{sum(same)} of {len(same)}' if same else '–'} |"
        )
    return "\n".join(lines)


def _judge(bench: Bench) -> None:
    samples = bench.recorder.samples
    for n, goal in GOALS_MS.items():
        searched = [sample for sample in samples if sample.cell == f"{n} tasks | search"]
        forced = [sample for sample in samples if sample.cell == f"{n} tasks | brute force"]
        if searched:
            times = spread(1e3 * (s.values["rates_s"] + s.values["search_s"]) for s in searched)
            bench.bars.append(Bar.at_most(f"{n} tasks: ms a search", goal, times))
        if n <= EXACT and (same := _same(searched, forced)):
            bench.bars.append(
                Bar.counted(
                    f"{n} tasks: part of the rounds with brute force's makespan",
                    1.0,
                    sum(same) / len(same),
                    all(same),
                )
            )


def _same(searched: Sequence[Sample], forced: Sequence[Sample]) -> list[bool]:
    """Whether search and brute force found the same makespan, for each round that has both."""
    best = {sample.repeat: sample.values["makespan_s"] for sample in forced}
    return [
        abs(sample.values["makespan_s"] / best[sample.repeat] - 1.0) < 1e-9
        for sample in searched
        if sample.repeat in best
    ]
