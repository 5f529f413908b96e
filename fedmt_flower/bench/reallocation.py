"""Budgets that change when a task ends its share of the round (§ VI-B)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from fedmt_flower.bench.allocation_table import SETTINGS, interval
from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.engine_rounds import Rounds, chosen_budgets, computed, makespan
from fedmt_flower.bench.mixes import BATCH, SCHEMES, synthetic_tasks
from fedmt_flower.bench.recorder import shuffled
from fedmt_flower.bench.result import Bar, Json, Result, Sample
from fedmt_flower.bench.spread import Spread, spread
from fedmt_flower.device.engine.client import EngineClient
from fedmt_flower.domain.allocation import Allocation
from fedmt_flower.domain.round import RoundReport

CLAIM = "rounds get shorter when those that go on are given what a finished task leaves"

_VOLUMES: Final = (1, 2, 6)
_WITH, _WITHOUT, _SHARING = "with", "without", "100 each"
_LIMITS: Final = {"R_v ≤ 100 %": 100.0, "no limit": None}
"""Without a limit, the task that ends last may have the whole device from the beginning."""
_SHORTER: Final = 0.10
_MIDDLING: Final = frozenset({"R18", "V16"})
"""Models of about 50 MB (45 and 59)."""
_LOST_MS: Final = 10.0
_WARMING: Final = 0.25
"""Part of its volumes with which a round is run first, which starts the workers that it lacks."""
_ATTEMPTS: Final = 3
"""Rounds at most until one has the budgets of the one before: what was observed may change them."""


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with."""
    return {
        "settings": list(SETTINGS)[: 1 if quick else None],
        "limits": ["no limit"] if quick else list(_LIMITS),  # CPUs may be fewer than tasks
        "volumes": list(_VOLUMES),
        "batch": 8 if quick else BATCH,
        # Of the task with the least, by setting: rounds of four to five seconds on an H100, where two
        # hand-overs of a few hundredths of a second do not hide what they bring.
        "batches": dict.fromkeys(SETTINGS, 8) if quick else {"heavy": 12, "light": 30, "hybrid": 24},
        "repeats": 2 if quick else 4,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Run every setting's round with and without, and with 100 % each beside them."""
    complete, cells = True, _cells(bench.settings)
    with tempfile.TemporaryDirectory(prefix="fedmt-") as directory, bench.engine() as engine:
        free = chosen_budgets(bench, Path(directory))
        for cell in cells:  # one whole rather than a part of each
            whole = False
            with bench.part(cell):
                allocation = replace(free, virtual_resource=_LIMITS[cell.split(" | ")[1]])
                ways = {
                    _WITH: allocation,
                    _WITHOUT: replace(allocation, reallocate=False),
                    _SHARING: SCHEMES["sharing"],
                }
                whole = _measure(bench, engine, cell, ways)
            complete &= whole
    bench.bars += _judge(bench.recorder.samples, cells)
    return complete


def report(result: Result) -> str:
    """A row for each setting, in Markdown."""
    lines = [
        f"Volumes {':'.join(map(str, _VOLUMES))}.",
        "",
        "| setting | budgets | 100 each (s) | without (s) | with (s) | shorter | predicted without (s) | "
        "predicted with (s) | first budgets | hand-overs a round | begun after (ms) | lost in one (ms) |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|---:|---:|---:|",
    ]
    for cell in _cells(result.settings):
        name, limit = cell.split(" | ")
        taken = [sample.values for sample in result.of(cell)]
        if not taken:
            continue
        spans = (
            interval(spread(v["makespan_s"][way] for v in taken), 2) for way in (_SHARING, _WITHOUT, _WITH)
        )
        promised = [taken[-1]["predicted_s"].get(way) for way in (_WITHOUT, _WITH)]
        budgets = ", ".join(f"{task} {r:.0f}" for task, r in taken[-1]["budgets"][_WITH].items())
        lost, late = _lost(taken, SETTINGS[name]), _late(taken)
        lines.append(
            f"| {name}: {' + '.join(SETTINGS[name])} | {limit} | {' | '.join(spans)} | "
            f"{interval(_shorter(taken), 3)} | "
            f"{' | '.join('–' if s is None else f'{s:.2f}' for s in promised)} | {budgets} | "
            f"{len(lost) / len(taken):.1f} | {interval(spread(late), 0) if late else '–'} | "
            f"{interval(spread(lost), 1) if lost else '–'} |"
        )
    return "\n".join(lines)


def _measure(bench: Bench, engine: EngineClient, cell: str, ways: Mapping[str, Allocation]) -> bool:
    recorder, repeats = bench.recorder, int(bench.settings["repeats"])
    if recorder.has_all([cell], repeats):
        return True
    if recorder.left_s <= 0:
        return False
    name, batch = cell.split(" | ")[0], int(bench.settings["batch"])
    tasks = synthetic_tasks(SETTINGS[name], bench.settings)
    # A run of its own for each limit: what a planner learns under one is not asked of the other.
    rounds = Rounds(engine, f"reallocation, {cell}", tasks)
    unit = batch * int(bench.settings["batches"][name])
    volumes = {task.name: unit * part for task, part in zip(tasks, _VOLUMES, strict=True)}
    seen: dict[str, dict[str, float]] = {}

    def run_warm(way: str, part: float = 1.0) -> RoundReport:
        """A round whose workers were there: those of budgets that are new start within the first round."""
        for _ in range(_ATTEMPTS):
            report = rounds.run(volumes, ways[way], part=part)
            before, seen[way] = seen.get(way), _budgets(report)
            if before == seen[way]:
                break
        return report

    for way in ways:
        run_warm(way, _WARMING)
    for _, repeat in recorder.interleave([cell], repeats):
        reports = {way: run_warm(way) for way in shuffled(list(ways), f"{cell} {repeat}")}
        values: dict[str, Json] = {
            "makespan_s": {way: round(makespan(report), 4) for way, report in reports.items()},
            "predicted_s": {
                way: round(report.forecast.makespan_s, 4)
                for way, report in reports.items()
                if report.forecast is not None
            },
            "budgets": {way: _budgets(report) for way, report in reports.items()},
            "samples": volumes,
            "lost_ms": {
                task.task: [round(1e3 * move.lost_s, 3) for move in task.handovers]
                for task in reports[_WITH].tasks
            },
            "moved_s": {
                task.task: [round(move.at_s, 4) for move in task.handovers] for task in reports[_WITH].tasks
            },
            "ended_s": {task: round(end, 4) for task, (_, end) in computed(reports[_WITH]).items()},
        }
        recorder.add(cell, repeat, values)
    return recorder.has_all([cell], repeats)


def _cells(known: Mapping[str, Json]) -> list[str]:
    """Every setting with the limit on R_v, under which tasks are handed over, then every one without it."""
    return [f"{name} | {limit}" for limit in known["limits"] for name in known["settings"]]


def _budgets(report: RoundReport) -> dict[str, float]:
    return {place.task: place.budget for place in report.plan.tasks}


def _shorter(taken: Sequence[dict[str, Json]]) -> Spread:
    """By which part a round is shorter with than without, repeat by repeat."""
    return spread(1.0 - v["makespan_s"][_WITH] / v["makespan_s"][_WITHOUT] for v in taken)


def _lost(taken: Sequence[dict[str, Json]], tasks: Iterable[str]) -> list[float]:
    """Milliseconds between two steps of one of `tasks` that a hand-over took, of every one."""
    return [lost for values in taken for task in tasks for lost in values["lost_ms"][task]]


def _late(taken: Sequence[dict[str, Json]]) -> list[float]:
    """Milliseconds from the end of the task that freed a budget to the last step before it was taken up."""
    found = []
    for values in taken:
        # Records from before have the moves' lengths alone.
        ends, moved = values.get("ended_s", {}), values.get("moved_s", {})
        for task, moments in moved.items():
            for at in moments:
                before = [end for other, end in ends.items() if other != task and end <= at]
                found += [1e3 * (at - max(before))] if before else []
    return found


def _judge(samples: Sequence[Sample], cells: Sequence[str]) -> Iterator[Bar]:
    moves: list[float] = []
    for cell in cells:
        taken = [sample.values for sample in samples if sample.cell == cell]
        name, limit = cell.split(" | ")
        moves += _lost(taken, set(SETTINGS[name]) & _MIDDLING)
        if taken:
            bar = f"{name}, {limit}: part by which a round is shorter"
            yield Bar.at_least(bar, _SHORTER, _shorter(taken))
    if moves:
        yield Bar.at_most(
            f"ms lost in a warm hand-over of {' or '.join(sorted(_MIDDLING))}", _LOST_MS, spread(moves)
        )
