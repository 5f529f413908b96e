"""Whether this process belongs to a simulation is asked while another thread may be importing ray."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from fedmt_flower.federation.sites import simulated


def test_a_ray_that_is_being_imported_is_not_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = ModuleType("ray")
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert not simulated()
    ray.is_initialized = lambda: True  # type: ignore[attr-defined]
    assert simulated()
    monkeypatch.delitem(sys.modules, "ray")
    assert not simulated()
