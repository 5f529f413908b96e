"""The whole is judged by a plan that is fair as well as fast."""

from __future__ import annotations

import pytest

from fedmt_flower.bench.result import Json, Sample
from fedmt_flower.bench.step_table import judge, limit_share

SOLO = {"plain": (1000.0, 4000.0, 1000.0), "fast": (2000.0, 8000.0, 2000.0)}
MODELS = ("D121", "V16", "R101")


def samples(raw_plan: tuple[float, float, float]) -> list[Sample]:
    """Sharing gives every task 60 % of its solo rate; `raw_plan` are the rates under the raw objective."""
    values: dict[str, Json] = {"volume": 1024}
    for kind, solo in SOLO.items():
        for model, rate in zip(MODELS, solo, strict=True):
            name = f"{model}.fast" if kind == "fast" else model
            values[f"solo | {kind} | {name}"] = [rate]
        values[f"rates | {kind} | sharing"] = [0.6 * rate for rate in solo]
        values[f"rates | {kind} | fedmt, raw"] = list(raw_plan)
        values[f"round | {kind} | in turn"] = 3.0 if kind == "plain" else 1.5
        values[f"round | {kind} | fedmt"] = 0.9
    return [Sample(cell="heavy", repeat=repeat, values=values) for repeat in range(2)]


def test_a_plan_that_starves_a_task_does_not_count() -> None:
    starving = next(judge(samples((100.0, 8000.0, 100.0)), ["heavy"]))
    assert "sharing" in starving.name
    assert starving.value == 0.6 * 12000 / 2000
    fair = next(judge(samples((1300.0, 5400.0, 1300.0)), ["heavy"]))
    assert "fedmt, raw" in fair.name
    assert fair.value == 8000 / 2000


def test_rounds_are_compared_with_the_eager_one_in_turn() -> None:
    *_, gain = judge(samples((1300.0, 5400.0, 1300.0)), ["heavy"])
    assert gain.value == 3.0 / 0.9
    assert gain.met


def test_a_setting_that_was_not_measured_is_not_judged() -> None:
    assert list(judge([], ["heavy"])) == []


def test_the_distance_to_the_limit_is_that_of_the_step_s_own_precision() -> None:
    (values, *_) = (sample.values for sample in samples((1300.0, 5400.0, 1300.0)))
    limit = {
        "plain": {"flops": [4e9, 1e9, 8e9], "peak": 4e14},
        "fast": {"flops": [4e9, 1e9, 8e9], "peak": 8e14},
    }
    in_turn = limit_share("heavy", "plain", "in turn", limit)(values)
    assert in_turn == pytest.approx((4e9 * 1000 + 1e9 * 4000 + 8e9 * 1000) / 3 / 4e14)
    shared = limit_share("heavy", "fast", "sharing", limit)(values)
    assert shared == pytest.approx(0.6 * (4e9 * 2000 + 1e9 * 8000 + 8e9 * 2000) / 8e14)
