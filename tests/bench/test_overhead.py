"""What a round costs besides its training, from made-up reports."""

from __future__ import annotations

import pytest

from fedmt_flower.bench import overhead
from fedmt_flower.bench.result import Json, Sample
from fedmt_flower.domain.plan import RoundPlan, Sharing
from fedmt_flower.domain.round import Handover, RoundReport, Status, TaskReport
from fedmt_flower.domain.timeline import Phase, Span
from fedmt_flower.federation.reception import Answered

PHASES = [
    ("V16", Phase.PREPARE, 0.01, 0.9),
    ("V16", Phase.COMPUTE, 0.9, 9.0),
    ("R101", Phase.PREPARE, 0.04, 0.06),
    ("R101", Phase.EVALUATE, 0.06, 0.26),
    ("R101", Phase.COMPUTE, 0.3, 5.0),
    ("R101", Phase.COMPUTE, 5.05, 9.8),
]


def answered(seconds: float) -> Answered:
    """R101 ends last, after one move; the engine had the round 20 ms after the client."""
    move = Handover(at_s=5.0, budget=100.0, level=132, lost_s=0.05)
    tasks = (
        TaskReport(task="V16", status=Status.DONE),
        TaskReport(task="R101", status=Status.DONE, handovers=(move,)),
    )
    report = RoundReport(
        site="s",
        round=1,
        plan=RoundPlan(tasks=(), sharing=Sharing.CAPPED),
        tasks=tasks,
        timeline=tuple(Span(task=t, phase=p, start_s=a, end_s=b) for t, p, a, b in PHASES),
        backend="mps",
        waited_s=0.0,
        wall_s=9.9,
        arrived=1000.02,
    )
    return Answered(arrived=1000.0, seconds=seconds, report=report)


def test_time_is_told_on_the_way_of_the_task_that_ends_last() -> None:
    parts = overhead.parts_of(answered(10.0))
    assert parts["last"] == "R101"
    found = {name: value for name, value in parts.items() if isinstance(value, float)}
    assert found == pytest.approx(
        {
            "seconds": 10.0,
            "client_s": 0.02,
            "waiting_s": 0.08,
            "prepare_s": 0.02,
            "evaluate_s": 0.2,
            "compute_s": 9.5,
            "moved_s": 0.05,
            "answer_s": 0.18,
        }
    )
    assert overhead.besides(parts) == pytest.approx(0.02 + 0.08 + 0.02 + 0.05 + 0.18)


@pytest.mark.parametrize(("seconds", "met"), [(9.9, True), (10.0, False)])
def test_a_round_may_cost_three_parts_in_a_hundred(seconds: float, met: bool) -> None:
    values = overhead.parts_of(answered(seconds))
    samples = [Sample(cell="round", repeat=repeat, values=values) for repeat in range(3)]
    (bar,) = overhead.judge(samples)
    assert bar.met == met


@pytest.mark.parametrize(("stepped", "met"), [(4.0, True), (5.5, False)])
def test_a_cold_start_lasts_until_the_last_task_has_stepped(stepped: float, met: bool) -> None:
    values: dict[str, Json] = {"import_s": 6.0, "ready_s": 0.2, "begun_s": 3.0, "stepped_s": stepped}
    (bar,) = overhead.judge([Sample(cell="cold start", repeat=r, values=values) for r in range(3)])
    assert bar.met == met
