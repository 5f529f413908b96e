"""Records of benchmarks that nobody ran."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fedmt_flower.bench.result import Json, Result, Sample, this_machine


def made_up(name: str, settings: dict[str, Json], samples: Iterable[Sample], kind: str = "h100") -> Result:
    """A complete record of `samples`, as if taken on that `kind` of machine."""
    return Result(
        name=name,
        claim="",
        machine=replace(this_machine(None), kind=kind),
        versions={},
        command="",
        date="2026-11-22",
        seconds=0.0,
        settings=settings,
        complete=True,
        samples=tuple(samples),
    )
