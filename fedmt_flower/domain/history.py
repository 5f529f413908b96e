"""What the server keeps of each round of a federation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedmt_flower.domain.round import RoundReport


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteAnswer:
    """What one node answered in a round: its report, or why there is none.

    `site` is the name that the node gives itself, or ``node-<id>`` until it has given one. `updates` has, for
    each task whose update was taken, the SHA-256 of its arrays as they were received.
    """

    site: str
    node: int
    report: RoundReport | None = None
    error: str = ""
    updates: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRound:
    """One task's round over all sites.

    Parameters
    ----------
    train_metrics
        The inner strategy's aggregate of the sites' training metrics.
    evaluate_metrics
        The inner strategy's aggregate of the evaluation of the weights that this round *began* with.
    sites
        Names of the sites whose update was aggregated, in the order of aggregation.
    failures
        One line for each update that was left out, naming site, task and cause.
    """

    train_metrics: Mapping[str, float] = field(default_factory=dict)
    evaluate_metrics: Mapping[str, float] = field(default_factory=dict)
    sites: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationRound:
    """One round of the federation; the last one of a run only evaluates and has `final` set.

    `started` is seconds since the epoch, `wall_s` the time from the first message to the aggregate.
    """

    round: int
    final: bool
    started: float
    wall_s: float
    answers: tuple[SiteAnswer, ...]
    tasks: Mapping[str, TaskRound]
