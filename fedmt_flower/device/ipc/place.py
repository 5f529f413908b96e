"""Where in a GPU's memory a state lies that another process is to read."""

from __future__ import annotations

import msgspec


class Place(msgspec.Struct, frozen=True):
    """A place as another process opens it: what CUDA and torch need to know, meant for nobody else."""

    handle: bytes
    size: int
    offset: int
    counter: bytes
    counter_offset: int
