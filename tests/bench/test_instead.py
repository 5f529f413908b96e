"""Three runs one after the other beside one of all: what counts as whole, and how long that took."""

from __future__ import annotations

import pytest
from records import made_up

from fedmt_flower.bench import instead
from fedmt_flower.bench.result import Sample

KNOWN = instead.settings(quick=False)
LIGHT = KNOWN["settings"]["light"]


def alone(task: str) -> Sample:
    return Sample(cell=f"{task} | alone", repeat=0, values={"seconds": 70.0, "to_end_s": 80.0})


def together(setting: str) -> Sample:
    return Sample(cell=f"{setting} | fedmt", repeat=0, values={"seconds": 46.0})


def test_a_run_begins_when_the_one_before_has_ended() -> None:
    samples = [*map(alone, LIGHT), together("light")]
    assert instead._seconds(samples, "light", LIGHT) == (80.0 + 80.0 + 70.0, 46.0)
    table = instead.report(made_up("instead", KNOWN, samples))
    assert "| light | 230.0 | 46.0 | 5.00 |" in table
    assert "bfloat16, channels_last" in table
    assert "| heavy |" not in table


@pytest.mark.parametrize("lost", range(4))
def test_a_setting_counts_only_whole(lost: int) -> None:
    samples = [*map(alone, LIGHT), together("light")]
    del samples[lost]
    assert instead._seconds(samples, "light", LIGHT) is None


def test_a_task_of_two_settings_is_run_alone_once() -> None:
    cells = {cell for setting, tasks in KNOWN["settings"].items() for cell in instead._cells(setting, tasks)}
    assert len(cells) == 7 + 3
