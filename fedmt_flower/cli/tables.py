"""What a run came to, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedmt_flower.federation.record import Outcome, Summary, TaskSummary

_UNITS = {"mps": "SMs", "cpu": "threads"}
_COLOURS = {Outcome.FINISHED: "green", Outcome.RUNNING: "cyan"}


def number(value: float | None) -> str:
    """`value` in four significant digits, thousands set apart; a dash for none."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def run_tables(summary: Summary) -> RenderableType:
    """A run: how it ended, and a row per task."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("task", style="bold")
    table.add_column("metric")
    for heading in ("before", "after", "samples", "samples/s", "budget", ""):
        table.add_column(heading, justify="right")
    for name, task in summary.tasks.items():
        table.add_row(name, *_cells(task, _UNITS.get(summary.backend, "")))
    return Group(_title(summary), table)


def comparison_table(runs: Mapping[str, Summary | str]) -> Table:
    """Several runs side by side: a row per run, a column per task.

    Parameters
    ----------
    runs
        By what sets each apart from the others: its summary, or why it has none.
    """
    summaries = [run for run in runs.values() if isinstance(run, Summary)]
    tasks = list(dict.fromkeys(name for summary in summaries for name in summary.tasks))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", style="bold", overflow="fold")
    for name in tasks:
        metrics = {summary.tasks[name].metric for summary in summaries if name in summary.tasks}
        table.add_column(f"{name}\n{'/'.join(sorted(metrics))}", justify="right")
    for heading in ("samples/s", "round s", "wall s", "outcome"):
        table.add_column(heading, justify="right")
    for label, run in runs.items():
        if isinstance(run, str):
            table.add_row(label, *["–"] * (len(tasks) + 3), Text(run, style="red"))
        else:
            after = [number(run.tasks[name].after) if name in run.tasks else "–" for name in tasks]
            table.add_row(
                label,
                *after,
                number(run.throughput),
                number(_mean(run.round_s)),
                number(run.wall_s),
                _outcome(run.outcome),
            )
    return table


def _title(summary: Summary) -> Text:
    sites = f"{len(summary.sites)} site{'s' * (len(summary.sites) != 1)}"
    rounds = f"{summary.rounds} round{'s' * (summary.rounds != 1)}"
    how = f"{summary.policy} on {summary.backend}" if summary.backend else summary.policy
    title = Text.assemble((summary.run, "bold"), "  ", _outcome(summary.outcome))
    title.append(f"\n{rounds}, {sites}, {how}; {number(summary.wall_s)} s by the clock")
    if summary.round_s:
        title.append(f", {number(_mean(summary.round_s))} s a round with a device for each site")
    return title


def _cells(task: TaskSummary, unit: str) -> Iterable[str | Text]:
    level = f" ({task.level} {unit if task.level != 1 else unit.rstrip('s')})" if task.level and unit else ""
    yield task.metric
    yield number(task.before)
    yield Text(number(task.after), style="bold")
    yield f"{task.samples:,}"
    yield number(task.rate)
    yield f"{number(task.budget)} %{level}" if task.budget else "–"
    yield Text(f"{len(task.failures)} left out", style="red") if task.failures else ""


def _outcome(outcome: Outcome) -> Text:
    return Text(outcome, style=_COLOURS.get(outcome, "red"))


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else 0.0
