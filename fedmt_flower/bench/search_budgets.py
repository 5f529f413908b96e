"""How long it takes to choose budgets and batch sizes (Eq. 5): host time only."""

from __future__ import annotations

import itertools
from typing import Final

import numpy as np

from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.models import subjects
from fedmt_flower.bench.result import Bar, Json, Result
from fedmt_flower.bench.searches import budget_regret, search_budgets, thinned
from fedmt_flower.bench.specimen import BATCHES
from fedmt_flower.bench.spread import Spread, spread
from fedmt_flower.domain.allocation import Objective
from fedmt_flower.domain.profile import DeviceFeatures, TaskFeatures
from fedmt_flower.planning.budgets import BudgetProblem

CLAIM = "budgets and batch sizes are chosen in a small part of a second, and as well as by brute force"

GOALS_MS: Final = {3: 30.0, 5: 200.0, 8: 1000.0}
"""Longest search by number of tasks, on two cores."""
_REGRET: Final = 0.01
_LEVELS: Final = tuple(float(level) for level in range(20, 101, 10))


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with."""
    return {
        "tasks": list(GOALS_MS),
        "batches": list(BATCHES),
        "levels": list(_LEVELS),
        "searches": 2 if quick else 30,
        "instances": 1 if quick else 10,
        "brute_force": 500 if quick else 20_000,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Solve drawn problems, batches free; thin others out so that brute force can solve them too."""
    chosen, device, zoo = subjects(bench.options)
    bench.facts["model"] = chosen.basis
    recorder, kinds = bench.recorder, [f"{n} tasks | {goal}" for n in GOALS_MS for goal in Objective]
    timed = [f"{kind} | search" for kind in kinds]
    held = [f"{kind} | regret" for kind in kinds]
    searches, instances = int(bench.settings["searches"]), int(bench.settings["instances"])
    for cells, repeats in ((timed, searches), (held, instances)):
        for cell, repeat in recorder.interleave(cells, repeats):
            n, objective, _ = cell.split(" | ")
            problem = draw(device, zoo, int(n.split()[0]), Objective(objective), seed=repeat)
            if cell in held:
                small = thinned(problem, int(bench.settings["brute_force"]), seed=repeat)
                recorder.add(cell, repeat, {"regret": budget_regret(small, chosen.model)})
                continue
            taken = search_budgets(problem, chosen.model)
            gap = taken.bound / taken.score - 1.0
            values = {
                "seconds": taken.seconds,
                "rates": taken.rates,
                "gap": gap if np.isfinite(gap) else None,
            }
            recorder.add(cell, repeat, values)
    _judge(bench)
    return recorder.has_all(timed, searches) and recorder.has_all(held, instances)


def draw(
    device: DeviceFeatures, zoo: tuple[TaskFeatures, ...], n: int, objective: Objective, *, seed: int
) -> BudgetProblem:
    """A problem of `n` tasks of `zoo` with volumes of 2,000 to 20,000 samples."""
    generator = np.random.default_rng((n, seed))
    return BudgetProblem(
        device=device,
        tasks=tuple(zoo[i] for i in generator.choice(len(zoo), n, replace=False)),
        batches=(BATCHES,) * n,
        levels=(_LEVELS,) * n,
        objective=objective,
        samples=tuple(int(volume) for volume in generator.integers(2_000, 20_001, n)),
    )


def report(result: Result) -> str:
    """A row for each number of tasks and objective, in Markdown."""
    lines = [
        f"Model: {result.facts['model']}.",
        "",
        "| tasks | settings | objective | time (ms) | slowest (ms) | rates predicted | proven best | "
        "largest regret against brute force |",
        "|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for n, objective in itertools.product(GOALS_MS, Objective):
        kind = f"{n} tasks | {objective}"
        taken = [sample.values for sample in result.of(f"{kind} | search")]
        if not taken:
            continue
        times = spread(1e3 * values["seconds"] for values in taken)
        slowest = max(values["seconds"] for values in taken)
        exact = sum(values["gap"] is not None and values["gap"] <= 1e-9 for values in taken)
        missed = [sample.values["regret"] for sample in result.of(f"{kind} | regret")]
        count = (len(result.settings["batches"]) * len(result.settings["levels"])) ** n
        lines.append(
            f"| {n} | {count:.2g} | {objective} | {times.median:.0f} | {1e3 * slowest:.0f} | "
            f"{np.median([values['rates'] for values in taken]):.0f} | {exact} of {len(taken)} | "
            f"{f'{max(missed):.2%}' if missed else '–'} |"
        )
    return "\n".join(lines)


def _judge(bench: Bench) -> None:
    samples = bench.recorder.samples
    for n, goal in GOALS_MS.items():
        for objective in Objective:
            kind = f"{n} tasks | {objective}"
            taken = [sample.values for sample in samples if sample.cell == f"{kind} | search"]
            if not taken:
                continue
            times: Spread = spread(1e3 * values["seconds"] for values in taken)
            bench.bars.append(Bar.at_most(f"{n} tasks, {objective}: ms a search", goal, times))
        exact = [
            values["gap"] is not None and values["gap"] <= 1e-9
            for values in (s.values for s in samples if s.cell.startswith(f"{n} tasks") and "gap" in s.values)
        ]
        regrets = [
            s.values["regret"] for s in samples if s.cell.startswith(f"{n} tasks") and "regret" in s.values
        ]
        if n == min(GOALS_MS) and exact:
            proven = sum(exact) / len(exact)
            bench.bars.append(
                Bar.counted(f"{n} tasks: part of the searches proven best", 1.0, proven, all(exact))
            )
        elif regrets:
            worst = max(regrets)
            bench.bars.append(
                Bar.counted(
                    f"{n} tasks: largest regret against brute force", _REGRET, worst, worst <= _REGRET
                )
            )
