"""A part that fails leaves the others; a benchmark that failed in all leaves no record."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmt_flower.bench.driver import Bench, Options
from fedmt_flower.bench.failures import contained, has_failed, require_samples
from fedmt_flower.bench.result import this_machine
from fedmt_flower.domain.device import Backend
from fedmt_flower.errors import EngineError


def test_a_part_that_fails_leaves_the_others(tmp_path: Path) -> None:
    options = Options(backend=Backend.CPU, out=tmp_path, budget_s=60.0, command="")
    bench = Bench("overlap", options, {}, this_machine(None))
    require_samples(bench)
    for error in ("out of memory", "the engine has gone"):
        with contained(bench, "heavy"):
            raise EngineError(error)
    assert has_failed(bench, "heavy")
    assert not has_failed(bench, "light")
    with pytest.raises(EngineError, match="nothing could be measured; heavy: out of memory"):
        require_samples(bench)
    bench.recorder.add("light", 0, {})
    require_samples(bench)
    assert bench.facts == {"failed": {"heavy": "out of memory"}}
