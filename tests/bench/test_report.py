"""The documents' tables are those of the records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fedmt_flower.bench import report
from fedmt_flower.bench.allocation_table import above_solo, round_gain, rows
from fedmt_flower.bench.driver import DRIVERS, HOST
from fedmt_flower.bench.result import Bar, Result, Sample, load, save, this_machine
from fedmt_flower.bench.spread import spread

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"


def sample(cell: str, repeat: int, **values: object) -> Sample:
    return Sample(cell=cell, repeat=repeat, values={"occupancy": 40.0, "utilisation": 90.0} | values)


@pytest.fixture
def result() -> Result:
    """Two repeats of the heavy setting: alone 10 and 12, 100, 20; together half, half and three quarters."""
    samples = []
    for repeat, d121 in enumerate((10.0, 12.0)):
        alone = {"D121": d121, "V16": 100.0, "R101": 20.0}
        samples += [sample(f"heavy | solo | {m}", repeat, rates={m: rate}) for m, rate in alone.items()]
        together = {"D121": d121 / 2, "V16": 50.0, "R101": 15.0}
        samples.append(sample("heavy | rates | static 60", repeat, rates=together))
        volumes = {"D121": 10, "V16": 10, "R101": 10}
        for scheme, seconds in (("temporal", 3.0), ("static 60", 1.5)):
            cell = f"heavy | round 1:1:1 | {scheme}"
            samples.append(sample(cell, repeat, makespan_s=seconds, samples=volumes))
    return Result(
        name="allocation",
        claim="sharing beats turns",
        machine=replace(this_machine(None), kind="h100", gpu="NVIDIA H100"),
        versions={},
        command="fedmt bench allocation",
        date="2026-11-22T10:00:00+00:00",
        seconds=10.0,
        settings={"batch": 128},
        complete=False,
        samples=tuple(samples),
        bars=(Bar.at_least("P_f", 1.0, spread([1.75, 1.75])),),
    )


def test_every_column_of_a_row_is_of_one_plan(result: Result) -> None:
    temporal, shared, largest = rows(result.samples, "heavy")
    assert temporal.raw.mean == pytest.approx((130 + 132) / 2 / 3)
    assert temporal.fairness.mean == 1.0
    assert shared.raw.mean == pytest.approx(70.5)
    assert shared.fairness.mean == pytest.approx(0.5 + 0.5 + 0.75)
    assert shared.smallest_share.mean == pytest.approx(0.5)
    assert shared.throughput["1:2:3"] is None
    assert (throughput := shared.throughput["1:1:1"]) is not None
    assert throughput.mean == pytest.approx(20.0)
    assert largest.scheme == "largest alone (V16)"
    assert largest.smallest_share.mean == 0.0


def test_a_setting_that_was_not_measured_has_no_rows(result: Result) -> None:
    assert rows(result.samples, "light") == ()


def test_gains_are_paired_by_repeat(result: Result) -> None:
    gain = round_gain(result.samples, "heavy", "1:1:1", "static 60")
    assert gain is not None
    assert (gain.mean, gain.n) == (2.0, 2)
    assert round_gain(result.samples, "heavy", "1:2:3", "static 60") is None


def test_a_co_run_beyond_the_solos_spread_is_flagged(result: Result) -> None:
    assert above_solo(result.samples, "heavy") == []
    fast = [
        replace(s, values={**s.values, "rates": {"D121": 12.5, "V16": 50.0, "R101": 15.0}})
        if s.cell == "heavy | rates | static 60"
        else s
        for s in result.samples
    ]
    (line,) = above_solo(fast, "heavy")
    assert line == "heavy, static 60: D121 at 12 samples/s, alone 10 to 12"


def test_a_marked_place_is_filled_and_stays_as_it_is(result: Result, tmp_path: Path) -> None:
    save(result, tmp_path / "results/h100/allocation.json")
    (tmp_path / "results/h100/allocation.png").touch()
    text = "before\n<!-- bench: allocation h100 -->\nold\n<!-- /bench -->\nafter\n"
    filled = report.filled(text, tmp_path / "results", tmp_path / "docs")
    assert "old" not in filled
    assert "| static 60 | 70 ± 6 |" in filled
    assert "(../results/h100/allocation.png)" in filled
    assert "Not complete" in filled
    assert filled.startswith("before\n")
    assert filled.endswith("<!-- /bench -->\nafter\n")
    assert report.filled(filled, tmp_path / "results", tmp_path / "docs") == filled


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    text = "<!-- bench: timeline h200 -->\n<!-- /bench -->"
    assert "Not measured yet: run `fedmt bench timeline`." in report.filled(text, tmp_path, tmp_path)


@pytest.mark.parametrize("document", report.DOCUMENTS, ids=str)
def test_a_document_has_the_tables_of_the_records(document: Path) -> None:
    path = ROOT / document
    text = path.read_text()
    assert report.filled(text, RESULTS, path.parent) == text, "run `fedmt bench report`"


def test_every_record_can_be_read_and_told() -> None:
    for path in RESULTS.glob("*/*.json"):
        record = load(path)
        assert path.parts[-2:] == (record.machine.kind, f"{record.name}.json")
        assert report.block(record)


def test_every_benchmark_has_its_place_in_the_documents() -> None:
    told = (ROOT / "docs/benchmarks.md").read_text()
    listed = (ROOT / "benchmarks/README.md").read_text()
    for name in DRIVERS:
        assert f"<!-- bench: {name} {'cpu' if name in HOST else 'h100'} -->" in told
        assert f"`fedmt bench {name}`" in listed
