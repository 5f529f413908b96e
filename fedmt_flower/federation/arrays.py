"""NumPy arrays in Flower's records, without needless copies, and the check of those that a peer sent."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.lib import format as npy
from numpy.typing import NDArray

from fedmt_flower.device.contract import Weights

STYPE = "numpy.ndarray"
"""Flower's name for an array in NumPy's npy form; the only form that it converts."""

_LONGEST = 200
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """What an array must be: its dtype and its shape."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Header:
    spec: ArraySpec
    fortran: bool
    offset: int


def from_numpy(array: NDArray[Any]) -> Array:
    """`array` as Flower's Array: the bytes that Flower itself would write, copied once."""
    stream = io.BytesIO()
    npy.write_array_header_1_0(stream, {**npy.header_data_from_array_1_0(array), "fortran_order": False})
    values = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    data = b"".join((stream.getvalue(), values))
    return Array(dtype=str(array.dtype), shape=tuple(array.shape), stype=STYPE, data=data)


def to_numpy(array: Array) -> NDArray[Any]:
    """A read-only view of what `array` holds; nothing is copied and nothing unpickled.

    Raises
    ------
    ValueError
        If `array` is not in npy form or its bytes are not as many as its own header says.
    """
    header = _read_header(array)
    flat = np.frombuffer(array.data, header.spec.dtype, offset=header.offset)
    return flat.reshape(header.spec.shape, order="F" if header.fortran else "C")


def to_record(weights: Weights) -> ArrayRecord:
    """`weights` as one record, names and order kept."""
    record = ArrayRecord()
    for name, array in weights.items():
        record[name] = from_numpy(array)
    return record


def to_weights(record: Mapping[str, Array]) -> Weights:
    """What `record` holds, as read-only views; ValueError names the array that cannot be read."""
    weights = {}
    for name, array in record.items():
        try:
            weights[name] = to_numpy(array)
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from error
    return weights


def spec_of(record: Mapping[str, Array]) -> dict[str, ArraySpec]:
    """The specification that `record` itself fulfils; ValueError names the array that cannot be read."""
    specs = {}
    for name, array in record.items():
        try:
            specs[name] = _read_header(array).spec
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from error
    return specs


def digest(record: Mapping[str, Array]) -> str:
    """SHA-256 of what `record` holds, as 64 hexadecimal digits.

    It is taken over each array in turn: its name in UTF-8, a zero byte, its bytes in npy form.
    """
    total = hashlib.sha256()
    for name, array in record.items():
        total.update(name.encode() + b"\0")
        total.update(array.data)
    return total.hexdigest()


def find_fault(record: Mapping[str, Array], expected: Mapping[str, ArraySpec]) -> str:
    """What keeps `record` from being an update of a model that is as `expected`; empty if nothing does.

    Names and shapes must be equal and every value finite. A dtype may differ in width, and an integer may
    stand for a float (averages of integers are floats, a client's own counters are not), but not a float
    for an integer or a complex number for either.
    """
    missing = [name for name in expected if name not in record]
    if missing:
        return f"expected {len(expected)} arrays, got {len(record)}: {missing[0]!r} is missing"
    for name, array in record.items():
        if name not in expected:
            return f"{name!r} is no array of the task"
        fault = _fault(array, expected[name])
        if fault:
            return f"{name!r}: {fault}"
    return ""


def _fault(array: Array, expected: ArraySpec) -> str:
    try:
        got = _read_header(array).spec
    except ValueError as error:
        return str(error)
    if got.shape != expected.shape:
        return f"expected shape {list(expected.shape)}, got {list(got.shape)}"
    if not np.can_cast(got.dtype, expected.dtype, "same_kind"):
        return f"expected {expected.dtype}, got {got.dtype}"
    values = to_numpy(array)
    if values.dtype.kind in "fc" and not np.isfinite(values).all():
        return f"expected finite values, got {int(values.size - np.isfinite(values).sum())} that are not"
    return ""


def _read_header(array: Array) -> _Header:
    if array.stype != STYPE:
        raise ValueError(f"expected an array as {STYPE!r}, got {array.stype!r}")
    # Only the head is copied into the stream; numpy refuses headers above 10,000 characters.
    stream = io.BytesIO(array.data[:12_000])
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"expected npy format 1.0 or 2.0, got {version}")
    try:
        shape, fortran, dtype = _HEADERS[version](stream)
    except Exception as error:
        # numpy parses it as Python's source: a nested one raised MemoryError, an open bracket TokenError.
        cause = " ".join(str(error).split())[:_LONGEST]
        raise ValueError(f"its npy header is broken: {type(error).__name__}: {cause}") from error
    offset = stream.tell()
    if dtype.hasobject:
        raise ValueError(f"expected numbers, got {dtype}")
    size = math.prod(shape) * dtype.itemsize
    # np.load would first allocate whatever the header claims.
    if min(shape, default=0) < 0 or size != len(array.data) - offset:
        raise ValueError(f"expected {size} bytes of {dtype} {list(shape)}, got {len(array.data) - offset}")
    return _Header(spec=ArraySpec(dtype, tuple(shape)), fortran=fortran, offset=offset)
