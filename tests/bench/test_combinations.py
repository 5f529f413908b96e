"""Tables IV and V: what made-up rates of combinations come to, and how workers are shared out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from records import made_up

from fedmt_flower.bench import devices, report, scaling
from fedmt_flower.bench.combination_table import alone_cell, flagged, name_of, pools_cell, rows
from fedmt_flower.bench.combinations import packed
from fedmt_flower.bench.result import Json, Sample, save

SOLO = {"V16": 16000.0, "R34": 8000.0, "R18": 12000.0, "R50": 5000.0, "R101": 2500.0, "M3": 6000.0}
SOLO |= {"D121": 2000.0, "AX": 40000.0}
REPEATS = 3


def samples(shares: Mapping[tuple[str, ...], float], kind: str = "plain", solo: float = 1.0) -> list[Sample]:
    """Every combination in one pool; under each scheme its tasks keep one share of their solo rate."""
    suffix = ".fast" if kind == "fast" else ""
    pool = [name_of(models) for models in shares]
    taken = [Sample(cell=pools_cell(kind), repeat=0, values={"pools": [pool]})]
    models = {model for some in shares for model in some}
    busy = {model: 50.0 if model == "V16" else 80.0 for model in models}
    for repeat in range(REPEATS):
        for model in models:
            task = f"{model}{suffix}"
            cell = alone_cell(kind, 0, task)
            taken.append(
                Sample(
                    cell=cell,
                    repeat=repeat,
                    values={"rates": {task: solo * SOLO[model]}, "utilisation": busy[model]},
                )
            )
        for some, share in shares.items():
            rates = {f"{model}{suffix}": solo * share * SOLO[model] for model in some}
            for scheme, part in (("isolated", 0.8), ("sharing", 0.9), ("fedmt", 1.0)):
                values: dict[str, Json] = {"rates": {task: part * rate for task, rate in rates.items()}}
                taken.append(
                    Sample(cell=f"{kind} | {name_of(some)} | {scheme}", repeat=repeat, values=values)
                )
    for some in shares:
        plan: dict[str, Json] = {"budgets": [60.0] * len(some), "model": "made up"}
        taken.append(Sample(cell=f"{kind} | {name_of(some)} | plan", repeat=0, values=plan))
    return taken


def shares_of(two: float, four: float, five: float) -> dict[tuple[str, ...], float]:
    return {models: {2: two, 4: four, 5: five}[len(models)] for models in scaling.PAPER}


def test_a_factor_is_that_over_equal_time_and_is_held_to_the_paper_s() -> None:
    taken = samples({("V16", "R34"): 0.81, ("R34", "R50"): 0.81})
    first, second = rows(taken, [["V16", "R34"], ["R34", "R50"]], ["plain"])
    assert first.in_turn.mean == 12000.0
    assert first.factor().mean == pytest.approx(0.81 * 24000 / 12000)
    assert first.largest.mean == pytest.approx(16000 / 12000)
    met = {bar.name.split(":")[0]: bar.met for bar in scaling.judge([first, second])}
    assert met == {"V16 + R34": True, "R34 + R50": False}


@pytest.mark.parametrize(("five", "grows"), [(0.6, True), (0.3, False)])
def test_gains_are_to_grow_with_the_number_of_tasks(five: float, grows: bool) -> None:
    taken = samples(shares_of(0.8, 0.65, five))
    bars = list(scaling.judge(rows(taken, [list(models) for models in scaling.PAPER], ["plain"])))
    growth = {bar.name: bar.met for bar in bars if " tasks over " in bar.name}
    assert len(growth) == 4
    assert all(met for name, met in growth.items() if "4 tasks over 2" in name)
    assert [met for name, met in growth.items() if "5 tasks over 2" in name] == [grows, grows]


def test_fast_steps_stand_beside_plain_ones() -> None:
    models = ("V16", "R34")
    taken = samples({models: 0.8}) + samples({models: 0.7}, "fast", solo=3.0)
    settings = scaling.settings(quick=False) | {"combinations": [list(models)]}
    table = scaling.report(made_up("scaling", settings, taken))
    assert "| V16 + R34 | 12000 | 65 % | 1.33× | 1.28× |" in table
    # Three times the rates, 0.7 of them kept by each of two tasks, over the plain mean.
    assert table.rstrip().endswith("| 60, 60 | 4.20× |")


def test_a_co_run_above_its_solo_rate_is_flagged() -> None:
    taken = samples({("V16", "R34"): 1.01})
    lines = list(flagged(taken, [["V16", "R34"]], ["plain"]))
    assert len(lines) == 2
    assert lines[0] == "plain, V16 + R34, fedmt: V16 at 16160 samples/s, alone 16000 to 16000"


def test_two_devices_are_compared_by_their_factors(tmp_path: Path) -> None:
    near = dict.fromkeys(devices.PAPER, 0.8)
    far = near | {("AX", "V16", "R18"): 0.6}
    settings = devices.settings(quick=False)
    one = made_up("devices", settings, samples(near))
    two = made_up("devices", settings, samples(far, solo=1.3), kind="h200")
    table, bars = devices.compare([one, two])
    assert {bar.name.split(":")[0]: bar.met for bar in bars} == {
        name_of(models): models != ("AX", "V16", "R18") for models in devices.PAPER
    }
    assert "| R50 + V16 + M3 | 2.40× | 2.40× | 1.00 | 0.0% |" in table
    save(one, tmp_path / "h100/devices.json")
    text = "<!-- bench: devices h100+h200 -->\n<!-- /bench -->"
    assert "h200 missing" in report.filled(text, tmp_path, tmp_path)
    save(two, tmp_path / "h200/devices.json")
    assert table in report.filled(text, tmp_path, tmp_path)


def test_workers_are_shared_out_in_as_few_pools_as_there_is_room_for() -> None:
    needs = {"a": {"x@100", "x@50"}, "b": {"x@100", "y@100"}, "c": {"y@100", "z@100"}, "d": {"x@100"}}
    assert packed(needs, 3) == [["a", "b"], ["c", "d"]]
    assert packed(needs, 4) == [["a", "b", "c", "d"]]
    assert packed({"a": {"x", "y"}}, 1) == [["a"]]
