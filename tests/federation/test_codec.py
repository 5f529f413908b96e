"""Records written are records read, on each wire; what cannot be read is said in one line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedmt_flower.domain.plan import RoundPlan, Sharing
from fedmt_flower.domain.round import Mode, RoundReport, Status, TaskReport
from fedmt_flower.errors import ConfigError, FederationError
from fedmt_flower.federation import codec, packing
from fedmt_flower.federation.arrays import to_record
from fedmt_flower.federation.package import Hello, Part
from fedmt_flower.federation.packing import pack

STATES: dict[str, dict[str, Any]] = {
    "seg": {"conv/0.weight": np.ones((2, 2), np.float32), "count": np.array(3)},
    "det": {"weight": np.zeros(3, np.float64)},
}
PARTS = {
    "seg": Part(
        mode=Mode.TRAIN_AND_EVALUATE, arrays=to_record(STATES["seg"]), config=ConfigRecord({"lr": 0.1})
    ),
    "det": Part(mode=Mode.EVALUATE, arrays=to_record(STATES["det"]), config=ConfigRecord({"name": "x"})),
}
REPORT = RoundReport(
    site="ward",
    round=4,
    plan=RoundPlan(tasks=(), sharing=Sharing.CAPPED),
    tasks=(
        TaskReport(task="seg", status=Status.DONE, train_examples=7, train_metrics={"train_loss": 0.5}),
        TaskReport(task="det", status=Status.FAILED, error="no"),
    ),
    timeline=(),
    backend="inline",
    waited_s=0.0,
    wall_s=1.5,
)


def check(package: Any) -> None:
    number, shares = package
    assert (number, list(shares)) == (4, ["seg", "det"])
    for name, share in shares.items():
        assert share.mode is PARTS[name].mode
        assert share.config == dict(PARTS[name].config)
        for key, array in STATES[name].items():
            np.testing.assert_array_equal(share.weights[key], array)
            assert share.weights[key].dtype == array.dtype


def test_a_package_has_one_record_of_a_type_and_shares_its_arrays() -> None:
    content = codec.encode_package(4, PARTS)
    assert {name: type(record) for name, record in content.items()} == {
        "arrays": ArrayRecord,
        "config": ConfigRecord,
    }
    assert content["arrays"]["det/weight"] is PARTS["det"].arrays["weight"]
    check(codec.decode_package(content))


def packed_parts() -> dict[str, Part]:
    return {task: replace(part, arrays=pack(STATES[task])) for task, part in PARTS.items()}


def test_a_package_has_one_array_for_each_packed_task() -> None:
    parts = packed_parts()
    content = codec.encode_package(4, parts)
    assert content["arrays"] == {task: part.arrays for task, part in parts.items()}
    assert codec.is_packed(content)
    assert not codec.is_packed(codec.encode_package(4, PARTS))
    check(codec.decode_package(content))


def test_a_package_may_be_packed_in_part() -> None:
    content = codec.encode_package(4, {**packed_parts(), "det": PARTS["det"]})
    assert list(content["arrays"]) == ["seg", "det/weight"]
    check(codec.decode_package(content))


def test_a_packed_answer_is_the_answer() -> None:
    states = {"seg": STATES["seg"], "text": {"words": np.array(["a"])}}
    content = codec.encode_answer(
        replace(REPORT, tasks=(*REPORT.tasks, replace(REPORT.tasks[0], task="text"))), states, packed=True
    )
    assert list(content["arrays"]) == ["seg", "text/words"]
    answer = codec.decode_answer(content)
    assert answer.arrays == {task: to_record(state) for task, state in states.items()}


def test_a_long_packed_answer_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_LONGEST_PIECE", 1)
    content = codec.encode_answer(REPORT, {"seg": STATES["seg"]}, packed=True)
    assert list(content["arrays"]) == ["seg", *(f"seg/{n}" for n in range(1, len(STATES["seg"])))]
    assert codec.decode_answer(content).arrays == {"seg": to_record(STATES["seg"])}
    del content["arrays"]["seg/1"]
    with pytest.raises(
        FederationError, match=r"reply: packed task 'seg': expected 96 bytes by its header, got 80"
    ):
        codec.decode_answer(content)


def test_a_packed_task_that_cannot_be_read_is_named() -> None:
    content = codec.encode_package(4, packed_parts())
    content["arrays"]["seg"].data = b"junk"
    with pytest.raises(FederationError, match="package: packed task 'seg': its header is of"):
        codec.decode_package(content)
    content["arrays"]["seg/count"] = PARTS["seg"].arrays["count"]
    with pytest.raises(FederationError, match="task 'seg' is there both packed and array by array"):
        codec.decode_package(content)


def test_a_package_in_legacy_records() -> None:
    content = codec.to_legacy(codec.encode_package(4, PARTS), "train")
    parameters = [array.numpy() for array in content["fitins.parameters"].values()]
    check(codec.decode_legacy_package(parameters, content["fitins.config"]))
    with pytest.raises(FederationError, match="2 arrays for 3 names"):
        codec.decode_legacy_package(parameters[:2], content["fitins.config"])


def test_an_answer_gives_each_task_its_own() -> None:
    answer = codec.decode_answer(codec.encode_answer(REPORT, {"seg": STATES["seg"]}))
    assert answer.report == REPORT
    assert answer.arrays == {"seg": to_record(STATES["seg"])}
    assert answer.metrics == {"seg": MetricRecord({"num-examples": 7, "train_loss": 0.5})}


def test_an_answer_in_legacy_records() -> None:
    arrays, metrics = codec.encode_legacy_answer(REPORT, {"seg": STATES["seg"]})
    content = RecordDict(
        {
            "fitres.parameters": ArrayRecord(
                {
                    str(n): Array(dtype="", shape=(), stype="numpy.ndarray", data=Array(array).data)
                    for n, array in enumerate(arrays)
                }
            ),
            "fitres.num_examples": MetricRecord({"num_examples": 7}),
            "fitres.metrics": ConfigRecord(metrics),
            "fitres.status": ConfigRecord({"code": 0, "message": ""}),
        }
    )
    modern = codec.encode_answer(REPORT, {"seg": STATES["seg"]})
    assert codec.decode_answer(codec.from_legacy(content, "train", [])) == codec.decode_answer(modern)


def test_a_legacy_reply_of_other_arrays_is_refused() -> None:
    content = RecordDict({"fitres.parameters": to_record({"0": np.ones(1)})})
    with pytest.raises(FederationError, match="expected 2 arrays, got 1"):
        codec.from_legacy(content, "train", ["a", "b"])
    content["fitres.status"] = ConfigRecord({"code": 2, "message": "not today"})
    with pytest.raises(FederationError, match="client_fn app: not today"):
        codec.from_legacy(content, "train", ["a"])


@pytest.mark.parametrize(
    ("header", "line"),
    [
        (b"{}", "of JSON"),
        ("x" * (1 << 23), "of JSON"),
        ("{", "header of a message: Input data was truncated"),
        ('{"site": "a/b", "tasks": []}', "missing required field"),
    ],
)
def test_a_header_that_cannot_be_read(header: Any, line: str) -> None:
    content = RecordDict({"config": ConfigRecord({"fedmt-header": header})})
    with pytest.raises(FederationError, match=line):
        codec.decode_answer(content)


def test_a_hello_of_names_that_cannot_be() -> None:
    hello = Hello(site="ward", tasks=("seg",), unpacks=True)
    assert codec.decode_hello(codec.encode_hello(hello)) == hello
    for text in ('{"site": "a/b", "tasks": []}', '{"site": "a", "tasks": ["б"]}'):
        with pytest.raises((FederationError, ConfigError), match="name"):
            codec.decode_hello(RecordDict({"config": ConfigRecord({"fedmt-header": text})}))


def test_an_array_that_cannot_be_read_is_named() -> None:
    content = codec.encode_package(4, PARTS)
    content["arrays"]["seg/count"] = Array(dtype="int64", shape=(), stype="numpy.ndarray", data=b"junk")
    with pytest.raises(FederationError, match="package: task 'seg', array 'count'"):
        codec.decode_package(content)


def test_a_message_with_two_models_is_refused() -> None:
    content = codec.encode_package(4, PARTS)
    content["more"] = ArrayRecord()
    with pytest.raises(FederationError, match="2 ArrayRecords, expected one"):
        codec.decode_package(content)


def test_what_is_no_package_is_none() -> None:
    plain = RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord({"fedmt": "lr=0.1"})})
    assert codec.decode_package(plain) is None
    assert codec.decode_report(plain) is None
    assert codec.decode_hello(plain) is None
