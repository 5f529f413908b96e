"""Throughput over the virtual resource R_v, equal budgets (Fig. 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedmt_flower.bench.allocation_table import interval
from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.mixes import BATCH, solo, synthetic_tasks
from fedmt_flower.bench.rates import take_rates
from fedmt_flower.bench.result import Bar, Json, Result, Sample
from fedmt_flower.bench.shares import Together, repeats, together
from fedmt_flower.bench.spread import Spread, spread
from fedmt_flower.device.profile.measurement import Probe
from fedmt_flower.device.profile.profiler import Profiler
from fedmt_flower.plots.curves import Curve, curves_png

CLAIM = "moderate sharing beats both isolated and full sharing of the GPU"

MIXES = {
    "paper": ("D121", "V16", "M3"),
    "alike, compute-bound": ("R101", "R50", "V16"),
    "complementary": ("R101", "M3", "S2"),
}
"""The paper's three; three of a kind; one that computes and two that wait for launches and memory."""
VIRTUAL_RESOURCES = (100, 133, 167, 200, 233, 267, 300)
"""R_v in per cent, shared out equally."""
_MODERATE = 200
"""Where the paper found the best (Fig. 6)."""


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with."""
    return {
        "mixes": {name: list(models) for name, models in MIXES.items()},
        "virtual_resources": [100, 300] if quick else list(VIRTUAL_RESOURCES),
        "batch": 8 if quick else BATCH,
        "repeats": 2 if quick else 5,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Take every sample, one mix after the other, and draw the curves."""
    mixes = list(MIXES)[:1] if bench.options.quick else list(MIXES)
    with bench.profiler() as profiler:
        complete = bench.in_parts(profiler, mixes, _Mix)
    result_points = {mix: points(bench.recorder.samples, mix) for mix in mixes}
    measured = {mix: found for mix, found in result_points.items() if found}
    bench.picture(_picture(measured))
    bench.facts["best"] = {
        mix: {"raw": _best(found, "raw"), "fairness": _best(found, "fairness")}
        for mix, found in measured.items()
    }
    for mix in measured:
        for extreme in (min(VIRTUAL_RESOURCES), max(VIRTUAL_RESOURCES)):
            gain = fairness_gain(bench.recorder.samples, mix, _MODERATE, extreme)
            if gain is not None:
                bar = f"{mix}: P_f at R_v {_MODERATE} % over that at {extreme} %"
                bench.bars.append(Bar.at_least(bar, 1.0, gain))
    return complete


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Equal budgets of one sum: `levels` is what they came to on the device."""

    virtual_resource: int
    levels: dict[str, int]
    raw: Spread
    fairness: Spread
    smallest_share: Spread


def fairness_gain(samples: Sequence[Sample], mix: str, resource: int, other: int) -> Spread | None:
    """P_f at one R_v over that at another: the ratio, by repeat, with the solo rates of that repeat."""
    one, two = (_shared(samples, mix, r) for r in (resource, other))
    if one is None or two is None:
        return None
    ratios = [one.fairness[r] / two.fairness[r] for r in one.fairness if r in two.fairness]
    return spread(ratios) if ratios else None


def points(samples: Sequence[Sample], mix: str) -> tuple[Point, ...]:
    """The curve of one mix, from what repeats there are of it and of its tasks alone."""
    found = []
    for resource in VIRTUAL_RESOURCES:
        shared = _shared(samples, mix, resource)
        if shared is None:
            continue
        found.append(
            Point(
                virtual_resource=resource,
                levels=next(iter(repeats(samples, f"{mix} | R_v | {resource}").values()))["levels"],
                raw=spread(shared.raw.values()),
                fairness=spread(shared.fairness.values()),
                smallest_share=spread(shared.smallest.values()),
            )
        )
    return tuple(found)


def _shared(samples: Sequence[Sample], mix: str, resource: int) -> Together | None:
    """What equal budgets of one sum came to; None if a task was never measured alone beside them."""
    solos = {model: repeats(samples, f"{mix} | solo | {model}") for model in MIXES[mix]}
    return together(repeats(samples, f"{mix} | R_v | {resource}"), solos)


def report(result: Result) -> str:
    """A table for each mix, in Markdown; intervals are 95 % confidence."""
    tables = []
    for mix, models in MIXES.items():
        found = points(result.samples, mix)
        if not found:
            continue
        lines = [f"**{mix}: {' + '.join(models)}**, batch {result.settings['batch']}", ""]
        lines += ["| R_v | SMs each | raw (samples/s) | P_f | smallest share |", "|---:|---:|---:|---:|---:|"]
        lines += [
            f"| {point.virtual_resource} % | {max(point.levels.values())} | {interval(point.raw, 0)} | "
            f"{interval(point.fairness, 2)} | {interval(point.smallest_share, 2)} |"
            for point in found
        ]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


class _Mix:
    """One mix's curve."""

    def __init__(self, bench: Bench, profiler: Profiler, name: str) -> None:
        self._bench, self._profiler = bench, profiler
        tasks = synthetic_tasks(MIXES[name], bench.settings)
        self._cells: dict[str, tuple[Probe, ...]] = {
            f"{name} | solo | {task.name}": (solo(profiler, task),) for task in tasks
        }
        for resource in bench.settings["virtual_resources"]:
            seat = profiler.seat(resource / len(tasks))
            self._cells[f"{name} | R_v | {resource}"] = tuple(Probe(task, seat) for task in tasks)

    def run(self, until: float) -> bool:
        """Take what is missing, until that moment; whether nothing is missing then."""
        return take_rates(self._bench, self._profiler, self._cells, until)


def _best(found: Sequence[Point], what: str) -> Json:
    best = max(found, key=lambda point: getattr(point, what).mean)
    return {"R_v": best.virtual_resource, "value": round(getattr(best, what).mean, 3)}


def _picture(found: dict[str, tuple[Point, ...]]) -> bytes:
    x = {mix: [point.virtual_resource for point in curve] for mix, curve in found.items()}
    panels = {
        "raw throughput Σ Pᵢ (samples/s)": [
            Curve(label=mix, x=x[mix], y=[p.raw.mean for p in curve], half=[p.raw.half_width for p in curve])
            for mix, curve in found.items()
        ],
        "fairness throughput P_f (Eq. 2)": [
            Curve(
                label=mix,
                x=x[mix],
                y=[p.fairness.mean for p in curve],
                half=[p.fairness.half_width for p in curve],
            )
            for mix, curve in found.items()
        ],
    }
    return curves_png(panels, x_label="virtual resource R_v (%)")
