"""Every error that a user may meet.

Each message is one line that stands alone: what was given, what was expected and what to do. Flower
passes on only an exception's text, so site, task and cause belong in that text.
"""

from __future__ import annotations


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
