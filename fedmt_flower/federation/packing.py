"""A task's arrays as one Array of Flower's.

Flower moves every Array of a message as objects of their own, two at a time, each a request: 772 arrays of
67 MB took over a minute where a few of the same bytes take a second. A packed Array has a type of its own,
so that what reads it as numbers fails by name instead of changing bytes that are none.

Its bytes are the length of a header (8 bytes, little-endian), the header (JSON: name, dtype and shape of
each array), and the arrays one after the other in C order; header and arrays are padded to 16 bytes.
Offsets follow from the header and are not stated, so that no two statements can differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec
import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from fedmt_flower.federation.arrays import ArraySpec, Region, StoredArray

STYPE = "fedmt.packed"
"""What a packed Array calls its form; Flower's own ``numpy()`` refuses any but its own."""

_ALIGNMENT = 16
_KINDS = "biufc"
_HEADER_LIMIT = 1 << 20
_LENGTH_BYTES = 8
_Entries = list[tuple[str, str, tuple[Annotated[int, msgspec.Meta(ge=0, lt=2**48)], ...]]]


def can_pack(weights: Mapping[str, NDArray[Any]]) -> bool:
    """Whether every one of `weights` has a dtype of plain numbers, and their header is not too long."""
    if any(array.dtype.kind not in _KINDS for array in weights.values()):
        return False
    return len(_header(weights)) <= _HEADER_LIMIT


def pack(weights: Mapping[str, NDArray[Any]]) -> Array:
    """`weights` as one Array, names and order kept; their values are copied once."""
    data = b"".join(_pieces(weights))
    return Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)


def unpack(array: Array) -> ArrayRecord:
    """The arrays that were packed, names and order kept; nothing is copied.

    Raises
    ------
    ValueError
        If `array` is not packed, or its bytes are not those that its header says.
    """
    if array.stype != STYPE:
        raise ValueError(f"expected an array as {STYPE!r}, got {array.stype!r}")
    size = len(array.data)
    length = int.from_bytes(array.data[:_LENGTH_BYTES], "little")
    if length > min(_HEADER_LIMIT, size - _LENGTH_BYTES):
        raise ValueError(f"its header is of {length} bytes, expected at most {_HEADER_LIMIT} and those there")
    try:
        entries = msgspec.json.decode(array.data[_LENGTH_BYTES : _LENGTH_BYTES + length], type=_Entries)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ValueError(f"its header is broken: {error}") from error
    region = Region(array.data)
    record = ArrayRecord()
    offset = _padded(_LENGTH_BYTES + length)
    for name, dtype, shape in entries:
        spec = ArraySpec(_dtype(dtype), shape)
        if name in record:
            raise ValueError(f"its header names {name!r} twice")
        record[name] = StoredArray.of_values(spec, region, offset)
        offset += _padded(spec.size_bytes)
        if offset > size:
            break
    if offset != size:
        raise ValueError(f"expected {offset} bytes or more by its header, got {size}")
    return record


def _pieces(weights: Mapping[str, NDArray[Any]]) -> Iterator[bytes | memoryview]:
    header = _header(weights)
    yield len(header).to_bytes(_LENGTH_BYTES, "little")
    yield header
    yield _padding(_LENGTH_BYTES + len(header))
    for array in weights.values():
        values = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        yield values
        yield _padding(values.nbytes)


def _header(weights: Mapping[str, NDArray[Any]]) -> bytes:
    return msgspec.json.encode([(name, array.dtype.str, array.shape) for name, array in weights.items()])


def _dtype(text: str) -> np.dtype[Any]:
    # The longest that is valid is as "<c16"; numpy also parses whole structures.
    if len(text) <= 4:
        try:
            dtype = np.dtype(text)
        except TypeError:
            dtype = np.dtype(object)
        if dtype.kind in _KINDS and dtype.str == text:
            return dtype
    raise ValueError(f"expected a dtype of plain numbers, got {text[:_SHOWN]!r}")


_SHOWN = 40


def _padded(size: int) -> int:
    return size + -size % _ALIGNMENT


def _padding(size: int) -> bytes:
    return b"\0" * (-size % _ALIGNMENT)
