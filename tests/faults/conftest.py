"""How long a campaign is, and which."""

from __future__ import annotations

import pytest
from bars import BARS


def pytest_addoption(parser: pytest.Parser) -> None:
    """Known where pytest is called on this folder: ``pytest tests/faults --faults 200``."""
    parser.addoption("--faults", type=int, default=12, help="injections of the campaign")
    parser.addoption("--faults-seed", type=int, default=1, help="decides which, and when they strike")
    parser.addoption("--faults-record", default="", help="JSON file for what came of them")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what the campaign came to."""
    for bar in config.stash.get(BARS, []):
        met = "met" if bar.met else "NOT met"
        terminalreporter.write_line(f"{bar.name}: {bar.value:g} (goal {bar.goal:g}), {met}")
