"""Values out of plain mappings, with every problem that there is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeVar, get_type_hints

import msgspec

from fedmt_flower.errors import ConfigError, expected_one_of

_T = TypeVar("_T")


def read(kind: type[_T], node: Any, where: str, problems: list[str]) -> _T | None:
    """Make a value of a mapping, and miss no problem.

    Parameters
    ----------
    kind
        A dataclass.
    node
        Its fields by name; each is converted to the field's type.
    where
        What a problem's line says first, such as ``data``.
    problems
        Grows by everything wrong with `node`, a line each.

    Returns
    -------
    kind or None
        None if anything is wrong.
    """
    types = get_type_hints(kind)
    prefix = f"{where}." if where else ""
    count = len(problems)
    values: dict[str, Any] = {}
    for key, value in node.items():
        if key not in types:
            problems.append(f"{prefix}{key}: there is no such key; {expected_one_of(str(key), types)}")
            continue
        try:
            values[key] = msgspec.convert(value, types[key])
        except msgspec.ValidationError as error:
            problems.append(f"{prefix}{key}: got {value!r}; {_expectation(types[key], value, error)}")
    required = {
        f.name
        for f in dataclasses.fields(kind)  # type: ignore[arg-type]
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    problems += [f"{prefix}{key}: missing; expected a value" for key in sorted(required - set(node))]
    if len(problems) > count:
        return None
    return collect(lambda: kind(**values), prefix, problems)


def _expectation(kind: Any, value: Any, error: msgspec.ValidationError) -> str:
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return expected_one_of(str(value), list(kind))
    return str(error).replace("Expected", "expected").replace("`", "")


def collect(make: Callable[[], _T], prefix: str, problems: list[str]) -> _T | None:
    """What `make` makes, or None and the problems of its ConfigError, each behind `prefix`."""
    try:
        return make()
    except ConfigError as error:
        problems += [f"{prefix}{problem}" for problem in error.problems]
        return None
