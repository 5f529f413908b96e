"""`fedmt show`, on folders as a run leaves them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedmt_flower.cli import main
from fedmt_flower.cli.tables import number, plural
from fedmt_flower.domain.network import Link
from fedmt_flower.domain.round import Status
from fedmt_flower.domain.timeline import Phase, Span
from fedmt_flower.federation.record import Entry, Outcome, Summary, TaskSummary
from fedmt_flower.federation.run_folder import RunFolder, SweepFolder


def leave_run(path: Path, *, after: float, outcome: Outcome = Outcome.FINISHED, **summary: Any) -> RunFolder:
    """A run's folder with one round of one task in it."""
    folder = RunFolder.create(path, "federation: {}\n")
    spans = (Span(task="wine", phase=Phase.COMPUTE, start_s=0.0, end_s=2.0),)
    entry = Entry(
        round=1, final=False, started=0.0, site="a", task="wine", status=Status.DONE, place=0, spans=spans
    )
    folder.append([entry])
    task = TaskSummary(
        metric="accuracy",
        before=0.25,
        after=after,
        samples=12345,
        rate=6172.5,
        budget=60.0,
        level=2,
        failures=("site 'a', task 'wine': the cellar is flooded",),
    )
    folder.save_summary(
        Summary(
            run=str(path),
            outcome=outcome,
            started=0.0,
            wall_s=7.0,
            rounds=1,
            sites=("a", "b"),
            policy="static",
            backend="cpu",
            round_s=(2.0,),
            throughput=6172.5,
            tasks={"wine": task},
            **summary,
        )
    )
    return folder


def test_a_run_is_shown_with_its_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = leave_run(tmp_path / "run", after=0.875)
    assert main(["show", str(folder.path)]) == 0
    shown = capsys.readouterr().out
    (row,) = [line.split() for line in shown.splitlines() if line.startswith("wine")]
    assert row == ["wine", "accuracy", "0.25", "0.875", "12,345", "6,172", "60", "%", "2", "1"]
    assert "1 round, 2 sites, static on cpu" in shown
    assert "the cellar is flooded" in shown


def test_a_predicted_rate_stands_beside_the_observed_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = leave_run(tmp_path / "run", after=0.875)
    summary = folder.summary()
    wine = replace(summary.tasks["wine"], predicted=6500.0)
    folder.save_summary(replace(summary, tasks={"wine": wine}))
    assert main(["show", str(folder.path)]) == 0
    shown = capsys.readouterr().out
    assert "(predicted)" in shown
    assert "6,172 (6,500)" in shown


def test_the_timeline_is_drawn_if_a_server_left_none(tmp_path: Path) -> None:
    folder = leave_run(tmp_path / "run", after=0.875)
    assert not (folder.path / "timeline.png").exists()
    assert main(["show", str(folder.path)]) == 0
    assert (folder.path / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = leave_run(tmp_path / "run", after=0.875, outcome=Outcome.INTERRUPTED)
    assert main(["show", "--json", str(folder.path)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["outcome"] == "interrupted"
    assert shown["tasks"]["wine"]["after"] == 0.875


def test_a_sweep_is_one_table_even_where_a_run_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choices = {
        "0_sites=1": {"federation.sites": "1", "allocation": "temporal"},
        "1_sites=2": {"federation.sites": "2", "allocation": "temporal"},
    }
    SweepFolder.create(tmp_path / "sweep", choices)
    leave_run(tmp_path / "sweep" / "0_sites=1", after=0.5)
    assert main(["show", str(tmp_path / "sweep")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "temporal" in line]
    assert rows[0] == ["1", "temporal", "0.5", "6,172", "2.0", "7", "finished"]
    assert rows[1] == ["2", "temporal", "–", "–", "–", "–", "failed"]


LTE = Link(up_mbps=15, down_mbps=60, latency_s=0.05)


def test_what_was_promised_and_an_emulated_link_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: dict[str, Any] = {
        "predicted_s": (None, 1.5),
        "lower_bound_s": (None, 1.25),
        "link": LTE,
        "overlap": "fifo",
    }
    folder = leave_run(tmp_path / "run", after=0.875, **told)
    assert folder.summary().link == LTE
    assert main(["show", str(folder.path)]) == 0
    shown = capsys.readouterr().out
    assert "predicted: 1.5 s, and no less than 1.2 s" in shown
    assert "emulated link: 15 Mbit/s up and 60 down, 50 ms latency; overlap fifo" in shown


def test_a_sweep_shows_promises_and_links_where_a_run_has_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    SweepFolder.create(tmp_path / "sweep", {name: {"network": name} for name in ("none", "lte")})
    leave_run(tmp_path / "sweep" / "none", after=0.5)
    leave_run(tmp_path / "sweep" / "lte", after=0.5, predicted_s=(1.5,), lower_bound_s=(1.25,), link=LTE)
    assert main(["show", str(tmp_path / "sweep")]) == 0
    lines = capsys.readouterr().out.splitlines()
    none, lte = (next(line for line in lines if line.startswith(name)).split() for name in ("none", "lte"))
    assert none == ["none", "0.5", "6,172", "2.0", "–", "–", "–", "7", "finished"]
    assert lte[:6] == ["lte", "0.5", "6,172", "2.0", "1.5", "1.2"]
    assert " ".join(lte[6:]) == "15 Mbit/s up and 60 down, 50 ms latency 7 finished"


def test_a_summary_that_is_broken_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = leave_run(tmp_path / "run", after=0.5)
    (folder.path / "summary.json").write_text('{"run": 5}')
    assert main(["show", str(folder.path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "summary.json cannot be read" in line


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0.12341, "0.1234"),
        (12.0, "12"),
        (999.94, "999.9"),
        (12345.6, "12,346"),
        (-4321.0, "-4,321"),
    ],
)
def test_numbers_have_four_digits(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_nouns_agree_with_their_numbers() -> None:
    assert [plural(count, "site") for count in (0, 1, 2)] == ["0 sites", "1 site", "2 sites"]
