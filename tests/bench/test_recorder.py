"""Interleaved repeats within a time budget, and taking them up again."""

from __future__ import annotations

import math
import time
from itertools import pairwise
from pathlib import Path

import pytest

from fedmt_flower.bench.recorder import Recorder, shuffled
from fedmt_flower.errors import ConfigError

CELLS = ("a", "b", "c", "d")


def recorder(path: Path, *, resume: bool = False, deadline: float = math.inf, quick: bool = True) -> Recorder:
    return Recorder(path, {"quick": quick}, resume, deadline)


def test_every_cell_is_taken_once_before_any_is_taken_again(tmp_path: Path) -> None:
    taken = list(recorder(tmp_path / "x.jsonl").interleave(CELLS, 3))
    assert len(taken) == 12
    for repeat in range(3):
        assert {cell for cell, r in taken[4 * repeat : 4 * repeat + 4] if r == repeat} == set(CELLS)
    assert [cell for cell, r in taken if r == 0] != [cell for cell, r in taken if r == 1]


def test_a_stopped_benchmark_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first = recorder(tmp_path / "x.jsonl")
    for number, (cell, repeat) in enumerate(first.interleave(CELLS, 2)):
        first.add(cell, repeat, {"number": number}, flags=("odd",))
        if number == 4:
            break
    with (tmp_path / "x.jsonl").open("ab") as file:
        file.write(b'{"seconds": 1, "sam')
    second = recorder(tmp_path / "x.jsonl", resume=True)
    assert second.samples == first.samples
    left = list(second.interleave(CELLS, 2))
    assert len(left) == 3
    assert not second.has_all(CELLS, 2)
    for cell, repeat in left:
        second.add(cell, repeat, {})
    assert second.has_all(CELLS, 2)


def test_samples_of_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    recorder(tmp_path / "x.jsonl", quick=True)
    with pytest.raises(ConfigError, match="other settings"):
        recorder(tmp_path / "x.jsonl", quick=False, resume=True)
    assert recorder(tmp_path / "x.jsonl", quick=False).samples == []


def test_no_cell_is_begun_that_would_outlast_the_deadline(tmp_path: Path) -> None:
    bounded = recorder(tmp_path / "x.jsonl", deadline=time.monotonic() + 0.25)
    taken = 0
    for _ in bounded.interleave(CELLS, 100):
        taken += 1
        time.sleep(0.1)
    assert taken == 2
    assert bounded.left_s > 0


def test_what_has_one_repeat_is_measured_once(tmp_path: Path) -> None:
    keeper = recorder(tmp_path / "x.jsonl")
    assert keeper.take("only", lambda: {"value": 1}) == {"value": 1}
    assert keeper.take("only", lambda: {"value": 2}) == {"value": 1}
    assert len(keeper.samples) == 1


def test_what_is_kept_is_what_will_be_read(tmp_path: Path) -> None:
    first = recorder(tmp_path / "x.jsonl")
    assert first.take("once", lambda: {"pairs": ((1, 2.0),)}) == {"pairs": [[1, 2.0]]}
    assert first.take("once", dict) == {"pairs": [[1, 2.0]]}
    assert recorder(tmp_path / "x.jsonl", resume=True).samples == first.samples


def test_what_one_leaves_of_its_share_goes_to_those_after_it(tmp_path: Path) -> None:
    ends = recorder(tmp_path / "x.jsonl", deadline=time.monotonic() + 90.0)
    begun = time.monotonic()
    shares = {name: until - begun for name, until in ends.shares(["a", "b", "c"])}  # none takes any time
    assert list(shares) == ["a", "b", "c"]
    assert list(shares.values()) == pytest.approx([30.0, 45.0, 90.0], abs=1.0)


def test_what_is_alike_comes_together_in_an_order_that_is_still_drawn() -> None:
    items = [f"{place}{kind}" for place in range(4) for kind in "abc"]
    orders = [shuffled(items, seed, lambda item: item[1]) for seed in range(8)]
    for order in orders:
        assert sorted(order) == sorted(items)
        kinds = [item[1] for item in order]
        assert sum(one != other for one, other in pairwise(kinds)) == 2
    assert len({tuple(order) for order in orders}) > 4
    assert len({order[0][1] for order in orders}) > 1
    assert shuffled(items, 1) != shuffled(items, 1, lambda item: item[1])


def test_shares_of_the_time_follow_their_weights(tmp_path: Path) -> None:
    now = time.monotonic()
    weighed = recorder(tmp_path / "x.jsonl", deadline=now + 60.0)
    # Nobody uses any of his, so that each has its part of all.
    ends = [end - now for _, end in weighed.shares(CELLS[:3], weights=[3.0, 2.0, 1.0])]
    assert ends == pytest.approx([30.0, 40.0, 60.0], abs=2.0)


def test_no_cell_is_begun_that_is_expected_to_outlast_the_deadline(tmp_path: Path) -> None:
    bounded = recorder(tmp_path / "x.jsonl", deadline=time.monotonic() + 10.0)
    assert not list(bounded.interleave(CELLS, 1, expected_s=20.0))
    assert list(bounded.interleave(CELLS, 1, expected_s=1.0))
