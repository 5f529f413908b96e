"""What a run writes down: an entry per round, site and task, and the summary of a whole run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from fedmt_flower.domain.history import FederationRound, SiteAnswer
from fedmt_flower.domain.network import Link
from fedmt_flower.domain.plan import Sharing
from fedmt_flower.domain.profile import StepKind
from fedmt_flower.domain.round import Handover, RoundReport, Status
from fedmt_flower.domain.timeline import Phase, Span


class Outcome(StrEnum):
    """How a run stands."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One task's share of one round on one site: a line of ``rounds.jsonl``.

    Parameters
    ----------
    final
        The closing exchange, which only evaluates.
    started
        When the round began on the server, in seconds since the epoch.
    place
        Place in the start order π, from 0; -1 if the site never planned the round.
    budget
        Rᵢ in per cent; 0 if the site never planned the round.
    spans
        The observed timeline of this task, in seconds since `arrived`.
    planned
        Its timeline as it was predicted, in seconds since the round began, `waited_s` after `arrived`.
    predicted_s, lower_bound_s
        The length of the site's round as it was predicted, and a lower bound; None without a forecast.
    basis
        What the prediction rested on; empty without a forecast.
    link
        The link that the site emulated; None if it was a real one, or none.
    arrived
        When the round reached the site's engine, in seconds since the epoch on the site's clock.
    waited_s, wall_s
        How long the round queued in that engine, and how long it then took, with all its tasks.
    update
        SHA-256 of the weights that the site gave to the task, as the server received them (each array in
        turn: its name, a zero byte, its bytes in npy form); empty if it gave none, or none that was taken.

    The other fields are those of `fedmt_flower.domain.round.TaskReport` and `TaskPlan`.
    """

    round: int
    final: bool
    started: float
    site: str
    task: str
    status: Status
    error: str = ""
    place: int = -1
    budget: float = 0.0
    batch_size: int | None = None
    sharing: Sharing | None = None
    backend: str = ""
    level: int = 0
    pid: int = 0
    train_examples: int = 0
    evaluate_examples: int = 0
    samples: int = 0
    compute_s: float = 0.0
    step: StepKind = StepKind.EAGER
    why_eager: str = ""
    handovers: tuple[Handover, ...] = ()
    train_metrics: Mapping[str, float] = field(default_factory=dict)
    evaluate_metrics: Mapping[str, float] = field(default_factory=dict)
    spans: tuple[Span, ...] = ()
    planned: tuple[Span, ...] = ()
    predicted_s: float | None = None
    lower_bound_s: float | None = None
    basis: str = ""
    link: Link | None = None
    arrived: float = 0.0
    waited_s: float = 0.0
    wall_s: float = 0.0
    update: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSummary:
    """What became of one task over a run.

    Parameters
    ----------
    metric
        Name of the metric that `before` and `after` are values of.
    before, after
        The metric of the initial and of the final global model, over all sites' test splits, weighted as
        the task's own strategy weighs them; None where it was never measured.
    evaluation
        Every metric of the final global model.
    samples
        Samples trained on in the whole run, over all sites.
    rate
        Σ samples / Σ seconds of computation, in samples per second.
    predicted
        The same as it was predicted, over the rounds that had a forecast; None if none had.
    budget, level
        The budget in per cent of the last planned round and what it came to (threads, or SMs).
    failures
        One line for each update that was left out, and for each round that the task lost.
    weights, load
        File of the final weights within the run's folder, and the line of Python that loads it.
    """

    metric: str = ""
    before: float | None = None
    after: float | None = None
    evaluation: Mapping[str, float] = field(default_factory=dict)
    samples: int = 0
    rate: float = 0.0
    predicted: float | None = None
    budget: float = 0.0
    level: int = 0
    failures: tuple[str, ...] = ()
    weights: str = ""
    load: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A run: the content of ``summary.json``.

    Parameters
    ----------
    round_s
        Seconds that each training round takes when every site has a device of its own: its slowest site's.
    predicted_s, lower_bound_s
        What was predicted of them, and lower bounds; None for a round without a forecast on each site.
    in_turn
        Whether the sites of a simulation took one device in turn. Then `round_s` is what the rounds would
        take on devices of their own, and `wall_s` is longer.
    wall_s
        Seconds by the clock since the run began, on this host, where sites may have waited for each other.
    link
        The link that every site emulated: then `round_s` holds its transfers, which were no real ones.
    batching, overlap
        How batch sizes were chosen, and how transfers and computation overlapped.
    throughput
        Round throughput Σ Dᵢ / makespan in samples per second, over the training rounds of all sites.
    """

    run: str
    outcome: Outcome
    error: str = ""
    started: float
    wall_s: float = 0.0
    rounds: int = 0
    sites: tuple[str, ...] = ()
    policy: str = ""
    backend: str = ""
    batching: str = ""
    overlap: str = ""
    link: Link | None = None
    round_s: tuple[float, ...] = ()
    predicted_s: tuple[float | None, ...] = ()
    lower_bound_s: tuple[float | None, ...] = ()
    in_turn: bool = False
    throughput: float = 0.0
    tasks: Mapping[str, TaskSummary] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def entries(done: FederationRound) -> tuple[Entry, ...]:
    """The entries of a round, site by site; a site that did not answer has one failed entry per task."""
    return tuple(
        entry
        for answer in done.answers
        for entry in (_reported(done, answer, answer.report) if answer.report else _unanswered(done, answer))
    )


