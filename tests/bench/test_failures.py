"""A part that fails leaves the others; a benchmark that failed in all leaves no record."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from fedmt_flower.bench import driver
from fedmt_flower.bench.bench import Bench, Options
from fedmt_flower.domain.device import Backend
from fedmt_flower.errors import EngineError


def test_a_part_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    works = {"light"}

    def run(bench: Bench) -> bool:
        for name in ("heavy", "light"):
            for error in ("out of memory", "the engine has gone"):
                with bench.part(name):
                    if name not in works:
                        raise EngineError(error)
                    bench.recorder.add(name, 0, {})
        return False

    stand_in = SimpleNamespace(CLAIM="", settings=lambda quick: {}, run=run)
    monkeypatch.setattr(driver, "load_driver", lambda name: stand_in)
    options = Options(backend=Backend.CPU, out=tmp_path, budget_s=60.0, command="")
    result = driver.measure("overlap", options, lambda line: None)
    assert result.facts == {"failed": {"heavy": "out of memory"}}
    works.clear()
    with pytest.raises(EngineError, match=r"^overlap: nothing could be measured; heavy: out of memory$"):
        driver.measure("overlap", options, lambda line: None)
