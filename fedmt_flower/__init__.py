"""Multi-task federated learning on one GPU, as a plugin for Flower."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmt_flower.domain.round import TaskRules
    from fedmt_flower.domain.task import Task
    from fedmt_flower.federation.client import MultiTaskClient, client_app
    from fedmt_flower.federation.strategy import FedMT

__all__ = ["FedMT", "MultiTaskClient", "Task", "TaskRules", "client_app"]

_HOMES = {
    "FedMT": "fedmt_flower.federation.strategy",
    "MultiTaskClient": "fedmt_flower.federation.client",
    "Task": "fedmt_flower.domain.task",
    "TaskRules": "fedmt_flower.domain.round",
    "client_app": "fedmt_flower.federation.client",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: importing the package alone loads neither Flower nor torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
