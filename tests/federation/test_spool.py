"""Updates that wait in a file are to a strategy what they are in memory."""

from __future__ import annotations

import copy
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, Krum, Strategy
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedmt_flower.federation.arrays import (
    StoredArray,
    digest,
    find_fault,
    settle,
    spec_of,
    to_numpy,
    to_record,
)
from fedmt_flower.federation.packing import pack, unpack
from fedmt_flower.federation.spool import Spool

MODEL: dict[str, Any] = {
    "w": np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4),
    "n": np.array(7),
    "empty": np.zeros((0, 3)),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
}


def plain() -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in MODEL.items()})


def put_away(record: ArrayRecord) -> ArrayRecord:
    Spool(limit=0).put(record)
    return record


@pytest.fixture(params=["plain", "packed"])
def stored(request: pytest.FixtureRequest) -> ArrayRecord:
    """A record, every array of which is in a file."""
    return put_away(plain() if request.param == "plain" else unpack(pack(MODEL)))


def test_a_stored_array_is_an_array(stored: ArrayRecord) -> None:
    for name, array in MODEL.items():
        one = stored[name]
        assert isinstance(one, Array)
        assert one == Array(np.array(one.numpy(), order="K"))
        assert Array(np.array(one.numpy(), order="K")) == one
        assert one != Array(np.asarray(array + 1) if array.size else np.zeros(1))
        read = one.numpy()
        np.testing.assert_array_equal(read, array)
        read += 1  # the caller's own
        np.testing.assert_array_equal(one.numpy(), array)
        np.testing.assert_array_equal(to_numpy(one), array)
    assert spec_of(stored) == spec_of(plain())
    assert find_fault(stored, spec_of(plain())) == ""


def test_a_plain_record_keeps_its_bytes() -> None:
    stored = put_away(plain())
    assert stored == plain()
    assert digest(stored) == digest(plain())


def test_it_can_be_copied_pickled_and_sent_on(stored: ArrayRecord) -> None:
    for other in (copy.deepcopy(stored["w"]), pickle.loads(pickle.dumps(stored["w"]))):
        assert type(other) is Array
        assert other == stored["w"]
    contents = {key: one.deflate() for key, one in get_all_nested_objects(stored).items()}
    assert inflate_object_from_contents(stored.object_id, contents) == stored


@pytest.mark.parametrize(("part", "value"), [("dtype", "<f2"), ("shape", (2, 2)), ("stype", "zip")])
def test_setting_a_part_of_it_keeps_the_others(stored: ArrayRecord, part: str, value: Any) -> None:
    for array in stored.values():
        expected = {name: getattr(array, name) for name in ("dtype", "shape", "stype", "data")} | {
            part: value
        }
        setattr(array, part, value)
        array.data = expected["data"]
        assert {name: getattr(array, name) for name in expected} == expected


def test_setting_its_data_makes_it_ordinary(stored: ArrayRecord) -> None:
    expected = {name: array.data for name, array in stored.items()}
    settle(stored)
    assert {type(array) for array in stored.values()} == {Array}
    assert {name: array.data for name, array in stored.items()} == expected
    other = put_away(plain())["w"]
    other.data = Array(np.zeros(2)).data
    np.testing.assert_array_equal(other.numpy(), np.zeros(2))


def test_the_first_stay_in_memory() -> None:
    size = sum(array.nbytes for array in MODEL.values())
    spool = Spool(limit=2 * size + 1)
    records = [to_record(MODEL) for _ in range(4)]
    for record in records:
        spool.put(record)
    assert [type(record["w"]) for record in records] == [Array, Array, StoredArray, StoredArray]


def test_a_disk_that_is_full_leaves_them_in_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    spool, records = Spool(limit=0), [plain(), plain(), plain()]
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    for record in records:
        spool.put(record)
    assert records == [plain()] * 3
    # Once, not for each of a hundred sites.
    assert caplog.text.count("updates stay in memory") == 1


def test_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stored = put_away(plain())
    assert list(tmp_path.iterdir()) == []
    assert stored["n"].numpy() == 7


@pytest.mark.parametrize("strategy", [FedAvg, FedAdam, FedMedian, Krum])
def test_every_strategy_gives_the_same_bits(strategy: type[Strategy]) -> None:
    generator = np.random.default_rng(5)
    states = [
        {name: generator.standard_normal((40, 7), np.float32) for name in ("a", "b", "c")} for _ in range(7)
    ]
    results = []
    for spool in (None, Spool(limit=3000)):
        made: Any = strategy()
        if strategy is FedAdam:
            made.current_arrays = {name: np.ones((40, 7), np.float32) for name in ("a", "b", "c")}
        replies = []
        for node, state in enumerate(states):
            record = to_record(state) if spool is None else unpack(pack(state))
            if spool is not None:
                spool.put(record)
            metrics = MetricRecord({"num-examples": 10 + node})
            asked = Message(RecordDict(), dst_node_id=node + 1, message_type="train")
            replies.append(Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=asked))
        results.append(made.aggregate_train(1, replies))
    assert results[0] == results[1]
