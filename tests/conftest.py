"""What every test shares: the count of those that need hardware this host lacks."""

from __future__ import annotations

import ctypes

import pytest


def _gpu_driver() -> bool:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, and so count, the tests that need an NVIDIA GPU where there is none."""
    if not _gpu_driver():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU on this host"))
