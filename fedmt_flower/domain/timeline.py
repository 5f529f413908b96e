"""When each task of a round did what."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """What a task was doing during a span of a timeline."""

    PREPARE = "prepare"
    DOWNLOAD = "download"
    EVALUATE = "evaluate"
    COMPUTE = "compute"
    UPLOAD = "upload"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Task `task` was in `phase` from `start_s` to `end_s`, seconds since the round arrived."""

    task: str
    phase: Phase
    start_s: float
    end_s: float
