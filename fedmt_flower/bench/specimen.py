"""A made-up GPU and what would be measured on it: for what needs a fitted model, but no true one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from fedmt_flower.domain.profile import CoRunSample, DeviceFeatures, TaskFeatures
from fedmt_flower.planning.throughput import Array, CoRuns, by_mix

BUDGETS: Final = tuple(float(budget) for budget in range(5, 101, 5))
BATCHES: Final = (32, 64, 128, 256)
DEVICE: Final = DeviceFeatures(name="made up", units=132, peak=6e13, bandwidth=2.4e12)
ZOO: Final = {
    name: TaskFeatures(
        task=name,
        model=name,
        flops=flops,
        traffic=traffic,
        solo_rate=rate,
        quarter_share=quarter,
        batch_rates=tuple((batch, rate * 1.08 ** math.log2(batch / 128)) for batch in BATCHES),
    )
    for name, (flops, traffic, rate, quarter) in {
        "d121": (1.8e9, 6.0e7, 1965, 0.80),
        "m3": (1.2e8, 1.5e7, 5599, 0.97),
        "r101": (7.5e9, 9.0e7, 2727, 0.45),
        "r18": (3.3e9, 2.0e7, 12484, 0.55),
        "r50": (3.9e9, 6.0e7, 4889, 0.50),
        "s2": (2.9e8, 1.4e7, 5245, 0.95),
        "v16": (1.9e9, 1.2e7, 15536, 0.35),
        "alex": (9.0e8, 6.0e6, 30000, 0.60),
    }.items()
}
"""Eight tasks, much as the paper's models are on an H100."""


class Contention:
    """The truth there: each task has a solo curve, and what all demand is scaled to what there is."""

    monotone: Final = False

    def rates(self, runs: CoRuns) -> Array:
        """The true Pᵢ; see `ThroughputModel`."""
        quarter = np.array([task.quarter_share for task in runs.tasks])
        power = -np.log2(quarter) / 2
        busy = 4.0 ** (power - 1)
        doublings = np.log2(runs.batches / [task.reference_batch for task in runs.tasks])
        budget = runs.budgets / 100
        solo = np.where(budget > 0, np.maximum(budget, 1e-9) ** power, 0.0)
        demand = solo * busy * 1.11**doublings
        total = demand.sum(axis=1, keepdims=True)
        excess = np.maximum(1.0, total) * (1 + 0.06 * np.maximum(0.0, total - 1.0))
        return np.where(runs.running, runs.solo_rates * solo / excess, 0.0)


def draw_samples(
    zoo: Sequence[TaskFeatures] = tuple(ZOO.values()), *, mixes: int = 60, each: int = 10
) -> list[CoRunSample]:
    """`each` settings of `mixes` mixes of 1 to 5 tasks, with 1 % of noise; always the same."""
    truth, generator = Contention(), np.random.default_rng(7)
    drawn: list[CoRunSample] = []
    for _ in range(mixes):
        n = int(generator.integers(1, 6))
        tasks = tuple(zoo[i] for i in generator.choice(len(zoo), n, replace=False))
        for _ in range(each):
            sample = CoRunSample(
                device=DEVICE,
                tasks=tasks,
                batches=tuple(int(b) for b in generator.choice(BATCHES, n)),
                budgets=tuple(float(r) for r in generator.choice(BUDGETS, n)),
                rates=(1.0,) * n,
            )
            rates = truth.rates(by_mix([sample])[0].runs)[0] * generator.normal(1.0, 0.01, n)
            drawn.append(
                CoRunSample(
                    device=DEVICE,
                    tasks=tasks,
                    batches=sample.batches,
                    budgets=sample.budgets,
                    rates=tuple(map(float, rates)),
                )
            )
    return drawn
