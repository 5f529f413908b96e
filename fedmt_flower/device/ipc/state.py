"""A training's state on its way from one process to another: its tensors in one buffer, the rest as JSON.

Nothing is pickled. The buffer may be a host's memory or a GPU's; where everything lies in it is said by a
layout, small enough to travel in a frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import torch
from torch import Tensor

_ALIGNMENT = 16
"""Bytes; a multiple of every element's size."""
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Node(msgspec.Struct, frozen=True, tag=str.lower):
    """A part of a state; its class's name is the tag in its JSON."""


class Held(Node, frozen=True):
    """A tensor: `offset` counts bytes of the buffer; `host` says that it lay in the host's memory.

    `strides` count elements, and leave no gaps: kernels that update all weights at once want those of the
    weights, which may be in channels-last order.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    host: bool


class Real(Node, frozen=True):
    """A floating-point number in hexadecimal, which loses no bit and has infinities."""

    text: str


class Plain(Node, frozen=True):
    """A value that JSON has itself."""

    value: bool | int | str | None


class Items(Node, frozen=True):
    """A list, or a tuple."""

    items: tuple[Layout, ...]
    fixed: bool


class Entries(Node, frozen=True):
    """A mapping, in its order."""

    items: tuple[tuple[bool | int | str, Layout], ...]


Layout = Held | Real | Plain | Items | Entries
"""Where a state lies in a buffer."""


class Packing:
    """A state about to be packed.

    Parameters
    ----------
    state
        Mappings (of text and whole numbers), lists, tuples, tensors, numbers, text and None, nested.

    Raises
    ------
    TypeError
        If it holds anything else; with the place.
    """

    def __init__(self, state: object) -> None:
        self.size = 0
        """Bytes that the buffer must have."""
        self._tensors: list[Tensor] = []
        self._places: list[Held] = []
        self.layout = self._lay_out(state, "state")

    def into(self, buffer: Tensor) -> None:
        """Copy every tensor into `buffer`, one dimension of at least `size` bytes."""
        there = _Views(buffer)
        views = [there.view(place) for place in self._places]
        with torch.no_grad():
            for host in (True, False):
                chosen = [i for i, place in enumerate(self._places) if place.host is host]
                if chosen:
                    torch._foreach_copy_([views[i] for i in chosen], [self._tensors[i] for i in chosen])

    def _lay_out(self, value: object, where: str) -> Layout:
        match value:
            case Tensor():
                return self._place(value, where)
            case bool() | int() | str() | None:
                return Plain(value)
            case float():
                return Real(value.hex())
            case Mapping():
                return Entries(tuple(self._entries(value, where)))
            case list() | tuple():
                nodes = (self._lay_out(part, f"{where}[{i}]") for i, part in enumerate(value))
                return Items(tuple(nodes), isinstance(value, tuple))
        raise TypeError(f"{where} is a {type(value).__name__}, which cannot go to another process")

    def _entries(self, value: Mapping[Any, object], where: str) -> Iterator[tuple[bool | int | str, Layout]]:
        for key, part in value.items():
            if not isinstance(key, (bool, int, str)):
                raise TypeError(f"{where} has the key {key!r}, expected text or a whole number")
            yield key, self._lay_out(part, f"{where}[{key!r}]")

    def _place(self, tensor: Tensor, where: str) -> Held:
        name = _NAMES.get(tensor.dtype)
        if name is None or tensor.layout is not torch.strided or tensor.is_quantized:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise TypeError(f"{where} is a tensor of {dtype} ({tensor.layout}), which cannot be packed")
        # Those of a copy, which leave no gaps; to ask for them takes ten times as long as to know them.
        strides = (tensor if tensor.is_contiguous() else torch.empty_like(tensor, device="meta")).stride()
        place = Held(name, tuple(tensor.shape), strides, self.size, not tensor.is_cuda)
        self.size += -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT
        self._tensors.append(tensor.detach())
        self._places.append(place)
        return place


def unpacked(layout: Layout, buffer: Tensor) -> Any:
    """The state of `layout`: tensors that lay in the host's memory are copies there, others are views.

    Raises
    ------
    ValueError
        If the buffer is not what the layout says.
    """
    return _Views(buffer).read(layout)


def empty_buffer(size: int, device: torch.device | str) -> Tensor:
    """A buffer of at least `size` bytes; zeros, since gaps between tensors count for the checksum."""
    return torch.zeros(max(_ALIGNMENT, size), dtype=torch.uint8, device=device)


def checksum(buffer: Tensor) -> int:
    """The sum of the buffer's 64-bit words, modulo 2⁶⁴: 100 MB take a fraction of a millisecond on a GPU."""
    whole = buffer[: buffer.numel() // 8 * 8].view(torch.int64)
    return int(whole.sum())


class _Views:
    """Tensors in the buffer's memory, where a layout says that they lie.

    A task waits for hundreds of them in mid hand-over: each is one call of torch's.
    """

    def __init__(self, buffer: Tensor) -> None:
        self._buffer = buffer[: buffer.numel() // _ALIGNMENT * _ALIGNMENT]
        self._as: dict[str, Tensor] = {}

    def read(self, layout: Layout) -> Any:
        """What `layout` says; see `unpacked`."""
        match layout:
            case Held():
                view = self.view(layout)
                # torch's generators take a state only at the beginning of its storage.
                return view.to("cpu", copy=True) if layout.host else view
            case Real(text=text):
                return float.fromhex(text)
            case Plain(value=value):
                return value
            case Items(items=items, fixed=fixed):
                parts = [self.read(part) for part in items]
                return tuple(parts) if fixed else parts
            case Entries(items=entries):
                return {key: self.read(part) for key, part in entries}

    def view(self, place: Held) -> Tensor:
        """The tensor at `place`; ValueError if it cannot be there."""
        whole = self._as.get(place.dtype)
        if whole is None:
            whole = self._typed(place.dtype)
        size, count = whole.element_size(), math.prod(place.shape)
        end = place.offset + count * size
        if place.offset % _ALIGNMENT:
            raise ValueError(f"a state's tensor cannot be {place.dtype} at byte {place.offset}")
        if count < 0 or place.offset < 0 or end > self._buffer.numel():
            raise ValueError(f"a state's tensor ends at byte {end}, its buffer has {self._buffer.numel()}")
        reach = sum((extent - 1) * stride for extent, stride in zip(place.shape, place.strides, strict=True))
        if count and reach != count - 1:
            raise ValueError(
                f"a state's tensor of {place.shape} has strides {place.strides}, which leave gaps"
            )
        return whole.as_strided(place.shape, place.strides, whole.storage_offset() + place.offset // size)

    def _typed(self, name: str) -> Tensor:
        if name not in _DTYPES:
            raise ValueError(f"a state's tensor cannot be {name}")
        self._as[name] = self._buffer.view(_DTYPES[name])
        return self._as[name]
