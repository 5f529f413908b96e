"""Every error that a user may meet.

Each message is one line that stands alone: what was given, what was expected and what to do. Flower
passes on only an exception's text, so site, task and cause belong in that text.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FedMTError(Exception):
    """Base class of the package's errors; the command line turns one into a line and exit code 1."""


class ConfigError(FedMTError, ValueError):
    """A configuration that cannot work; `problems` lists everything wrong with it, one line each."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class TaskError(FedMTError):
    """One task failed on one site; the others are not touched by it."""


class EngineError(FedMTError):
    """The engine of a device cannot be started, reached or used."""


class ProtocolError(EngineError):
    """A peer of the engine sent what the protocol does not allow."""


def expected_one_of(given: str, choices: Iterable[str]) -> str:
    """The end of an error's line: the choices there are, and the closest to what was given."""
    known = sorted(choices)
    close = difflib.get_close_matches(given, known, n=1)
    return f"expected one of {', '.join(known)}" + (f"; did you mean {close[0]}?" if close else "")


class FederationError(FedMTError):
    """A message between server and node that cannot be understood, or a federation that cannot go on."""
