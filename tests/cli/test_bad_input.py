"""What cannot work is refused in one line each, before anything starts."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from fedmt_flower.cli import main

OWN = Path(__file__).parent / "own"

ONE_LINE = {
    ("tasks=hospitl",): "did you mean hospital?",
    ("tasks.forms.model=resnet19",): "did you mean resnet18?",
    ("tasks.forms.data=digit",): "did you mean digits?",
    ("tasks.forms.objective=clasification",): "did you mean classification?",
    ("tasks.forms.model=no.colon",): "expected an import path like package.module:object",
    ("tasks.forms.model=nowhere:net",): "there is no module 'nowhere'",
    ("tasks.forms.modle=lenet",): "did you mean tasks.forms.model",
    ("tasks.forms.parameters.epoch=2",): "did you mean tasks.forms.parameters.epochs",
    ("allocation=temporl",): "did you mean temporal?",
    ("allocation.policy=fair",): "expected one of fedmt, isolated, sharing, static, temporal, timeslice",
    ("allocation=fedmt", "allocation.objective=speed"): "expected one of fairness, makespan, raw",
    ("allocation=fedmt", "allocation.virtual_resource=50"): "allocation.virtual_resource: got 50 %",
    (
        "allocation=sharing",
        "+allocation.model=here",
    ): "allocation.model: got here with sharing, expected none",
    ("allocation=static", "allocation.budgets=[0]"): "got 0 %",
    ("allocation=static", "allocation.budgets=[101]"): "got 101 %",
    ("allocation=static", "allocation.budgets=[nan]"): "got nan %",
    ("allocation=static", "allocation.budgets=[60,60]"): "got 2 budgets for 3 tasks",
    ("batching=proportionl",): "did you mean proportional?",
    ("batching.choices=[0]",): "batching.choices: got 0, expected at least 1 sample",
    ("batching.epsilon=-1",): "batching.epsilon: got -1, expected 0 or more",
    ("batching.learning_rate=cubic",): "expected one of linear, off, sqrt",
    ("overlap.delta=1",): "overlap.delta: got 1, expected 0 or more and below 1",
    ("overlap.delta=-0.1",): "overlap.delta: got -0.1",
    ("overlap=fifo", "overlap.order=[cels]"): "there is no task 'cels'; expected one of cells, forms",
    ("overlap=fifo", "overlap.order=[cells,cells]"): "expected every task once",
    ("overlap=flexible", "overlap.order=[cells]"): "expected none, since flexible chooses it",
    ("network=edge_400mbs",): "did you mean edge_400mbps?",
    ("network=lte", "network.up_mbps=0"): "network up: got 0 Mbit/s, expected a finite rate above 0",
    ("network=lte", "network.latency_s=-0.1"): "network latency: got -0.1 s, expected 0 or more",
    ("network.up_mbps=100",): "expected both rates, or neither",
    ("network.latency_s=0.1",): "no rates; give up_mbps and down_mbps",
    ("network=lte", "device=inline"): "device=inline emulates no link",
    ("data=dirichlet", "data.alpha=0"): "expected more than 0",
    ("data.site_volumes=[1,2]",): "got 2 numbers for 3 sites",
    ("data.site_volumes=[1,0,2]",): "expected numbers above 0",
    ("data.task_volumes=[1,2]",): "got 2 numbers for 3 tasks",
    ("data.task_volumes=[1,0,2]",): "expected numbers above 0",
    ("federation.rounds=0",): "expected 1 or more",
    ("federation.rounds=many",): "expected int, got str",
    ("federation.strategy.name=FedAvgg",): "did you mean FedAvg?",
    ("federation.strategy.parameters.etta=1",): "there is no key",
    ("+federation.strategy.parameters.fraction_trian=1",): "did you mean fraction_train?",
    ("+federation.strategies.form.name=FedAdam",): "there is no task 'form'; expected one of",
    ("device.backend=cup",): "did you mean cpu?",
    ("device.deadline_s=-1",): "expected more than 0 seconds",
    ("+tasks.Forms.model=lenet", "+tasks.Forms.data=digits"): "two tasks are named 'forms'",
    ("+tasks.x.model=lenet",): "tasks.x.data: missing",
    ("~tasks.forms", "~tasks.progression", "~tasks.cells"): "no task given",
    ("rounds",): "expected key=value",
    ("federation.sites=1,2",): "fedmt sim -m",
    ("+no.such=1",): "no: there is no such key",
    ("folder=${nowhere}",): "nowhere",
}


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


@pytest.mark.parametrize(("overrides", "expected"), ONE_LINE.items(), ids=map(" ".join, ONE_LINE))
def test_one_clear_line(
    overrides: tuple[str, ...],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sim", *overrides]) == 1
    (line,) = lines(capsys)
    assert line.startswith("fedmt: ")
    assert expected in line
    assert list(tmp_path.iterdir()) == []


def test_a_task_name_of_another_script_and_one_with_a_slash(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tmp_path.joinpath("tasks").mkdir()
    for name in ("лёгкие", "lungs/left"):
        text = f'"{name}": {{model: lenet, data: digits}}\n'
        tmp_path.joinpath("tasks", "own.yaml").write_text(text, encoding="utf-8")
        assert main(["sim", "--config-dir", str(tmp_path), "tasks=own"]) == 1
        (line,) = lines(capsys)
        assert name in line
        assert "ASCII" in line


def test_every_problem_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["tasks.forms.model=lenett", "allocation=fair", "federation.sites=0", "device.index=-1"]
    assert main(["sim", *wrong, "folder"]) == 1
    told = lines(capsys)
    assert len(told) == 5
    for word in ("lenett", "fair", "sites", "index", "folder"):
        assert any(word in line for line in told)


def test_every_problem_of_a_link_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    link = ["network.up_mbps=0", "network.down_mbps=-1", "network.latency_s=-1"]
    assert (
        main(["sim", *link, "overlap=fifo", "overlap.order=[x]", "overlap.delta=2", "batching.epsilon=-1"])
        == 1
    )
    told = lines(capsys)
    for word in ("network up", "network down", "network latency", "delta", "epsilon"):
        assert sum(word in line for line in told) == 1
    assert len(told) == 5


def test_a_folder_in_use_is_kept(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tmp_path.joinpath("summary.json").write_text("precious")
    assert main(["sim", f"folder={tmp_path}"]) == 1
    (line,) = lines(capsys)
    assert "exists already" in line
    assert tmp_path.joinpath("summary.json").read_text() == "precious"


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))

    done = subprocess.run(
        [sys.executable, "-m", "fedmt_flower", "sim", f"folder={tmp_path / 'run'}"],
        capture_output=True,
        text=True,
        preexec_fn=fill,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=120,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"fedmt: run folder {tmp_path / 'run'}: config.yaml not written: File too large")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["simm"], "did you mean sim?"),
        (["show"], "the following arguments are required: RUN"),
        (["engine", "restart"], "invalid choice: 'restart'"),
        (["sim", "--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_a_wrong_call_is_one_line(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(words)
    except SystemExit as exit:
        code = exit.code
    assert code == 2
    (line,) = lines(capsys)
    assert expected in line


def test_a_run_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["show", str(tmp_path / "nothing")]) == 1
    (line,) = lines(capsys)
    assert "no run there" in line


def test_fast_steps_are_profiled_of_the_paper_s_models_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--fast", "device=cpu"]) == 1
    (line,) = lines(capsys)
    assert "--fast: got no --paper" in line


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "--debug", "allocation=fair"]) == 1
    told = lines(capsys)
    assert told[0].startswith("Traceback")
    assert told[-1].startswith("fedmt: allocation=fair")
