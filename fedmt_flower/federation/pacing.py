"""How long a round took where each site has a device, what it waited for, and what was predicted."""

from __future__ import annotations

from dataclasses import dataclass

from fedmt_flower.domain.history import FederationRound
from fedmt_flower.domain.round import RoundReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The length of a round: that of its slowest site.

    Parameters
    ----------
    site, task
        The site, and its task that ended last: what the round waited for. Empty if none answered.
    observed_s
        Seconds from the beginning of the round on that site to the end of its last task.
    predicted_s, lower_bound_s
        The longest of the sites' forecasts, and of their lower bounds, in seconds; None unless every site
        that answered had one.
    """

    site: str = ""
    task: str = ""
    observed_s: float = 0.0
    predicted_s: float | None = None
    lower_bound_s: float | None = None

    def __str__(self) -> str:
        """The round in one line."""
        promised = (
            ""
            if self.predicted_s is None or self.lower_bound_s is None
            else f", predicted {self.predicted_s:.1f} s, at least {self.lower_bound_s:.1f} s"
        )
        return f"{self.observed_s:.1f} s{promised}; waited for task {self.task!r} on site {self.site!r}"


def pace_of(done: FederationRound) -> Pace:
    """The pace of a round that is over."""
    reports = [answer.report for answer in done.answers if answer.report]
    if not reports:
        return Pace()
    slowest = max(reports, key=lambda report: report.wall_s)
    forecasts = [report.forecast for report in reports if report.forecast]
    whole = len(forecasts) == len(reports)
    return Pace(
        site=slowest.site,
        task=_last(slowest),
        observed_s=slowest.wall_s,
        predicted_s=max(forecast.makespan_s for forecast in forecasts) if whole else None,
        lower_bound_s=max(forecast.lower_bound_s for forecast in forecasts) if whole else None,
    )


def _last(report: RoundReport) -> str:
    """The task that ended last; of tasks that left no trace, as those that failed, the last in the plan."""
    if report.timeline:
        return max(report.timeline, key=lambda span: span.end_s).task
    return report.plan.tasks[-1].task if report.plan.tasks else ""
