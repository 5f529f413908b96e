"""What a strategy keeps from round to round, as JSON and arrays: nothing is pickled or unpickled."""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Strategy

_RECORDS = {kind.__name__: kind for kind in (ArrayRecord, ConfigRecord, MetricRecord)}
_CODE = (FunctionType, MethodType, BuiltinFunctionType, type, functools.partial, logging.Logger, PurePath)
"""What a strategy is told and does not change: it stays as the new strategy has it."""

_FILLED: Mapping[str, Any] = {
    "strategy": Strategy,
    "generator": np.random.Generator,
    "random": random.Random,
    "code": _CODE,
}

Node = Any
"""A value as JSON has it; what JSON has no form for is an object of one key, the name of its form."""


class StateError(ValueError):
    """A value that has no form here, and where it stands."""


@dataclass(slots=True)
class Frozen:
    """Values as JSON, beside the contents of the arrays in them, to which the JSON refers by number."""

    node: Node
    blobs: list[bytes] = field(default_factory=list)

    def digests(self) -> Node:
        """The JSON with a hash of its contents in place of each number: equal for equal values."""
        return _digests(self.node, self.blobs)


def freeze(value: object) -> Frozen:
    """`value` without any object of Python in it; StateError if it has another kind of thing in it."""
    freezer = _Freezer()
    return Frozen(freezer.freeze(value, ""), freezer.blobs)


def thaw(frozen: Frozen, like: object = None) -> Any:
    """The value that was frozen.

    Strategies, generators and functions are not made: `like` is the value as it is now, with those that are
    to be filled, or to stay.
    """
    return _Thawer(frozen.blobs).thaw(frozen.node, like)


class _Freezer:
    def __init__(self) -> None:
        self.blobs: list[bytes] = []
        self._kept: dict[int, tuple[object, int]] = {}

    def freeze(self, value: object, where: str) -> Node:
        if value is None or type(value) in (bool, int, float, str):
            return value
        if type(value) is bytes:
            return {"bytes": self._blob(value, value)}
        if type(value) is list:
            return self._items(value, where)
        if type(value) is tuple:
            return {"tuple": self._items(value, where)}
        if type(value) is dict:
            return {"dict": self._pairs(value, where)}
        if isinstance(value, np.ndarray | np.generic):
            return {"array" if isinstance(value, np.ndarray) else "scalar": self._array(value, where)}
        if isinstance(value, Array):
            blob = self._blob(value, value.data)
            return {"Array": [value.dtype, list(value.shape), value.stype, blob]}
        for name, kind in _RECORDS.items():
            if isinstance(value, kind):
                return {name: self._pairs(value, where)}
        if type(value) is np.random.Generator:
            return {"generator": self.freeze(value.bit_generator.state, where)}
        if type(value) is random.Random:
            return {"random": self.freeze(value.getstate(), where)}
        if isinstance(value, Strategy):
            return {"strategy": self._pairs(vars(value), where)}
        if isinstance(value, _CODE):
            return {"code": type(value).__name__}
        raise StateError(f"{where.lstrip('.') or 'it'} is a {type(value).__name__}")

    def _items(self, values: list[Any] | tuple[Any, ...], where: str) -> list[Node]:
        return [self.freeze(value, f"{where}[{place}]") for place, value in enumerate(values)]

    def _pairs(self, values: Mapping[Any, Any], where: str) -> list[Node]:
        return [[self.freeze(key, where), self.freeze(one, f"{where}.{key}")] for key, one in values.items()]

    def _array(self, value: np.ndarray[Any, Any] | np.generic, where: str) -> int:
        stream = io.BytesIO()
        try:
            np.save(stream, value, allow_pickle=False)
        except ValueError:
            raise StateError(f"{where.lstrip('.')} is an array of objects") from None
        return self._blob(value, stream.getvalue())

    def _blob(self, owner: object, content: bytes) -> int:
        """The number of `content`; what several places hold in common is there once."""
        if id(owner) not in self._kept:
            # The owner is held, so that no other object takes its id.
            self._kept[id(owner)] = (owner, len(self.blobs))
            self.blobs.append(content)
        return self._kept[id(owner)][1]


class _Thawer:
    def __init__(self, blobs: list[bytes]) -> None:
        self._blobs = blobs

    def thaw(self, node: Node, like: object) -> Any:
        if isinstance(node, list):
            old = like if isinstance(like, list | tuple) else ()
            return [self.thaw(one, now) for one, now in zip(node, chain(old, repeat(None)), strict=False)]
        if not isinstance(node, dict):
            return node
        ((form, content),) = node.items()
        if form == "tuple":
            return tuple(self.thaw(content, like))
        if form == "dict":
            return dict(self._pairs(content, like if isinstance(like, dict) else {}))
        if form == "bytes":
            return self._blobs[content]
        if form in ("array", "scalar"):
            array = np.load(io.BytesIO(self._blobs[content]), allow_pickle=False)
            return array if form == "array" else array[()]
        if form == "Array":
            dtype, shape, stype, blob = content
            return Array(dtype=dtype, shape=tuple(shape), stype=stype, data=self._blobs[blob])
        if form in _RECORDS:
            record = _RECORDS[form]()
            for key, value in self._pairs(content, {}):
                record[key] = value
            return record
        return self._fill(form, content, like)

    def _fill(self, form: str, content: Node, like: Any) -> Any:
        if form not in _FILLED or not isinstance(like, _FILLED[form]):
            raise StateError(f"a {form} has no counterpart here")
        if form == "strategy":
            for name, value in self._pairs(content, vars(like)):
                setattr(like, name, value)
        elif form == "generator":
            like.bit_generator.state = self.thaw(content, None)
        elif form == "random":
            like.setstate(self.thaw(content, None))
        return like

    def _pairs(self, content: Node, old: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
        pairs = [(self.thaw(key, None), value) for key, value in content]
        return [(key, self.thaw(value, old.get(key))) for key, value in pairs]


def _digests(node: Node, blobs: list[bytes]) -> Node:
    if isinstance(node, list):
        return [_digests(one, blobs) for one in node]
    if not isinstance(node, dict):
        return node
    ((form, content),) = node.items()
    if form in ("array", "bytes", "scalar"):
        return {form: hashlib.sha256(blobs[content]).hexdigest()}
    if form == "Array":
        return {form: [*content[:-1], hashlib.sha256(blobs[content[-1]]).hexdigest()]}
    return {form: _digests(content, blobs)}
