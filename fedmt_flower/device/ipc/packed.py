"""A model's state as one run of bytes: so it lies in memory files, and so it goes over the network.

The bytes are the length of a header (8 bytes, little-endian), the header (JSON: name, dtype and shape of
each array), and the arrays one after the other in C order; header and arrays are padded to 16 bytes.
Offsets follow from the header and are not stated, so that no two statements can differ.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from mmap import mmap
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

LONGEST_HEADER: Final = 32 << 20
"""Bytes of the header of any model that a host passes on."""

_ALIGNMENT = 16
_KINDS = "biufc"
_LENGTH_BYTES = 8
_PLAIN = re.compile(r"[<>][iufc]\d\d?|\|[biu]1", re.ASCII)
_SHOWN = 40
_MOST_BYTES = 1 << 48
_Extent = Annotated[int, msgspec.Meta(ge=0, lt=_MOST_BYTES)]
_Entries = list[tuple[str, str, Annotated[tuple[_Extent, ...], msgspec.Meta(max_length=64)]]]
_SHARED_BYTES = 1 << 18
"""Of so many bytes at most is a header whose layout is kept; one of 800 arrays has a quarter of it."""


class Place(NamedTuple):
    """An array, and the byte at which it begins."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int


class Packed(Mapping[str, NDArray[Any]]):
    """The weights that lie packed in `data`, as views of it.

    Raises
    ------
    ValueError
        If the bytes are not those that their header says.
    """

    def __init__(self, data: bytes | memoryview | mmap, longest_header: int = LONGEST_HEADER) -> None:
        self.data = memoryview(data)
        self._arrays = {
            place.name: np.ndarray(place.shape, place.dtype, self.data, place.offset)
            for place in places(self.data, longest_header)
        }

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def places(
    data: memoryview, longest_header: int = LONGEST_HEADER, size: int | None = None
) -> tuple[Place, ...]:
    """Where the arrays lie that are packed in `data`; ValueError if it is not what its header says.

    `data` may be the first of several pieces, which have `size` bytes together.
    """
    size = len(data) if size is None else size
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if length > min(longest_header, len(data) - _LENGTH_BYTES):
        raise ValueError(
            f"its header is of {length} bytes, expected at most {longest_header} and those there"
        )
    header = bytes(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
    found, end = _shared_layout(header) if length <= _SHARED_BYTES else _layout(header)
    if end != size:
        raise ValueError(f"expected {end} bytes by its header, got {size}")
    return found


def _layout(header: bytes) -> tuple[tuple[Place, ...], int]:
    """What a header says, and the bytes of it all."""
    try:
        entries = msgspec.json.decode(header, type=_Entries)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ValueError(f"its header is broken: {error}") from error
    found: dict[str, Place] = {}
    offset = _padded(_LENGTH_BYTES + len(header))
    for name, text, shape in entries:
        if name in found:
            raise ValueError(f"its header names {name!r} twice")
        place = found[name] = Place(name, _dtype(text), shape, offset)
        offset += _padded(math.prod(shape) * place.dtype.itemsize)
        if offset > _MOST_BYTES:
            raise ValueError(
                f"its header tells of more bytes than there can be, {name[:_SHOWN]!r} among them"
            )
    return tuple(found.values()), offset


_shared_layout = functools.lru_cache(maxsize=64)(_layout)
"""The updates of a model have the same header, and share what it says."""


def head(specs: Iterable[tuple[str, np.dtype[Any], tuple[int, ...]]]) -> bytes:
    """What stands before arrays of such names, dtypes and shapes; ValueError if they cannot be packed."""
    entries = []
    for name, dtype, shape in specs:
        if dtype.kind not in _KINDS:
            raise ValueError(f"array {name!r} of dtype {dtype} cannot be sent; expected plain numbers")
        entries.append((name, dtype.str, shape))
    text = msgspec.json.encode(entries)
    if len(text) > LONGEST_HEADER:
        raise ValueError(f"{len(entries)} arrays need a header of {len(text)} bytes, too long to send")
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + _padding(_LENGTH_BYTES + len(text))


def size_of(specs: Iterable[tuple[str, np.dtype[Any], tuple[int, ...]]]) -> int:
    """Bytes that arrays of such names, dtypes and shapes take, their head included."""
    specs = list(specs)
    return len(head(specs)) + sum(_padded(math.prod(shape) * dtype.itemsize) for _, dtype, shape in specs)


def pieces(weights: Mapping[str, NDArray[Any]]) -> Iterator[bytes | memoryview]:
    """The bytes of `weights`, one piece after the other; what is packed is one, and nothing is copied.

    Raises
    ------
    ValueError
        If an array holds no plain numbers.
    """
    if isinstance(weights, Packed):
        yield weights.data
        return
    yield head((name, array.dtype, array.shape) for name, array in weights.items())
    for array in weights.values():
        values = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        yield values
        yield _padding(values.nbytes)


def _dtype(text: str) -> np.dtype[Any]:
    # numpy itself would parse whole structures, and fails at some texts with a SyntaxError.
    if _PLAIN.fullmatch(text):
        try:
            dtype = np.dtype(text)
        except TypeError:
            dtype = np.dtype(object)
        if dtype.str == text:
            return dtype
    raise ValueError(f"expected a dtype of plain numbers, got {text[:_SHOWN]!r}")


def _padded(size: int) -> int:
    return size + -size % _ALIGNMENT


def _padding(size: int) -> bytes:
    return b"\0" * (-size % _ALIGNMENT)
