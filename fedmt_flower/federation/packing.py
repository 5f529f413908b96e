"""A task's arrays as one Array of Flower's.

Flower moves every Array of a message as objects of their own, two at a time, each a request: 772 arrays of
67 MB took over a minute where a few of the same bytes take a second. A packed Array has a type of its own,
so that what reads it as numbers fails by name instead of changing bytes that are none. Its bytes are those
of `fedmt_flower.device.ipc.packed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from fedmt_flower.device.ipc.packed import Packed, head, pieces, places
from fedmt_flower.federation.arrays import ArraySpec, Region, StoredArray

STYPE = "fedmt.packed"
"""What a packed Array calls its form; Flower's own ``numpy()`` refuses any but its own."""

_LONGEST_HEADER: Final = 1 << 20


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


def packed_in(array: Array) -> Packed:
    """The weights that were packed into `array`, which it shares; ValueError as `unpack`."""
    return Packed(_data(array), _LONGEST_HEADER)


def unpack(array: Array) -> ArrayRecord:
    """The arrays that were packed, names and order kept; nothing is copied.

    Raises
    ------
    ValueError
        If `array` is not packed, or its bytes are not those that its header says.
    """
    data = _data(array)
    region = Region(data)
    record = ArrayRecord()
    for place in places(data, _LONGEST_HEADER):
        record[place.name] = StoredArray.of_values(ArraySpec(place.dtype, place.shape), region, place.offset)
    return record


def _data(array: Array) -> memoryview:
    if array.stype != STYPE:
        raise ValueError(f"expected an array as {STYPE!r}, got {array.stype!r}")
    return memoryview(array.data)
