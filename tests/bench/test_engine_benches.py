"""What the benchmarks of whole rounds make of reports: goals and tables, from made-up samples."""

from __future__ import annotations

from typing import Any

import pytest
from records import made_up

from fedmt_flower.bench import batching, overlap, reallocation
from fedmt_flower.bench.engine_rounds import compute_span, computed, makespan
from fedmt_flower.bench.result import Result, Sample
from fedmt_flower.domain.coordination import Batching
from fedmt_flower.domain.network import Overlap
from fedmt_flower.domain.plan import RoundPlan, Sharing
from fedmt_flower.domain.round import RoundReport
from fedmt_flower.domain.timeline import Phase, Span


def record(driver: Any, cells: dict[str, Any], repeats: int = 3) -> Result:
    """The record of a driver in which each of its cells has the same values in every repeat."""
    name = driver.__name__.rpartition(".")[2]
    samples = (
        Sample(cell=cell, repeat=repeat, values=values)
        for repeat in range(repeats)
        for cell, values in cells.items()
    )
    return made_up(name, driver.settings(quick=False), samples)


def test_a_round_lasts_from_its_first_transfer_to_its_last() -> None:
    phases = [
        ("a", Phase.PREPARE, 0.0, 0.5),
        ("a", Phase.DOWNLOAD, 0.5, 1.0),
        ("a", Phase.COMPUTE, 1.0, 2.0),
        ("a", Phase.COMPUTE, 2.5, 3.0),
        ("b", Phase.COMPUTE, 1.5, 4.0),
        ("b", Phase.UPLOAD, 4.0, 4.5),
    ]
    report = RoundReport(
        site="s",
        round=1,
        plan=RoundPlan(tasks=(), sharing=Sharing.CAPPED),
        tasks=(),
        timeline=tuple(Span(task=t, phase=p, start_s=a, end_s=b) for t, p, a, b in phases),
        backend="cpu",
        waited_s=0.0,
        wall_s=5.0,
    )
    assert makespan(report) == 4.0
    assert computed(report) == {"a": (1.0, 3.0), "b": (1.5, 4.0)}
    assert compute_span(report) == 3.0


@pytest.mark.parametrize(("phased", "met"), [(10.0, True), (9.0, False)])
def test_overlap_is_judged_beside_every_other_kind(phased: float, met: bool) -> None:
    spans = dict.fromkeys(Overlap, 8.1) | {Overlap.OFF: phased, Overlap.FLEXIBLE: 7.8}
    values = {
        "makespan_s": spans,
        "predicted_s": dict.fromkeys(Overlap, 8.0),
        "lower_bound_s": dict.fromkeys(Overlap, 7.5),
        "transfer_s": 4.0,
        "compute_s": 4.0,
        "samples": {"D121": 1, "V16": 1, "R101": 1},
    }
    result = record(overlap, {"heavy | rounds": values})
    phased_bar, bound, slower, *_ = overlap._judge(result.samples, overlap.RATIOS)
    assert phased_bar.met == met
    assert bound.value == pytest.approx(7.8 / 7.5)
    assert bound.met
    assert (slower.value, slower.met) == (0, True)
    assert "| heavy: D121 + V16 + R101 | 3 | 1.00 |" in overlap.report(result)


def test_hand_overs_of_middling_models_have_a_goal() -> None:
    values = {
        "makespan_s": {"with": 0.8, "without": 1.0, "100 each": 1.1},
        "predicted_s": {"with": 0.8, "without": 1.0},
        "budgets": {"with": {"D121": 40.0}},
        "lost_ms": {"D121": [], "V16": [6.0], "R101": [30.0]},
        "moved_s": {"D121": [], "V16": [0.35], "R101": [0.65]},
        "ended_s": {"D121": 0.3, "V16": 0.5, "R101": 0.8},
    }
    result = record(reallocation, {"heavy | no limit": values})
    shorter, lost = reallocation._judge(result.samples, ["heavy | no limit"])
    assert shorter.value == pytest.approx(0.2)
    assert shorter.met
    assert (lost.value, lost.met) == (6.0, True)
    # 50 ms after D121 had ended, 150 ms after V16.
    assert "| 2.0 | 100 ± 57 | 18.0" in reallocation.report(result)


def test_devices_wait_for_their_slowest_and_tasks_for_their_last() -> None:
    known = batching.settings(quick=False)

    def device(makespan_s: float, rates: tuple[float, ...], ends: tuple[float, ...]) -> dict[str, Any]:
        names = batching.MODELS
        return {
            "makespan_s": makespan_s,
            "samples": dict(zip(names, (100, 200, 300), strict=True)),
            "rates": dict(zip(names, rates, strict=True)),
            "ends_s": dict(zip(names, ends, strict=True)),
            "batches": dict.fromkeys(names, 128),
        }

    values = {}
    for name in known["allocations"]:
        for adapted in Batching:
            both = name == "fedmt" and adapted is Batching.PROPORTIONAL
            span, ends = (2.0, (1.8, 2.0, 2.0)) if both else (6.0, (2.0, 4.0, 6.0))
            rates = (80.0, 80.0, 80.0) if both else (100.0, 100.0, 100.0)
            for part, place in enumerate(known["devices"]):
                values[f"{name} | {adapted} | {place}"] = device(span * (1 + part), rates, ends)
    result = record(batching, {"rounds": values})
    rows = batching._rows(result.samples, known)
    both, base = rows["fedmt", Batching.PROPORTIONAL], rows["temporal", Batching.FIXED]
    assert both.fairness[0] == pytest.approx(2.4)
    assert base.fairness[0] == pytest.approx(1.0)
    assert both.round_throughput[0] == pytest.approx(1800 / 6.0)
    assert base.throughput[0] == pytest.approx((600 / 6 + 600 / 12 + 600 / 18) / 3)
    faster, idle = batching._judge(rows)
    assert faster.value == pytest.approx(3.0)
    assert faster.met
    assert idle.met
    assert "The highest P_f" in batching.report(result)
