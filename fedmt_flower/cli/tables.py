"""What a run came to, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedmt_flower.federation.record import Outcome, Summary, TaskSummary

_LEVELS = {"mps": "SMs", "cpu": "threads", "inline": "threads"}
_COLOURS = {Outcome.FINISHED: "green", Outcome.RUNNING: "cyan"}


def number(value: float | None) -> str:
    """`value` in four significant digits, thousands set apart; a dash for none."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def run_tables(summary: Summary) -> RenderableType:
    """A run: how it ended, and a row per task."""
    table = _table()
    table.add_column("task", style="bold", overflow="fold")
    table.add_column("metric")
    level = _LEVELS.get(summary.backend, "level")
    forecast = any(task.predicted for task in summary.tasks.values())
    speed = "samples/s\n(predicted)" if forecast else "samples/s"
    for heading in ("before", "after", "samples", speed, "budget", level):
        table.add_column(heading, justify="right")
    if any(task.failures for task in summary.tasks.values()):
        table.add_column("failures", justify="right", style="red")
    for name, task in summary.tasks.items():
        table.add_row(name, *_cells(task))
    return Group(_title(summary), "", table, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run of a sweep: the values that it was given, by key, and its summary or why it has none."""

    choices: Mapping[str, str]
    summary: Summary | None = None
    error: str = ""

    def __str__(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.choices.items())


def comparison_table(jobs: Sequence[Job]) -> Table:
    """The runs of a sweep side by side: a row for each, a column per task with its final metric."""
    summaries = [job.summary for job in jobs if job.summary]
    tasks = list(dict.fromkeys(name for summary in summaries for name in summary.tasks))
    keys = list(dict.fromkeys(key for job in jobs for key in job.choices))
    last = [key.rpartition(".")[2] for key in keys]
    table = _table()
    for key, short in zip(keys, last, strict=True):
        table.add_column(short if last.count(short) == 1 else key, style="bold", overflow="fold")
    for name in tasks:
        metrics = {summary.tasks[name].metric for summary in summaries if name in summary.tasks}
        table.add_column(f"{name}\n{'/'.join(sorted(metrics))}", justify="right")
    shown = {
        heading: cell for heading, cell in _SPEEDS.items() if heading in _ALWAYS or any(map(cell, summaries))
    }
    for heading in (*shown, "outcome"):
        table.add_column(heading, justify="right")
    for job in jobs:
        table.add_row(*(job.choices.get(key, "–") for key in keys), *_results(job, tasks, shown.values()))
    return table


_SPEEDS: Mapping[str, Callable[[Summary], str]] = {
    "samples/s": lambda run: number(run.throughput),
    "round s": lambda run: f"{_mean(run.round_s):.1f}",
    "predicted s": lambda run: _seconds(run.predicted_s),
    "at least s": lambda run: _seconds(run.lower_bound_s),
    "emulated link": lambda run: str(run.link or ""),
    "wall s": lambda run: f"{run.wall_s:.0f}",
}
_ALWAYS = {"samples/s", "round s", "wall s"}


def _results(
    job: Job, tasks: Sequence[str], speeds: Iterable[Callable[[Summary], str]]
) -> Iterable[str | Text]:
    run = job.summary
    if run is None:
        return [*("–" for _ in (*tasks, *speeds)), Text("failed", style="red")]
    after = [number(run.tasks[name].after) if name in run.tasks else "–" for name in tasks]
    return [*after, *(cell(run) or "–" for cell in speeds), _outcome(run.outcome)]


def plural(count: int, noun: str) -> str:
    """`count` and `noun`, with an s unless there is one."""
    return f"{count} {noun}{'s' * (count != 1)}"


def _table() -> Table:
    return Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)


def _title(summary: Summary) -> Text:
    sites, rounds = plural(len(summary.sites), "site"), plural(summary.rounds, "round")
    how = f"{summary.policy} on {summary.backend}" if summary.backend else summary.policy
    title = Text.assemble((summary.run, "bold"), "  ", _outcome(summary.outcome))
    title.append(f"\n{rounds}, {sites}, {how}; {summary.wall_s:.0f} s by the clock")
    if summary.round_s:
        title.append(f"; a round takes {_mean(summary.round_s):.1f} s where each site has a device")
    if predicted := _seconds(summary.predicted_s):
        title.append(f"\npredicted: {predicted} s, and no less than {_seconds(summary.lower_bound_s)} s")
    if summary.link:
        title.append(f"\nemulated link: {summary.link}; overlap {summary.overlap}")
    return title


def _seconds(rounds: Sequence[float | None]) -> str:
    """The mean of what is known of rounds; empty if that is nothing."""
    known = [seconds for seconds in rounds if seconds is not None]
    return f"{_mean(known):.1f}" if known else ""


def _cells(task: TaskSummary) -> Iterable[str | Text]:
    yield task.metric
    yield number(task.before)
    yield Text(number(task.after), style="bold")
    yield f"{task.samples:,}"
    yield number(task.rate) if task.predicted is None else f"{number(task.rate)} ({number(task.predicted)})"
    yield f"{task.budget:.0f} %" if task.budget else "–"
    yield str(task.level or "–")
    yield str(len(task.failures) or "")


def _outcome(outcome: Outcome) -> Text:
    return Text(outcome, style=_COLOURS.get(outcome, "red"))


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else 0.0
