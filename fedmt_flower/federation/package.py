"""What server and nodes say to each other, apart from how it is written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.app.typing import ConfigRecordValues

from fedmt_flower.device.contract import Weights
from fedmt_flower.domain.round import Mode, RoundReport
from fedmt_flower.domain.task import check_name

UNNAMED_TASK = "the message names no task"
"""Part of the error with which a node of several tasks answers a message that is no package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What a node says of itself.

    Parameters
    ----------
    site, tasks
        The name of its site and the tasks that it hosts.
    unpacks
        Whether its app takes the arrays of a task packed into one: nothing in it looks at messages before.
    """

    site: str
    tasks: tuple[str, ...]
    unpacks: bool = False

    def __post_init__(self) -> None:
        check_name("site", self.site)
        for task in self.tasks:
            check_name("task", task)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One task of a package, as the server sends it; its arrays one by one or packed into one.

    None in their place: another node of the site is given them.
    """

    mode: Mode
    arrays: ArrayRecord | Array | None
    config: ConfigRecord
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One task of a package, as a client receives it; no weights: another node of the site is given them."""

    mode: Mode
    weights: Weights | None
    config: Mapping[str, ConfigRecordValues]
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A node's reply to a package: its report, and by task the new arrays and training metrics."""

    report: RoundReport
    arrays: Mapping[str, ArrayRecord]
    metrics: Mapping[str, MetricRecord]
