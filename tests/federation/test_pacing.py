"""What a round waited for, and what it was promised to take."""

from __future__ import annotations

from fedmt_flower.domain.forecast import Forecast
from fedmt_flower.domain.history import FederationRound, SiteAnswer
from fedmt_flower.domain.plan import RoundPlan, Sharing, TaskPlan
from fedmt_flower.domain.round import RoundReport
from fedmt_flower.domain.timeline import Phase, Span
from fedmt_flower.federation.pacing import Pace, pace_of


def answer(site: str, ends: dict[str, float], predicted_s: float | None = None) -> SiteAnswer:
    """A site whose tasks ended so many seconds after their round began, which had stood in a queue."""
    forecast = predicted_s and Forecast(
        makespan_s=predicted_s, lower_bound_s=predicted_s - 1, timeline=(), rates={}, constant_s=predicted_s
    )
    report = RoundReport(
        site=site,
        round=1,
        plan=RoundPlan(tasks=tuple(TaskPlan(task=task, budget=50) for task in ends), sharing=Sharing.CAPPED),
        tasks=(),
        timeline=tuple(
            Span(task=task, phase=Phase.COMPUTE, start_s=100.0, end_s=100.0 + end)
            for task, end in ends.items()
        ),
        backend="cpu",
        waited_s=100.0,
        wall_s=max(ends.values()),
        forecast=forecast or None,
    )
    return SiteAnswer(site=site, node=1, report=report)


def played(*answers: SiteAnswer) -> FederationRound:
    return FederationRound(round=1, final=False, started=0.0, wall_s=500.0, answers=answers, tasks={})


def test_a_round_is_as_long_as_its_slowest_site_and_waits_for_that_sites_last_task() -> None:
    pace = pace_of(played(answer("a", {"x": 3.0, "y": 2.0}, 4.0), answer("b", {"x": 1.0, "y": 5.0}, 3.0)))
    assert pace == Pace(site="b", task="y", observed_s=5.0, predicted_s=4.0, lower_bound_s=3.0)
    assert str(pace) == "5.0 s, predicted 4.0 s, at least 3.0 s; waited for task 'y' on site 'b'"


def test_nothing_is_promised_unless_every_site_promised_something() -> None:
    silent = SiteAnswer(site="c", node=3, error="no answer in time")
    pace = pace_of(played(answer("a", {"x": 3.0}, 4.0), answer("b", {"x": 1.0}), silent))
    assert (pace.site, pace.predicted_s, pace.lower_bound_s) == ("a", None, None)
    assert str(pace) == "3.0 s; waited for task 'x' on site 'a'"
    assert pace_of(played(silent)) == Pace()
