"""The app of the package, of which every message starts a process."""

from __future__ import annotations

import subprocess
import sys

import pytest
from flwr.app import Context, RecordDict

from fedmt_flower.federation import app, compose

HEAVY = ["torch", "ray", "scipy", "hydra", "omegaconf", "prometheus_client", "sklearn", "matplotlib"]


@pytest.mark.parametrize("module", ["app", "client", "strategy"])
def test_a_message_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, fedmt_flower.federation.{module}; print(*set(sys.modules) & set({HEAVY!r}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def context(overrides: str, state: RecordDict) -> Context:
    return Context(run_id=1, node_id=1, node_config={}, state=state, run_config={"fedmt": overrides})


def test_settings_are_composed_with_the_first_message_only(monkeypatch: pytest.MonkeyPatch) -> None:
    state = RecordDict()
    overrides = "tasks=hospital batching=proportional network=edge_400mbps folder=there"
    first = app.composed(context(overrides, state))
    with monkeypatch.context() as patch:
        patch.setattr(compose, "compose", None)
        assert repr(app.composed(context(overrides, state))) == repr(first)
    other = app.composed(context("tasks=hospital folder=there", state))
    assert other == compose.compose("tasks=hospital folder=there")
    assert other != first
