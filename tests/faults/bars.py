"""Where a campaign leaves what came of it, for the summary of the tests."""

from __future__ import annotations

import pytest

from fedmt_flower.bench.result import Bar

BARS = pytest.StashKey[list[Bar]]()
