"""What fails in a part of a benchmark does not end the others."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from fedmt_flower.bench.driver import Bench
from fedmt_flower.errors import EngineError

log = logging.getLogger(__name__)


@contextmanager
def contained(bench: Bench, part: str) -> Iterator[None]:
    """Let an EngineError end `part` only: it is told among the record's facts, the first of each part."""
    try:
        yield
    except EngineError as error:
        log.error("%s, %s: %s", bench.name, part, error)
        bench.facts.setdefault("failed", {}).setdefault(part, str(error))


def require_samples(bench: Bench) -> None:
    """Raise EngineError if what has failed left no sample: that is no record."""
    failed = bench.facts.get("failed", {})
    if failed and not bench.recorder.samples:
        part, error = next(iter(failed.items()))
        raise EngineError(f"{bench.name}: nothing could be measured; {part}: {error}")


def has_failed(bench: Bench, part: str) -> bool:
    """Whether an error has ended `part`."""
    return part in bench.facts.get("failed", {})