def _reported(done: FederationRound, answer: SiteAnswer, report: RoundReport) -> Iterable[Entry]:
    plans = {plan.task: (place, plan) for place, plan in enumerate(report.plan.tasks)}
    forecast = report.forecast
    for task in report.tasks:
        place, plan = plans.get(task.task, (-1, None))
        yield Entry(
            round=done.round,
            final=done.final,
            started=done.started,
            site=answer.site,
            task=task.task,
            status=task.status,
            error=task.error,
            place=place,
            budget=plan.budget if plan else 0.0,
            batch_size=plan.batch_size if plan else None,
            sharing=report.plan.sharing,
            backend=report.backend,
            level=task.level,
            pid=task.pid,
            train_examples=task.train_examples,
            evaluate_examples=task.evaluate_examples,
            samples=task.samples,
            compute_s=task.compute_s,
            step=task.step,
            why_eager=task.why_eager,
            handovers=task.handovers,
            train_metrics=dict(task.train_metrics),
            evaluate_metrics=dict(task.evaluate_metrics),
            spans=tuple(span for span in report.timeline if span.task == task.task),
            planned=tuple(span for span in forecast.timeline if span.task == task.task) if forecast else (),
            predicted_s=forecast.makespan_s if forecast else None,
            lower_bound_s=forecast.lower_bound_s if forecast else None,
            basis=forecast.basis if forecast else "",
            link=report.link,
            arrived=report.arrived,
            waited_s=report.waited_s,
            wall_s=report.wall_s,
            update=answer.updates.get(task.task, ""),
        )


def _unanswered(done: FederationRound, answer: SiteAnswer) -> Iterable[Entry]:
    for task in done.tasks:
        yield Entry(
            round=done.round,
            final=done.final,
            started=done.started,
            site=answer.site,
            task=task,
            status=Status.FAILED,
            error=answer.error,
        )


def headline(metrics: Mapping[str, float]) -> str:
    """The metric to show first: the first that is not a loss, else the first; "" if there is none."""
    return next((name for name in metrics if "loss" not in name), next(iter(metrics), ""))


def summarise_tasks(rounds: Sequence[FederationRound]) -> dict[str, TaskSummary]:
    """What became of each task in `rounds`, the rounds of a run so far in their order."""
    names = list(dict.fromkeys(name for done in rounds for name in done.tasks))
    lines = [entry for done in rounds for entry in entries(done)]
    return {name: _summarise_task(name, rounds, [e for e in lines if e.task == name]) for name in names}


def _summarise_task(name: str, rounds: Sequence[FederationRound], lines: list[Entry]) -> TaskSummary:
    mine = [done.tasks[name] for done in rounds if name in done.tasks]
    evaluations = [task.evaluate_metrics for task in mine if task.evaluate_metrics]
    last = evaluations[-1] if evaluations else {}
    metric = headline(last)
    planned = [entry for entry in lines if entry.place >= 0 and not entry.final]
    seconds = sum(entry.compute_s for entry in lines)
    samples = sum(entry.samples for entry in lines)
    return TaskSummary(
        metric=metric,
        before=evaluations[0].get(metric) if evaluations else None,
        after=last.get(metric),
        evaluation=dict(last),
        samples=samples,
        rate=samples / seconds if seconds > 0 else 0.0,
        predicted=_predicted_rate(lines),
        budget=planned[-1].budget if planned else 0.0,
        level=planned[-1].level if planned else 0,
        failures=tuple(line for task in mine for line in task.failures),
    )


def _predicted_rate(lines: Iterable[Entry]) -> float | None:
    """Σ samples / Σ planned seconds of computation, over the entries that trained under a forecast."""
    forecasts = [entry for entry in lines if entry.samples and entry.planned]
    spans = [span for entry in forecasts for span in entry.planned if span.phase is Phase.COMPUTE]
    seconds = sum(span.end_s - span.start_s for span in spans)
    return sum(entry.samples for entry in forecasts) / seconds if seconds > 0 else None
