"""Every benchmark's driver runs to its end, on the CPUs and small."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from fedmt_flower.bench import allocation_table, energy, mixes, regret, report
from fedmt_flower.bench.bench import Bench, Options
from fedmt_flower.bench.driver import BUDGETS_S, DRIVERS, load_driver, measure
from fedmt_flower.bench.result import Json, Result, load
from fedmt_flower.device.profile.profiler import Profiler
from fedmt_flower.domain.device import Backend
from fedmt_flower.domain.task import Task
from fedmt_flower.errors import ConfigError

pytestmark = pytest.mark.timeout(600)


def run(name: str, out: Path, **changes: object) -> Result:
    options = {
        "backend": Backend.CPU,
        "quick": True,
        "out": out,
        "budget_s": 300.0,
        "command": f"fedmt bench {name}",
    }
    return measure(name, Options(**(options | changes)), lambda line: None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.deployment if name in {"federation", "instead", "exchange"} else ()
        )
        for name in DRIVERS
        if name != "streaming"  # tests/deployment/test_streaming.py
    ],
)
def test_a_driver_leaves_a_whole_record(name: str, tmp_path: Path) -> None:
    result = run(name, tmp_path)
    assert result.complete
    assert load(tmp_path / f"cpu/{name}.json") == result
    assert not list(tmp_path.rglob("*.jsonl"))
    table = report.tables(result)
    assert table.count("\n|") >= 2
    assert "nan" not in table
    for picture in tmp_path.rglob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    if name == "round":
        check_rounds_of_the_same_seats(result)
    if name in {"regret", "regret-elsewhere"}:
        # A plan chooses between these sizes: how fast a task is with each was measured.
        tasks = [sample.values["task"] for sample in result.samples if sample.cell.startswith("features")]
        assert tasks
        assert all([size for size, _ in task["batch_rates"]] == [4] for task in tasks)
    if name in {"equality", "faults", "federation", "instead"}:
        # How long it takes on a busy host is not what this test is about.
        timed = ("seconds", "one run of all")
        missed = [bar.name for bar in result.bars if not bar.met]
        assert [name for name in missed if not any(word in name for word in timed)] == []


def check_rounds_of_the_same_seats(result: Result) -> None:
    """They were run once in a repeat, whatever they are called."""
    for sample in result.of("heavy | 1:2:6"):
        spans, levels = sample.values["makespan_s"], sample.values["levels"]
        capped = [name for name in spans if name.startswith("found") or name == "fedmt"]
        for name in ("sharing", "static 60", "isolated"):
            assert {spans[own] for own in capped if levels[own] == levels[name]} <= {spans[name]}
        assert spans["temporal"] != spans["sharing"]


@pytest.mark.parametrize("left", ["samples", "record"])
def test_what_the_budget_cut_off_is_taken_up_again(left: str, tmp_path: Path) -> None:
    first = run("allocation", tmp_path, budget_s=1.0)
    assert not first.complete
    if left == "record":  # as where results are kept, the benchmark's own file is not
        (tmp_path / "cpu/allocation.samples.jsonl").unlink()
    second = run("allocation", tmp_path, resume=True)
    assert second.complete
    assert second.samples[: len(first.samples)] == first.samples
    assert second.seconds > first.seconds
    (bar,) = [bar for bar in second.bars if "repeats" in bar.name]
    assert (bar.value, bar.met) == (2, False)


def test_regret_shares_its_time_among_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = regret.settings(quick=True)
    names = ("III.1", "III.3", "heavy", "light")
    own = dict.fromkeys(names, known["settings"]["III.1"])
    given: dict[str, float] = {}

    class Study:
        def __init__(self, bench: Bench, profiler: Profiler, name: str) -> None:
            self.name = name

        def run(self, until: float) -> bool:
            given[self.name] = until - time.monotonic()
            return False

    monkeypatch.setattr(regret, "settings", lambda quick: known | {"settings": own})
    monkeypatch.setattr(regret, "_Study", Study)
    assert not run("regret", tmp_path, budget_s=1000.0).complete
    assert list(given) == list(names)
    # Each leaves all of its share to those after it.
    assert [round(1000 / seconds) for seconds in given.values()] == [4, 3, 2, 1]


def test_every_driver_has_a_claim_a_budget_and_a_table() -> None:
    assert set(BUDGETS_S) == set(DRIVERS)
    for name in DRIVERS:
        driver = load_driver(name)
        assert driver.CLAIM
        assert math.isfinite(BUDGETS_S[name])


def test_an_unknown_benchmark_is_told_with_the_choices() -> None:
    with pytest.raises(ConfigError, match="did you mean timeline"):
        load_driver("timelin")


def test_a_part_that_fails_does_not_end_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = energy.settings(quick=True)
    broken = {**allocation_table.SETTINGS, "heavy": ("AX",), "light": ("R18",)}
    monkeypatch.setattr(energy, "SETTINGS", broken)
    monkeypatch.setattr(energy, "settings", lambda quick: known | {"settings": ["heavy", "light"]})
    make = mixes.synthetic_tasks

    def tasks(models: Iterable[str], settings: dict[str, Json]) -> tuple[Task, ...]:
        return tuple(
            replace(task, model="fedmt_flower.tasks.models:nothing") if task.name == "AX" else task
            for task in make(models, settings)
        )

    monkeypatch.setattr(energy, "synthetic_tasks", tasks)
    result = run("energy", tmp_path)
    assert not result.complete
    assert set(result.facts["failed"]) == {"heavy"}
    assert len(result.of("light | fedmt")) == 2
