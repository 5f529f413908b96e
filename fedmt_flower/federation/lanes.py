"""What the nodes of one site answer, as one answer: each tells of its own tasks of one and the same round."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fedmt_flower.domain.history import SiteAnswer
from fedmt_flower.domain.round import RoundReport, Status, TaskReport
from fedmt_flower.domain.timeline import Span


def join(lanes: Iterable[tuple[SiteAnswer, tuple[str, ...]]]) -> SiteAnswer:
    """The answer of a site, of those of its nodes, each with the tasks that the node was asked for.

    The tasks of a node without a report have failed, as long as any other has one.
    """
    answers = list(lanes)
    first, _ = answers[0]
    reports = [answer.report for answer, _ in answers if answer.report]
    if len(answers) == 1 or not reports:
        return first
    lost = [
        TaskReport(task=task, status=Status.FAILED, error=answer.error)
        for answer, tasks in answers
        if not answer.report
        for task in tasks
    ]
    updates = {task: update for answer, _ in answers for task, update in answer.updates.items()}
    return replace(first, report=_joined(reports, lost), error="", updates=updates)


def _joined(reports: list[RoundReport], lost: list[TaskReport]) -> RoundReport:
    """One report, which counts from the first order's arrival to the last task's end."""
    first = min(reports, key=lambda report: report.arrived)
    end = max(report.arrived + report.waited_s + report.wall_s for report in reports)
    spans = [span for report in reports for span in _shifted(report, report.arrived - first.arrived)]
    return replace(
        first,
        tasks=(*(task for report in reports for task in report.tasks), *lost),
        timeline=tuple(sorted(spans, key=lambda span: span.start_s)),
        wall_s=end - first.arrived - first.waited_s,
    )


def _shifted(report: RoundReport, by: float) -> Iterable[Span]:
    return (replace(span, start_s=span.start_s + by, end_s=span.end_s + by) for span in report.timeline)
