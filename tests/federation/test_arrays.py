"""Arrays on their way through Flower's records."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fedmt_flower.federation.arrays import (
    STYPE,
    digest,
    find_fault,
    from_numpy,
    spec_of,
    to_numpy,
    to_record,
    to_weights,
)

ARRAYS = hnp.arrays(
    st.one_of(hnp.floating_dtypes(), hnp.integer_dtypes(), hnp.boolean_dtypes()),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


@given(ARRAYS)
def test_an_array_comes_back_as_it_was(array: NDArray[Any]) -> None:
    carried = from_numpy(array)
    for back in (to_numpy(carried), carried.numpy(), to_numpy(Array(array))):
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize("array", [np.array(3), np.ones((2, 3), np.float32), np.arange(6)[::2]])
def test_its_bytes_are_those_that_flower_writes(array: NDArray[Any]) -> None:
    assert from_numpy(array) == Array(array)


def test_reading_copies_nothing() -> None:
    carried = from_numpy(np.ones((64, 64)))
    view = to_numpy(carried)
    assert np.shares_memory(view, np.frombuffer(carried.data, np.uint8))
    assert not view.flags.writeable


def test_transposed_arrays_are_read_as_written() -> None:
    array = np.asfortranarray(np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(to_numpy(Array(array)), array)


def test_a_record_keeps_names_order_and_dtypes() -> None:
    state = {"b": np.ones(2, np.float16), "a": np.array(5), "c": np.zeros((0, 2), bool)}
    back = to_weights(to_record(state))
    assert list(back) == ["b", "a", "c"]
    assert [array.dtype for array in back.values()] == [array.dtype for array in state.values()]


def claiming(shape: str, data: bytes = b"", descr: str = "<f4") -> Array:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    head = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    return Array(dtype="float32", shape=(1,), stype=STYPE, data=head + data)


@pytest.mark.parametrize(
    ("array", "line"),
    [
        (claiming("(1000000000000,)"), "expected 4000000000000 bytes"),
        (claiming("(-1,)"), "got 0"),
        (claiming("(1,)", b"123456789"), "expected 4 bytes"),
        (claiming("(1,)", b"12345678", "|O"), "expected numbers, got object"),
        (Array(dtype="float32", shape=(1,), stype=STYPE, data=b""), "EOF"),
        (Array(dtype="float32", shape=(1,), stype=STYPE, data=b"PK\x03\x04 no npy file at all"), "magic"),
        (Array(dtype="float32", shape=(1,), stype="pickle", data=b""), "got 'pickle'"),
    ],
)
def test_what_is_no_array_is_refused_before_memory_is_claimed(array: Array, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        to_numpy(array)


@given(st.binary(max_size=200))
def test_no_bytes_do_harm(data: bytes) -> None:
    for head in (b"", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00"):
        array = Array(dtype="float32", shape=(1,), stype=STYPE, data=head + data)
        assert find_fault({"w": array}, {"w": spec_of({"w": Array(np.ones(3))})["w"]})


def record(**arrays: NDArray[Any]) -> ArrayRecord:
    return to_record(arrays)


EXPECTED = spec_of(record(w=np.ones((2, 2), np.float32), n=np.array(1)))


@pytest.mark.parametrize(
    ("update", "fault"),
    [
        (record(w=np.ones((2, 2), np.float32), n=np.array(2)), ""),
        (record(n=np.array(2), w=np.ones((2, 2), np.float64)), ""),
        (record(w=np.ones((2, 2), np.float16), n=np.array(True)), ""),
        (record(w=np.ones((2, 2), np.float32)), "expected 2 arrays, got 1: 'n' is missing"),
        (record(w=np.ones((2, 2)), n=np.array(1), v=np.ones(1)), "'v' is no array of the task"),
        (record(w=np.ones((1, 4)), n=np.array(1)), "'w': expected shape [2, 2], got [1, 4]"),
        (record(w=np.ones((2, 2)), n=np.array(1.5)), "'n': expected int64, got float64"),
        (record(w=np.full((2, 2), np.nan), n=np.array(1)), "'w': expected finite values, got 4 that are not"),
    ],
)
def test_an_update_is_checked_against_the_task(update: ArrayRecord, fault: str) -> None:
    assert find_fault(update, EXPECTED) == fault


def test_the_longest_header_that_numpy_takes_is_read() -> None:
    stream = io.BytesIO()
    np.save(stream, np.ones((1,) * 32, np.float32))
    assert to_numpy(Array(dtype="float32", shape=(1,), stype=STYPE, data=stream.getvalue())).ndim == 32


def test_a_digest_is_of_names_types_shapes_order_and_values() -> None:
    one = {"w": np.ones((2, 2), np.float32), "n": np.array(1)}
    total = hashlib.sha256()
    for name, array in one.items():
        stream = io.BytesIO()
        np.save(stream, array)
        total.update(name.encode() + b"\0" + stream.getvalue())
    assert digest(record(**one)) == total.hexdigest()
    others = [
        record(n=one["n"], w=one["w"]),
        record(w=one["w"], m=one["n"]),
        record(w=one["w"].astype(np.float64), n=one["n"]),
        record(w=one["w"].reshape(4), n=one["n"]),
        record(w=one["w"], n=np.array(2)),
        record(w=one["w"]),
    ]
    assert len({digest(record(**one)), *map(digest, others)}) == 1 + len(others)
