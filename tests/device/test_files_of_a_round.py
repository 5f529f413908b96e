"""The memory files in which a client's weights go to the engine."""

from __future__ import annotations

import os

import numpy as np
import pytest

from fedmt_flower.device.engine.client import _written
from fedmt_flower.device.ipc import memory


def test_files_come_in_the_order_of_the_tasks_and_go_with_the_round() -> None:
    before = os.listdir("/proc/self/fd")
    with _written({name: {name: np.arange(n)} for n, name in enumerate("cab")}) as files:
        assert [list(memory.read(file)) for file in files] == [["c"], ["a"], ["b"]]
    with _written({}) as files:
        assert files == []
    assert os.listdir("/proc/self/fd") == before


def test_where_one_cannot_be_written_none_is_left() -> None:
    before = os.listdir("/proc/self/fd")
    states = {str(n): {"x": np.zeros(3) if n != 1 else np.array([None])} for n in range(4)}
    with pytest.raises(ValueError, match="'x' of dtype object"), _written(states):
        pytest.fail("there is no round without its weights")
    assert os.listdir("/proc/self/fd") == before
