"""A task's arrays as one Array of Flower's, or a few.

Flower moves every Array of a message as objects of their own, two at a time, each a request: 772 arrays of
67 MB took over a minute where a few of the same bytes take a second. A packed Array has a type of its own,
so that what reads it as numbers fails by name instead of changing bytes that are none. Its bytes are those
of `fedmt_flower.device.ipc.packed`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, Final

from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from fedmt_flower.device.ipc.packed import Packed, head, pieces, places
from fedmt_flower.federation.arrays import ArraySpec, Region, StoredArray

STYPE = "fedmt.packed"
"""What a packed Array calls its form; Flower's own ``numpy()`` refuses any but its own."""

_LONGEST_HEADER: Final = 1 << 20
_LONGEST_PIECE: Final = 16 << 20


class PackedArray(Array):
    """A packed Array whose bytes stay where they are, which Flower only reads when it sends them."""

    __qualname__ = "Array"  # under which Flower sends it on

    def __init__(self, data: memoryview) -> None:
        self.__dict__ |= {"dtype": "uint8", "shape": (len(data),), "stype": STYPE, "data": data.toreadonly()}

    def __reduce__(self) -> tuple[type[Array], tuple[Any, ...]]:
        return Array, (self.dtype, self.shape, self.stype, bytes(self.data))


def can_pack(weights: Mapping[str, NDArray[Any]]) -> bool:
    """Whether every one of `weights` has a dtype of plain numbers, and their header is not too long."""
    try:
        return len(head((name, a.dtype, a.shape) for name, a in weights.items())) <= _LONGEST_HEADER
    except ValueError:
        return False


def pack(weights: Mapping[str, NDArray[Any]]) -> Array:
    """`weights` as one Array, names and order kept; copied once, or not at all where they are packed."""
    if isinstance(weights, Packed):
        return PackedArray(weights.data)
    data = b"".join(pieces(weights))
    return Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)


def cut(packed: Array) -> list[Array]:
    """`packed` as several, cut between the arrays in it; the bytes are shared.

    glibc maps what is larger than 32 MB anew each time. To a server that reads update after update the new
    pages cost more than the bytes: 72 MB of three models took it 68 ms whole and 25 ms in pieces.
    """
    data = _data(packed)
    if len(data) <= _LONGEST_PIECE:
        return [packed]
    _, *begins = (place.offset for place in places(data, _LONGEST_HEADER))
    cuts = [0]
    for begin, end in itertools.pairwise([*begins, len(data)]):
        if end - cuts[-1] > _LONGEST_PIECE:
            cuts.append(begin)
    return [PackedArray(data[begin:end]) for begin, end in itertools.pairwise([*cuts, len(data)])]


def packed_in(*pieces: Array) -> Packed:
    """The weights that were packed, which share the bytes of a single piece; ValueError as `unpack`."""
    data = [_data(piece) for piece in pieces]
    return Packed(data[0] if len(data) == 1 else b"".join(data), _LONGEST_HEADER)


def unpack(*pieces: Array) -> ArrayRecord:
    """The arrays that were packed, names and order kept; nothing is copied.

    Raises
    ------
    ValueError
        If `pieces` are not packed, or their bytes are not those that the header says.
    """
    regions, size = [], 0
    for piece in pieces:
        regions.append(Region(_data(piece), size))
        size += regions[-1].size
    record = ArrayRecord()
    following = iter(regions)
    region = next(following)
    for place in places(_data(pieces[0]), _LONGEST_HEADER, size):
        spec = ArraySpec(place.dtype, place.shape)
        while place.offset + spec.size_bytes > region.begin + region.size:
            region = next(following)
        if place.offset < region.begin:
            raise ValueError(f"array {place.name!r} is in two pieces")
        record[place.name] = StoredArray.of_values(spec, region, place.offset)
    return record


def _data(array: Array) -> memoryview:
    if array.stype != STYPE:
        raise ValueError(f"expected an array as {STYPE!r}, got {array.stype!r}")
    return memoryview(array.data)
