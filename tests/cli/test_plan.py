"""`fedmt plan`, and the way from a profile to a round, on CPUs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fedmt_flower.cli import main
from fedmt_flower.device.engine.connection import connect, running
from fedmt_flower.domain.round import Assignment, Mode, RoundOrder
from fedmt_flower.federation.compose import compose
from fedmt_flower.federation.running import initial_models

TASKS = ("device=cpu", "~tasks.cells", "tasks.forms.parameters.epochs=2")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("plan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDMT_HOME", str(path / "home"))
        yield path
        for engine in running():
            engine.stop()


@pytest.fixture(scope="module")
def profile(home: Path) -> Path:
    path = home / "profile.jsonl"
    assert main(["profile", *TASKS, "--quick", "--samples", "16", "--budget-s", "120", "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def model(profile: Path) -> Path:
    path = profile.with_name("model.json")
    assert main(["fit", str(profile), "-o", str(path), "--threads", "1"]) == 0
    return path


def test_from_a_profile_over_a_model_and_a_plan_to_a_round(
    profile: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TASKS, "allocation=fedmt", f"allocation.model={model}"]
    chart = profile.with_name("plan.png")
    assert main(["plan", *words, "--profile", str(profile), "--json", "-o", str(chart)]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["basis"].startswith("model fitted to ")
    assert {row["task"]: row["kind"] for row in plan["tasks"]} == {
        "forms": "stepped",
        "progression": "stepped",
    }
    assert {one["scheme"] for one in plan["baselines"]} == {
        "temporal",
        "timeslice",
        "isolated",
        "sharing",
        "static",
    }
    assert plan["chosen"]["makespan_s"] == plan["makespan_s"] >= plan["lower_bound_s"] > 0
    assert all(row["rate"] > 0 and row["batch_size"] > 0 for row in plan["tasks"])
    assert [point["virtual_resource"] for point in plan["sweep"]]
    assert plan["why"][0].startswith("wanted: ")
    assert chart.read_bytes().startswith(b"\x89PNG")

    settings = compose(words)
    site = {"partition-id": 0, "num-partitions": 1}
    order = RoundOrder(
        run="chain",
        round=1,
        site="a",
        assignments=tuple(
            Assignment(task=replace(task, parameters={**site, **task.parameters}), mode=Mode.TRAIN)
            for task in settings.tasks
        ),
        allocation=settings.allocation,
    )
    engine = connect(settings.device)
    report = engine.run_round(order, initial_models(settings)).report
    engine.close()
    assert report.forecast is not None
    assert report.forecast.basis == plan["basis"]
    assert all(task.error == "" and task.rate > 0 for task in report.tasks)


def test_tasks_are_measured_where_there_is_no_profile(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chart = home / "measured.png"
    assert main(["plan", *TASKS, "batching=proportional", "network=edge_100mbps", "-o", str(chart)]) == 0
    shown = capsys.readouterr().out
    assert "capped, by the analytic model of threads" in shown
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line}
    assert rows["forms"][1] == rows["progression"][1] == "stepped"
    assert rows["temporal"][-1].endswith("×")
    assert "above what no order beats" in shown
    assert chart.exists()


def test_a_task_without_steps_is_run_once_and_its_kind_told(
    home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "ward.py").write_text(
        "import time\n\n\ndef train(model, data, batch_size=32):\n    time.sleep(0.3)\n"
    )
    words = [f"tasks.forms.python_path=[{tmp_path}]", "tasks.forms.train=ward:train"]
    added = [*TASKS, f"+{words[0]}", f"+{words[1]}"]
    assert main(["plan", *added, "--json", "-o", str(home / "whole.png")]) == 0
    plan = json.loads(capsys.readouterr().out)
    rows = {row["task"]: row for row in plan["tasks"]}
    assert (rows["forms"]["kind"], rows["progression"]["kind"]) == ("whole-call", "stepped")
    assert rows["forms"]["solo_rate"] == pytest.approx(rows["forms"]["samples"] / 0.3, rel=0.2)
    assert plan["reallocation"] in ([], plan["reallocation"][:1])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["device=inline"], "device inline: its tasks run in turn"),
        (["allocation.virtual_resource=50"], "virtual_resource: got 50 %"),
        (["--profile", "nowhere.jsonl"], "nowhere.jsonl: No such file"),
    ],
)
def test_bad_calls_are_told_in_one_line(
    words: list[str], said: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *TASKS[:1], *words, "-o", str(home / "none.png")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (home / "none.png").exists()


def test_a_profile_of_a_gpu_is_planned_by_a_model_of_gpus(
    profile: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = home / "elsewhere.jsonl"
    head, rest = profile.read_text().split("\n", 1)
    elsewhere.write_text(json.dumps(json.loads(head) | {"backend": "mps"}) + "\n" + rest)
    words = [*TASKS, "--profile", str(elsewhere), "--json", "-o", str(home / "elsewhere.png")]
    assert main(["plan", *words]) == 0
    assert "NVIDIA H100" in json.loads(capsys.readouterr().out)["basis"]


def test_a_task_that_cannot_have_all_budgets_is_planned_with_its_own(
    profile: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bounded = home / "bounded.jsonl"
    head, rest = profile.read_text().split("\n", 1)
    header = json.loads(head)
    levels = header["levels"]
    next(task for task in header["tasks"] if task["task"] == "progression")["levels"] = levels[-1:]
    bounded.write_text(json.dumps(header) + "\n" + rest)
    words = [*TASKS, "allocation=fedmt", "--profile", str(bounded), "--json"]
    assert main(["plan", *words, "-o", str(home / "bounded.png")]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["levels"] == {"forms": levels, "progression": levels[-1:]}
    assert [one["scheme"] for one in plan["equal"]] == ["100 % each"]
    if len(levels) > 1:
        assert f"1 to {len(levels)} budgets for each task" in plan["why"][1]


def test_a_profile_of_other_tasks_is_refused(
    profile: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "device=cpu", "--profile", str(profile), "-o", str(home / "none.png")]) == 1
    assert "has nothing on task 'cells'; expected one of forms, progression" in capsys.readouterr().err


@pytest.mark.simulation
def test_a_run_under_fedmt_shows_what_was_predicted_beside_what_was_observed(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = home / "run"
    words = [*TASKS, "allocation=fedmt", "federation.rounds=2", "federation.sites=1", f"folder={folder}"]
    assert main(["sim", *words, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert all(task["predicted"] > 0 for task in summary["tasks"].values())
    assert all(seconds > 0 for seconds in summary["predicted_s"])
    assert main(["show", str(folder)]) == 0
    assert "predicted" in capsys.readouterr().out
    entries = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    trained = [entry for entry in entries if not entry["final"]]
    assert {entry["basis"] for entry in trained if entry["round"] == 1} == {"analytic model of threads"}
