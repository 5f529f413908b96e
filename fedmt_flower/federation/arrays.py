"""NumPy arrays in Flower's records, without needless copies, and the check of those that a peer sent."""

from __future__ import annotations

import functools
import hashlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.lib import format as npy
from numpy.typing import NDArray

from fedmt_flower.device.contract import Weights

STYPE = "numpy.ndarray"
"""Flower's name for an array in NumPy's npy form; the only form that it converts."""

_LONGEST = 200
_LONGEST_HEAD = 12_000
_MAGIC_BYTES = 8
_HEADERS = {(1, 0): (npy.read_array_header_1_0, 2), (2, 0): (npy.read_array_header_2_0, 4)}
"""By version of the npy form: what reads the header, and the bytes of its length."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """What an array must be: its dtype and its shape."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Head:
    """What stands before an array's values in npy form; `npy` is its bytes, `size` that of the values."""

    spec: ArraySpec
    fortran: bool
    npy: bytes
    size: int


class Elsewhere(Protocol):
    """Where bytes lie that are not in memory."""

    def read(self, place: int, size: int) -> memoryview:
        """A copy of what is there."""
        ...


class Region:
    """Bytes that hold the values of arrays: in memory until they have been moved elsewhere.

    They may be a part of a whole, of which `begin` is the byte at which they begin: offsets are the whole's.
    """

    def __init__(self, data: bytes | memoryview, begin: int = 0) -> None:
        self._data: memoryview | None = memoryview(data)
        self._elsewhere: tuple[Elsewhere, int] | None = None
        self.begin = begin
        self.size = len(self._data)

    @property
    def data(self) -> memoryview | None:
        """All of it, as long as it is in memory."""
        return self._data

    @property
    def elsewhere(self) -> tuple[Elsewhere, int] | None:
        """Where it has been moved, and its place there."""
        return self._elsewhere

    def view(self, offset: int, size: int) -> memoryview:
        """The bytes there; writable only if they are a copy."""
        offset -= self.begin
        # Once: another thread may be moving them.
        data = self._data
        if data is not None:
            return data[offset : offset + size]
        assert self._elsewhere is not None
        elsewhere, place = self._elsewhere
        return elsewhere.read(place + offset, size)

    def moved(self, elsewhere: Elsewhere, place: int) -> None:
        """Say that from now on the bytes lie elsewhere."""
        self._elsewhere = elsewhere, place
        self._data = None


class StoredArray(Array):
    """An Array whose values lie in a `Region` and are read when they are asked for.

    A server keeps hundreds for each reply, so they share what is alike. Whoever sets `data`, `dtype` or
    `shape` of one makes it an ordinary Array.
    """

    head: Head
    region: Region
    _offset: int
    stype = STYPE

    __qualname__ = "Array"  # under which Flower sends it on

    def __init__(self, head: Head, region: Region, offset: int) -> None:
        keep = object.__setattr__  # Array looks into each that is set
        keep(self, "head", head)
        keep(self, "region", region)
        keep(self, "_offset", offset)

    @property
    def dtype(self) -> str:
        """The name of its dtype."""
        return _name(self.head.spec.dtype)

    @dtype.setter
    def dtype(self, dtype: str) -> None:
        self.data = self.data  # an ordinary one from here on
        self.dtype = dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.head.spec.shape

    @shape.setter
    def shape(self, shape: tuple[int, ...]) -> None:
        self.data = self.data  # as for `dtype`
        self.shape = shape

    @classmethod
    def of_values(cls, spec: ArraySpec, region: Region, offset: int) -> StoredArray:
        """An array in C order."""
        return cls(_head(spec), region, offset)

    @property
    def data(self) -> bytes:
        """The array in npy form, made anew."""
        return b"".join((self.head.npy, self.values()))

    @data.setter
    def data(self, data: bytes) -> None:
        plain = {"dtype": self.dtype, "shape": self.shape, "stype": self.stype, "data": data}
        self.__class__ = Array  # type: ignore[assignment]
        self.__dict__.clear()
        self.__dict__ |= plain

    def values(self) -> memoryview:
        """The bytes of the values; writable only if they are a copy."""
        return self.region.view(self._offset, self.head.size)

    def numpy(self) -> NDArray[Any]:
        """The array; it is the caller's own, as from any Array."""
        array = _shaped(self.head, self.values())
        return array if array.flags.writeable else array.copy(order="K")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Array):
            return NotImplemented
        mine, theirs = ((one.dtype, one.shape, one.stype, one.data) for one in (self, other))
        return mine == theirs

    def __reduce__(self) -> tuple[type[Array], tuple[Any, ...]]:
        return Array, (self.dtype, self.shape, self.stype, self.data)


