"""Weights in memory files: every byte, dtype and name arrives, and nothing that is not sealed and sound."""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmt_flower.device.ipc import memory
from fedmt_flower.errors import ProtocolError

STATE: dict[str, NDArray[Any]] = {
    "z.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "z.flag": np.array([True, False, True]),
    "a.num_batches_tracked": np.array(7, dtype=np.int64),
    "a.half": np.array([1.5, np.nan], dtype=np.float16),
    "m.empty": np.empty((0, 3), dtype=np.float64),
    "b.byte": np.array([250], dtype=np.uint8),
    "b.scalar": np.array(True),
}


def sealed(content: bytes) -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(fd, content)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, memory._SEALS)
    return fd


@pytest.fixture
def file() -> Iterator[int]:
    fd = memory.write("test", STATE)
    yield fd
    os.close(fd)


def test_names_order_dtypes_shapes_and_bytes_arrive(file: int) -> None:
    got = memory.read(file)
    assert list(got) == list(STATE)
    for name, array in STATE.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        assert got[name].tobytes() == array.tobytes()
        assert got[name].flags.aligned


def test_what_came_from_a_file_is_written_as_it_is_and_copied_once(file: int) -> None:
    came = memory.read(file)
    again = memory.write("again", came)
    assert os.pread(again, 1 << 20, 0) == os.pread(file, 1 << 20, 0) == bytes(came.data)
    os.close(again)


@pytest.mark.parametrize(
    "array", [np.arange(6.0).reshape(2, 3).T, np.arange(3, dtype=">i4"), np.arange(9)[::3]]
)
def test_any_layout_in_memory_arrives_as_the_same_values(array: NDArray[Any]) -> None:
    fd = memory.write("test", {"x": array})
    np.testing.assert_array_equal(memory.read(fd)["x"], array)
    os.close(fd)


def test_a_reader_may_write_to_its_arrays_and_nobody_else_sees_it(file: int) -> None:
    mine = memory.read(file)
    mine["z.weight"][:] = -1
    np.testing.assert_array_equal(memory.read(file)["z.weight"], STATE["z.weight"])


def test_arrays_outlive_the_file(file: int) -> None:
    fd = memory.write("test", STATE)
    got = memory.read(fd)
    os.close(fd)
    np.testing.assert_array_equal(got["z.weight"], STATE["z.weight"])


@pytest.mark.parametrize("size", [0, 1, 1 << 20])
def test_a_draft_ends_as_long_as_its_content_and_sealed_whatever_was_expected(size: int, file: int) -> None:
    with memory.Draft("test", size) as draft:
        fd = draft.finish(STATE)
        assert os.pread(fd, 2 << 20, 0) == os.pread(file, 2 << 20, 0)
        assert list(memory.read(fd)) == list(STATE)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_a_draft_that_comes_to_nothing_leaves_nothing() -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ValueError, match="object"), memory.Draft("test", 1 << 20) as draft:
        draft.finish({"x": np.array([None])})
    assert os.listdir("/proc/self/fd") == before


def test_nobody_can_change_a_file_once_written(file: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(file, 0)
    with pytest.raises(PermissionError):
        os.pwrite(file, b"x", 0)


def test_what_is_no_number_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'x' of dtype object"):
        memory.write("test", {"x": np.array([None])})


def test_a_file_that_its_sender_can_change_is_refused() -> None:
    fd = os.memfd_create("test")
    with pytest.raises(ProtocolError, match="sealed"):
        memory.read(fd)
    os.close(fd)
    read, write = os.pipe()
    with pytest.raises(ProtocolError, match="sealed"):
        memory.read(read)
    os.close(read)
    os.close(write)


@pytest.mark.parametrize(
    "header",
    [
        b'[["x", "<f4", [2]], ["y", "<f8", [2]]]',
        b'[["x", "<f4", [-1]]]',
        b'[["x", "<O", [1]]]',
        b'[["x", "<,", [1]]]',
        b'[["x", "<f4", [1]], ["x", "<f4", [1]]]',
        b'[["x", "<f4", [140737488355328, 140737488355328]]]',
        b'[["x", "<f4", [1]], ["y", "|u1", [0, 281474976710655, 281474976710655]]]',
        b"{}",
        b"",
    ],
)
def test_a_header_that_lies_is_refused(header: bytes) -> None:
    start = struct.pack("<Q", len(header)) + header
    fd = sealed(start + bytes(-len(start) % 16 + 16))
    with pytest.raises(ProtocolError, match="weights"):
        memory.read(fd)
    os.close(fd)


@given(st.binary(max_size=200))
def test_whatever_the_content_reading_it_gives_arrays_or_a_protocol_error(content: bytes) -> None:
    fd, problem = sealed(content), ""
    try:
        memory.read(fd)
    except ProtocolError as error:
        problem = str(error)
    os.close(fd)
    assert "\n" not in problem


def test_170_megabytes_pass_in_a_fraction_of_a_second() -> None:
    rng = np.random.default_rng(0)
    state = {f"layer{i}": rng.standard_normal(425_000, dtype=np.float32) for i in range(100)}
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        fd = memory.write("test", state)
        memory.read(fd)
        seconds.append(time.perf_counter() - start)
        os.close(fd)
    # 0.08 s on two idle cores; the bound leaves room for a busy machine, not for another copy in Python.
    assert min(seconds) < 0.3
