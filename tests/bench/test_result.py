"""The record of a benchmark, its spread and its bars."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from fedmt_flower.bench.result import Bar, Machine, Result, Sample, kind_of, load, save, this_machine
from fedmt_flower.bench.spread import spread
from fedmt_flower.errors import ConfigError


def test_a_spread_gives_students_interval() -> None:
    five = spread([10.0, 11.0, 9.0, 10.5, 9.5])
    assert (five.n, five.mean, five.median) == (5, 10.0, 10.0)
    assert five.deviation == pytest.approx(0.7906, abs=1e-4)
    assert five.half_width == pytest.approx(2.7764 * 0.7906 / math.sqrt(5), abs=1e-3)


def test_one_repeat_is_no_evidence() -> None:
    assert spread([3.0]).ci95 == (-math.inf, math.inf)
    assert not Bar.at_least("speed", 1.0, spread([3.0])).met


@pytest.mark.parametrize("values", [[], [1.0, math.nan]])
def test_what_was_not_measured_has_no_spread(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one finite number"):
        spread(values)


def test_a_bar_is_met_only_beyond_doubt() -> None:
    near = spread([1.9, 2.1, 2.0])
    assert near.mean >= 1.95
    assert not Bar.at_least("factor", 1.95, near).met
    assert Bar.at_least("factor", 1.5, near).met
    assert not Bar.at_most("seconds", 2.05, near).met
    assert Bar.at_most("seconds", 2.5, near).met


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    result = Result(
        name="allocation",
        claim="sharing beats turns",
        machine=this_machine(None),
        versions={"torch": "2.11"},
        command="fedmt bench allocation",
        date="2026-11-22T10:00:00Z",
        seconds=1.5,
        settings={"batch": 128},
        complete=True,
        samples=(
            Sample(cell="x", repeat=1, values={"rates": {"R18": 2.0}}),
            Sample(cell="x", repeat=0, values={"rates": {"R18": 1.0}}, flags=("throttled",)),
        ),
        facts={"note": [1, "two"]},
        bars=(Bar.at_least("factor", 1.0, spread([3.0])),),
    )
    save(result, tmp_path / "cpu/allocation.json")
    assert load(tmp_path / "cpu/allocation.json") == result
    assert [sample.repeat for sample in result.of("x")] == [0, 1]
    assert json.loads((tmp_path / "cpu/allocation.json").read_text())["bars"][0]["ci95"] == [None, None]


def test_a_file_that_is_no_record_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"name": 1}')
    with pytest.raises(ConfigError, match="expected the record of a benchmark"):
        load(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("gpu", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm4"),
        ("NVIDIA GeForce RTX 4090", "geforce-rtx-4090"),
    ],
)
def test_results_are_filed_by_the_kind_of_gpu(gpu: str, kind: str) -> None:
    assert kind_of(gpu) == kind


def test_the_machine_is_described_without_its_name() -> None:
    machine = this_machine(None)
    assert isinstance(machine, Machine)
    assert machine.kind == "cpu"
    assert machine.cpus >= 1
