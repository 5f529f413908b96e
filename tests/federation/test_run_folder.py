"""A run's folder keeps whole files, whatever happens while it is written."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from fedmt_flower.domain.round import Status
from fedmt_flower.domain.timeline import Phase, Span
from fedmt_flower.federation.record import Entry, Outcome, Summary
from fedmt_flower.federation.run_folder import RunFolder, RunFolderError


def entry(round_number: int = 1, site: str = "site-0", task: str = "digits") -> Entry:
    spans = (Span(task=task, phase=Phase.COMPUTE, start_s=0.5, end_s=2.0),)
    return Entry(
        round=round_number,
        final=False,
        started=0.0,
        arrived=1000.0 + 10 * round_number,
        site=site,
        task=task,
        status=Status.DONE,
        place=0,
        budget=60.0,
        train_metrics={"loss": 0.25},
        spans=spans,
    )


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes: what a full disk does, without one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs" / "one", "federation:\n  rounds: 3\n")


def test_entries_come_back_as_they_were_written(folder: RunFolder) -> None:
    written = (entry(1), entry(1, "site-1"), entry(2))
    folder.append(written[:2])
    folder.append(written[2:])
    assert folder.rounds() == written
    assert folder.path.joinpath("rounds.jsonl").read_text().count("\n") == 3


def test_summary_comes_back_and_replaces_the_one_before(folder: RunFolder) -> None:
    first = Summary(run="one", outcome=Outcome.RUNNING, started=1.0)
    last = Summary(run="one", outcome=Outcome.FINISHED, started=1.0, sites=("a", "b"))
    folder.save_summary(first)
    folder.save_summary(last)
    assert folder.summary() == last


def test_the_line_given_for_the_weights_loads_them(folder: RunFolder) -> None:
    model = torch.nn.BatchNorm1d(3)
    weights = {name: tensor.numpy() + 1 for name, tensor in model.state_dict().items()}
    _, line = folder.save_weights("digits", weights)
    exec(line, {"model": model, "safetensors": safetensors})
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), weights[name])


def test_a_folder_in_use_is_left_alone(folder: RunFolder) -> None:
    with pytest.raises(RunFolderError, match="exists already"):
        RunFolder.create(folder.path, "other")
    assert folder.path.joinpath("config.yaml").read_text().startswith("federation")


def test_a_full_disk_loses_no_line_that_was_there(folder: RunFolder) -> None:
    folder.append([entry(1)])
    size = folder.path.joinpath("rounds.jsonl").stat().st_size
    with disk_of(size + 10), pytest.raises(RunFolderError, match=r"not extended: File too large.*intact"):
        folder.append([entry(2), entry(3)])
    assert folder.rounds() == (entry(1),)


def test_a_full_disk_keeps_the_file_it_would_have_replaced(folder: RunFolder) -> None:
    folder.write("summary.json", b"{}")
    with disk_of(100), pytest.raises(RunFolderError, match=r"summary.json not written"):
        folder.write("summary.json", b"x" * 200)
    assert folder.path.joinpath("summary.json").read_bytes() == b"{}"
    assert [path.name for path in folder.path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    tmp_path.joinpath("file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be made: Not a directory") as caught:
        RunFolder.create(tmp_path / "file" / "run", "")
    assert "\n" not in str(caught.value)


def test_a_place_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no run there"):
        RunFolder.open(tmp_path)


def test_the_trace_has_plans_beside_what_was_observed(folder: RunFolder) -> None:
    spans = (Span(task="digits", phase=Phase.COMPUTE, start_s=0.0, end_s=1.0),)
    folder.append([replace(entry(1), planned=spans, waited_s=0.5), entry(1, "site-1")])
    folder.save_trace()
    events = json.loads(folder.path.joinpath("trace.json").read_text())["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert list(names.values()) == ["site site-0", "site site-1", "site site-0, as planned"]
    slices = [(names[e["pid"]], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert slices[0] == ("site site-0", 0.5e6, 1.5e6)
    assert slices[2] == ("site site-0, as planned", 0.5e6, 1.0e6)


def test_the_trace_lays_every_span_on_its_site_and_task(folder: RunFolder) -> None:
    folder.append([entry(1), entry(1, "site-1", "wine"), entry(2)])
    folder.save_trace()
    events = json.loads(folder.path.joinpath("trace.json").read_text())["traceEvents"]
    names = {(e["pid"], e.get("tid")): e["args"]["name"] for e in events if e["ph"] == "M"}
    slices = [e for e in events if e["ph"] == "X"]
    assert [names[e["pid"], e["tid"]] for e in slices] == ["digits", "wine", "digits"]
    assert names[slices[1]["pid"], None] == "site site-1"
    assert [e["ts"] for e in slices] == [0.5e6, 0.5e6, 10.5e6]
    assert {e["dur"] for e in slices} == {1.5e6}


def test_the_folder_of_a_run_that_goes_on_is_taken_again(folder: RunFolder) -> None:
    folder.append([entry(1)])
    config = (folder.path / "config.yaml").read_text()
    again = RunFolder.create(folder.path, config, again=True)
    assert again.rounds() == (entry(1),)
    with pytest.raises(RunFolderError, match="a run writes there now"):
        RunFolder.create(folder.path, config, again=True)
    again.append([entry(1)], first=True)
    again.release()
    RunFolder.create(folder.path, config, again=True).release()
    with pytest.raises(RunFolderError, match="exists already"):
        RunFolder.create(folder.path, config + "seed: 1\n", again=True)
    with pytest.raises(RunFolderError, match="exists already"):
        RunFolder.create(folder.path, config)
    assert folder.rounds() == (entry(1),)
