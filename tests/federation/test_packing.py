"""A task's arrays as one: what goes in comes out, and what a peer made up is one line."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from fedmt_flower.federation import packing
from fedmt_flower.federation.arrays import find_fault, spec_of, to_numpy, to_record, to_weights
from fedmt_flower.federation.packing import STYPE, can_pack, cut, pack, packed_in, unpack

numbers = st.sampled_from(["<f2", "<f4", ">f8", "<i8", "|i1", "|u1", "|b1", "<c8", ">i4"]).map(np.dtype)
models = st.dictionaries(
    st.text(max_size=8),
    numbers.flatmap(lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, max_dims=3, min_side=0))),
    max_size=5,
)


@given(models)
def test_what_is_packed_is_unpacked(model: dict[str, NDArray[Any]]) -> None:
    assert can_pack(model)
    back = unpack(pack(model))
    assert list(back) == list(model)
    assert spec_of(back) == spec_of(to_record(model))
    assert {name: array.data for name, array in back.items()} == {
        name: array.data for name, array in to_record(model).items()
    }


def test_views_and_other_orders_are_packed_as_their_values() -> None:
    model = {"slice": np.arange(12.0)[::3], "columns": np.asfortranarray(np.arange(6).reshape(2, 3))}
    for name, array in to_weights(unpack(pack(model))).items():
        np.testing.assert_array_equal(array, model[name])


def test_unpacking_copies_nothing() -> None:
    packed = pack({"w": np.ones((64, 64)), "b": np.ones(3, np.float32)})
    for array in to_weights(unpack(packed)).values():
        assert np.shares_memory(array, np.frombuffer(packed.data, np.uint8))
        assert not array.flags.writeable


def test_packing_holds_one_copy() -> None:
    model = {str(n): np.ones(1 << 18, np.float32) for n in range(8)}
    size = sum(array.nbytes for array in model.values())
    tracemalloc.start()
    try:
        packed = pack(model)
        assert tracemalloc.get_traced_memory()[1] < 1.05 * size
        tracemalloc.reset_peak()
        to_weights(unpack(packed))
        assert tracemalloc.get_traced_memory()[1] < 1.1 * size
    finally:
        tracemalloc.stop()


def test_what_is_packed_already_is_sent_as_it_lies() -> None:
    ordinary = pack({"w": np.ones((64, 64)), "b": np.ones(3, np.float32)})
    weights = packed_in(ordinary)
    again = pack(weights)
    assert np.shares_memory(np.frombuffer(again.data, np.uint8), weights["w"])
    assert again.object_id == ordinary.object_id
    arrived = pickle.loads(pickle.dumps(again))  # as Ray does
    assert type(arrived) is Array
    assert arrived == ordinary


@pytest.mark.parametrize(
    "array", [np.array(["a"]), np.zeros(2, [("x", "f4")]), np.zeros(2, "M8[s]"), np.array([None])]
)
def test_what_is_no_number_is_not_packed(array: NDArray[Any]) -> None:
    assert not can_pack({"w": array})


def test_what_reads_a_packed_array_as_numbers_fails_by_name() -> None:
    packed = pack({"w": np.ones(3, np.float32)})
    record = ArrayRecord({"seg": packed})
    for read in (packed.numpy, record.to_numpy_ndarrays):
        with pytest.raises(TypeError, match=r"'fedmt\.packed'"):
            read()


def test_pieces_are_cut_between_arrays_and_share_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_LONGEST_PIECE", 300)
    model = {str(size): np.arange(size, dtype=np.uint8) for size in (100, 1, 0, 700, 10, 299, 16, 150, 0)}
    packed = pack(model)
    cuts = cut(packed)
    assert len(cuts) > 3
    assert b"".join(piece.data for piece in cuts) == packed.data
    assert all(np.shares_memory(np.frombuffer(packed.data), np.frombuffer(piece.data)) for piece in cuts)
    for read in (to_weights(unpack(*cuts)), packed_in(*cuts)):
        assert list(read) == list(model)
        for name, array in read.items():
            np.testing.assert_array_equal(array, model[name])
            assert array.base is not None
    assert cut(pack({"0": model["1"]})) == [pack({"0": model["1"]})]


def test_what_replies_of_one_model_say_alike_is_kept_once() -> None:
    model = {f"layers.{number}.weight": np.ones(number % 7, np.float32) for number in range(500)}
    replies = [cut(pack(model)) for _ in range(11)]
    kept = [unpack(*replies[0])]
    tracemalloc.start()
    kept += [unpack(*reply) for reply in replies[1:]]
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / (10 * len(model)) < 150  # bytes for each array of a further reply
    assert all(to_weights(record).keys() == model.keys() for record in kept)


@pytest.mark.parametrize(("at", "line"), [(-16, "array 'w' is in two pieces"), (20, "its header is of")])
def test_pieces_that_are_cut_elsewhere_are_refused(at: int, line: str) -> None:
    data = pack({"v": np.ones(3), "w": np.ones(3)}).data
    pieces = [Array(dtype="", shape=(), stype=STYPE, data=part) for part in (data[:at], data[at:])]
    with pytest.raises(ValueError, match=line):
        unpack(*pieces)
    with pytest.raises(ValueError, match="expected 112 bytes by its header, got 96"):
        unpack(Array(dtype="", shape=(), stype=STYPE, data=data[:-16]))


def of(header: bytes, data: bytes = b"", length: int | None = None) -> Array:
    content = (len(header) if length is None else length).to_bytes(8, "little") + header
    content += b"\0" * (-len(content) % 16) + data
    return Array(dtype="uint8", shape=(len(content),), stype=STYPE, data=content)


@pytest.mark.parametrize(
    ("array", "line"),
    [
        (Array(dtype="", shape=(), stype="numpy.ndarray", data=b""), "expected an array as 'fedmt.packed'"),
        (Array(dtype="", shape=(), stype=STYPE, data=b""), "header is of 0 bytes"),
        (of(b"[]", length=1 << 40), "header is of 1099511627776 bytes"),
        (of(b"[]", length=1 << 20), "header is of 1048576 bytes"),
        (of(b"{}"), "header is broken: Expected `array`"),
        (of(b"[" * 5_000), "header is broken"),
        (of(b'[["w", "<f4", [-1]]]'), "header is broken: Expected `int` >= 0"),
        (of(b'[["w", "<f4", [9999999999999999999]]]'), "header is broken"),
        (of(b'[["w", "<f4", [1e3]]]'), "header is broken"),
        (of(b'[["w", "O", [1]]]', b"\0" * 16), "plain numbers, got 'O'"),
        (of(b'[["w", "f4,f4", [1]]]', b"\0" * 16), "plain numbers, got 'f4,f4'"),
        (of(b'[["w", "f4", [1]]]', b"\0" * 16), "plain numbers, got 'f4'"),
        (of(b'[["w", "<f4", [1]]]'), "expected 48 bytes by its header, got 32"),
        (of(b'[["w", "<f4", [1]]]', b"\0" * 32), "expected 48 bytes by its header, got 64"),
        (
            of(b'[["w", "<f4", [281474976710655, 281474976710655]]]', b"\0" * 16),
            "more bytes than there can be, 'w'",
        ),
        (of(b'[["w", "<f4", [' + b"1, " * 64 + b"1]]]", b"\0" * 16), "header is broken"),
        (of(b'[["w", "<f4", [1]], ["w", "<f4", [1]]]', b"\0" * 32), "names 'w' twice"),
    ],
)
def test_what_is_not_packed_so_is_refused_before_memory_is_claimed(array: Array, line: str) -> None:
    with pytest.raises(ValueError, match=line) as refused:
        unpack(array)
    assert "\n" not in str(refused.value)


entries = st.tuples(
    st.text(max_size=4),
    st.sampled_from(["<f4", ">f8", "|b1", "O", "|V0", "<U0", "<f16", "", "\n"]) | st.text(max_size=5),
    st.lists(st.integers(-1, 3) | st.sampled_from([2**31, 2**47, 2**63]), max_size=40),
)


@given(
    st.binary(max_size=80) | st.lists(entries, max_size=3).map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=64),
    st.none() | st.integers(0, 2**64 - 1),
)
@example(b'[["w", "<f4", [0, 281474976710655, 281474976710655]]]', b"", None)
def test_any_bytes_are_arrays_or_one_line(header: bytes, data: bytes, length: int | None) -> None:
    problem = ""
    try:
        record = unpack(of(header, data, length))
        for array in record.values():
            to_numpy(array)
        find_fault(record, {})
    except ValueError as error:
        problem = str(error)
    assert "\n" not in problem