def from_numpy(array: NDArray[Any]) -> Array:
    """`array` as Flower's Array: the bytes that Flower itself would write, copied once."""
    values = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    data = b"".join((_head(ArraySpec(array.dtype, array.shape)).npy, values))
    return Array(dtype=str(array.dtype), shape=tuple(array.shape), stype=STYPE, data=data)


def to_numpy(array: Array) -> NDArray[Any]:
    """A read-only view of what `array` holds; nothing is copied and nothing unpickled.

    Raises
    ------
    ValueError
        If `array` is not in npy form or its bytes are not as many as its own header says.
    """
    values = _shaped(read_head(array), raw_values(array))
    values.flags.writeable = False
    return values


def raw_values(array: Array) -> memoryview:
    """The bytes of the values of `array`, in the order that its head tells."""
    if isinstance(array, StoredArray):
        return array.values()
    return memoryview(array.data)[len(read_head(array).npy) :]


def read_head(array: Array) -> Head:
    """What `array` says of itself.

    Raises
    ------
    ValueError
        If that is not npy form, or not as many bytes follow as it says.
    """
    return array.head if isinstance(array, StoredArray) else _parse_head(array)


def settle(record: Mapping[str, Array]) -> None:
    """Have every array of `record` in memory: it outlives the turn that it comes from."""
    for array in record.values():
        if isinstance(array, StoredArray):
            array.data = array.data


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
            specs[name] = read_head(array).spec
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
        total.update(read_head(array).npy)
        total.update(raw_values(array))
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
        got = read_head(array).spec
    except ValueError as error:
        return str(error)
    if got.shape != expected.shape:
        return f"expected shape {list(expected.shape)}, got {list(got.shape)}"
    if got.dtype != expected.dtype and not np.can_cast(got.dtype, expected.dtype, "same_kind"):
        return f"expected {expected.dtype}, got {got.dtype}"
    values = to_numpy(array)
    if values.dtype.kind in "fc" and not np.isfinite(values).all():
        return f"expected finite values, got {int(values.size - np.isfinite(values).sum())} that are not"
    return ""


def _shaped(head: Head, values: memoryview) -> NDArray[Any]:
    flat = np.frombuffer(values, head.spec.dtype)
    return flat.reshape(head.spec.shape, order="F" if head.fortran else "C")


_name = functools.lru_cache(maxsize=64)(str)
"""A dtype's name, which numpy puts together anew each time."""


@functools.lru_cache(maxsize=4096)
def _head(spec: ArraySpec) -> Head:
    """The head of an array in C order: the bytes that numpy itself would write."""
    stream = io.BytesIO()
    entries = {"descr": npy.dtype_to_descr(spec.dtype), "fortran_order": False, "shape": spec.shape}
    npy.write_array_header_1_0(stream, entries)
    return Head(spec, fortran=False, npy=stream.getvalue(), size=spec.size_bytes)


def _parse_head(array: Array) -> Head:
    if array.stype != STYPE:
        raise ValueError(f"expected an array as {STYPE!r}, got {array.stype!r}")
    version = npy.read_magic(io.BytesIO(array.data[:_MAGIC_BYTES]))
    if version not in _HEADERS:
        raise ValueError(f"expected npy format 1.0 or 2.0, got {version}")
    width = _HEADERS[version][1]
    length = int.from_bytes(array.data[_MAGIC_BYTES : _MAGIC_BYTES + width], "little")
    # numpy refuses longer ones.
    head = _parse_npy(version, array.data[: min(_MAGIC_BYTES + width + length, _LONGEST_HEAD)])
    rest = len(array.data) - len(head.npy)
    # np.load would first allocate whatever the header claims.
    if min(head.spec.shape, default=0) < 0 or head.size != rest:
        shown = f"{head.spec.dtype} {list(head.spec.shape)}"
        raise ValueError(f"expected {head.size} bytes of {shown}, got {rest}")
    return head


@functools.lru_cache(maxsize=4096)
def _parse_npy(version: tuple[int, int], npy_head: bytes) -> Head:
    """What a head says; numpy takes 0.1 ms for each, and a model's are the same with every update."""
    stream = io.BytesIO(npy_head)
    stream.seek(_MAGIC_BYTES)
    try:
        shape, fortran, dtype = _HEADERS[version][0](stream)
    except Exception as error:
        # numpy parses it as Python's source: a nested one raised MemoryError, an open bracket TokenError.
        cause = " ".join(str(error).split())[:_LONGEST]
        raise ValueError(f"its npy header is broken: {type(error).__name__}: {cause}") from error
    if dtype.hasobject:
        raise ValueError(f"expected numbers, got {dtype}")
    spec = ArraySpec(dtype, tuple(shape))
    return Head(spec, fortran=fortran, npy=npy_head, size=spec.size_bytes)
