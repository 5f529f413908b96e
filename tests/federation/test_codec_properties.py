"""Whatever a node replies is an answer or one line that says why not: nothing else may reach the server."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedmt_flower.domain.plan import RoundPlan, Sharing, TaskPlan
from fedmt_flower.domain.round import RoundReport, Status, TaskReport
from fedmt_flower.domain.timeline import Phase, Span
from fedmt_flower.errors import FederationError
from fedmt_flower.federation import codec, packing
from fedmt_flower.federation.arrays import STYPE, ArraySpec, find_fault, from_numpy, to_numpy

SPEC = {"w": ArraySpec(np.dtype(np.float32), (2, 2))}
MAGIC = b"\x93NUMPY"
HEADER = "fedmt-header"

REPORT = RoundReport(
    site="ward",
    round=1,
    plan=RoundPlan(tasks=(TaskPlan(task="seg", budget=60.0, batch_size=8),), sharing=Sharing.CAPPED),
    tasks=(TaskReport(task="seg", status=Status.DONE, train_metrics={"loss": 0.5}),),
    timeline=(Span(task="seg", phase=Phase.COMPUTE, start_s=0.0, end_s=1.0),),
    backend="cpu",
    waited_s=0.0,
    wall_s=1.0,
)

names = st.text(max_size=8) | st.sampled_from(["seg/w", "seg", "/", "fedmt-header", "num_examples", "code"])
scalars: st.SearchStrategy[Any] = (
    st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=20) | st.booleans()
)
json_values = st.recursive(
    st.none() | scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def npy(header: bytes, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    length = struct.pack("<H" if version == b"\1\0" else "<I", len(header))
    return MAGIC + version + length + header + data


descriptions = st.text(max_size=6) | st.sampled_from(
    ["<f4", "|V0", "|S0", "O", "<U0", "<M8[s]", "<c8", "(2,)<f4", "f4,f4", [("a", "<f4")], [], ("<f4", (2,))]
)
shapes = st.lists(st.integers(-3, 3) | st.sampled_from([2**31, 2**63, 2**70, True]), max_size=4).map(tuple)
headers = st.one_of(
    st.binary(max_size=60),
    st.text(alphabet="{}()[]'\"\\:,#\n\0 adescrfoth<4", max_size=40).map(str.encode),
    st.builds(
        lambda descr, order, shape: repr({"descr": descr, "fortran_order": order, "shape": shape}).encode(
            "latin1", "replace"
        ),
        descriptions,
        st.booleans() | st.integers(0, 2),
        shapes | st.integers(0, 3) | st.just(None),
    ),
)
contents = st.one_of(
    st.binary(max_size=40),
    st.builds(npy, headers, st.binary(max_size=16), st.sampled_from([b"\1\0", b"\2\0", b"\3\0", b"\0\0"])),
)
arrays = st.builds(
    Array,
    dtype=st.text(max_size=4),
    shape=st.just((2, 2)),
    stype=st.sampled_from([STYPE, packing.STYPE]) | st.text(max_size=4),
    data=contents
    | st.builds(
        lambda header, data: len(header).to_bytes(8, "little") + header + data,
        json_values.map(json.dumps).map(str.encode),
        st.binary(max_size=32),
    ),
)


@given(arrays)
@example(Array(dtype="", shape=(), stype=STYPE, data=npy(b"(" * 5_000)))
@example(Array(dtype="", shape=(), stype=STYPE, data=npy(b"-" * 9_000)))
@example(
    Array(
        dtype="",
        shape=(),
        stype=STYPE,
        data=npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (0, 2**70)}"),
    )
)
def test_any_bytes_are_an_array_or_a_fault_in_one_line(array: Array) -> None:
    fault = find_fault({"w": array}, SPEC)
    assert "\n" not in fault
    if not fault:
        assert to_numpy(array).shape == (2, 2)


@given(
    npst.arrays(st.sampled_from([np.float32, np.float64, np.int64, np.bool_]), npst.array_shapes(min_dims=0))
)
def test_an_array_that_is_sent_is_the_array_that_arrives(array: np.ndarray[Any, Any]) -> None:
    arrived = to_numpy(from_numpy(array))
    assert arrived.dtype == array.dtype
    assert arrived.shape == array.shape
    assert arrived.tobytes() == array.tobytes()


def reply(text: Any) -> RecordDict:
    return RecordDict({"config": ConfigRecord({HEADER: text})})


def attempt(decode: Callable[..., object], *arguments: object) -> None:
    """Decode; a FederationError in one line is as good."""
    problem = ""
    try:
        decode(*arguments)
    except FederationError as error:
        problem = str(error)
    assert "\n" not in problem


@given(st.text(max_size=60) | json_values.map(json.dumps))
@example('{"x":' + "[" * 100_000)
@example('{"round": 1' + "0" * 5_000 + "}")
@example("\ud800")
def test_any_text_is_a_report_or_one_error(text: str) -> None:
    attempt(codec.decode_answer, reply(text))


@st.composite
def altered_reports(draw: st.DrawFn) -> str:
    """A true report in which one value is another."""
    report = json.loads(codec._to_json(REPORT))
    place, key = report, draw(st.sampled_from(sorted(report)))
    while isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
        place = place[key]
        key = draw(
            st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1)
        )
    place[key] = draw(json_values)
    return json.dumps(report)


@given(altered_reports())
def test_a_report_of_which_a_part_is_wrong_is_one_error(text: str) -> None:
    attempt(codec.decode_answer, reply(text))


configs = st.dictionaries(
    names, scalars | st.binary(max_size=4) | st.lists(st.integers(-9, 9), max_size=2), max_size=3
).map(ConfigRecord)
numbers: st.SearchStrategy[Any] = st.integers(-9, 9) | st.floats()
metrics = st.dictionaries(names, numbers | st.lists(st.floats(), max_size=2), max_size=3).map(MetricRecord)
array_records = st.dictionaries(names, arrays, max_size=2).map(ArrayRecord)
record_names = st.sampled_from(
    ["arrays", "metrics", "config", "x"]
    + [f"fitres.{part}" for part in ("parameters", "num_examples", "metrics", "status")]
    + [f"evaluateres.{part}" for part in ("loss", "num_examples", "metrics", "status")]
)
contents_of_replies = st.dictionaries(record_names, configs | metrics | array_records, max_size=5).map(
    RecordDict
)


@given(contents_of_replies)
def test_any_records_are_an_answer_or_one_error(content: RecordDict) -> None:
    attempt(codec.decode_answer, content)


@given(contents_of_replies, st.sampled_from(["train", "evaluate"]), st.lists(names, max_size=2))
@example(RecordDict({"fitres.num_examples": MetricRecord({"x": 1})}), "train", [])
def test_any_legacy_records_are_a_reply_or_one_error(
    content: RecordDict, kind: str, named: list[str]
) -> None:
    attempt(codec.from_legacy, content, kind, named)


@given(contents_of_replies)
def test_any_records_are_a_greeting_or_one_error(content: RecordDict) -> None:
    attempt(codec.decode_hello, content)


@pytest.mark.parametrize("size", [codec._JSON_LIMIT, codec._JSON_LIMIT + 1])
def test_a_header_beyond_the_limit_is_not_parsed(size: int) -> None:
    content = reply('"' + "x" * (size - 2) + '"')
    with pytest.raises(FederationError, match="at most" if size > codec._JSON_LIMIT else "Expected `object`"):
        codec.decode_answer(content)
