"""What a run came to, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    table.add_column("task", style="bold", overflow="fold")
    table.add_column("metric")
    level = _LEVELS.get(summary.backend, "level")
    for heading in ("before", "after", "samples", "samples/s", "budget", level):
        table.add_column(heading, justify="right")
    if any(task.failures for task in summary.tasks.values()):
        table.add_column("left out", justify="right", style="red")
    for name, task in summary.tasks.items():
        table.add_row(name, *_cells(task))
    return Group(_title(summary), "", table, "")


def comparison_table(runs: Mapping[str, Summary | str]) -> Table:
    """Several runs side by side: a row per run, a column per task.

    Parameters
    ----------
    runs
        By what sets each apart from the others: its summary, or why it has none.
    """
    summaries = [run for run in runs.values() if isinstance(run, Summary)]
    tasks = list(dict.fromkeys(name for summary in summaries for name in summary.tasks))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
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
    title.append(f"\n{rounds}, {sites}, {how}; {summary.wall_s:.0f} s by the clock")
    if summary.round_s:
        title.append(f"; a round takes {_mean(summary.round_s):.1f} s where each site has a device")
    return title


def _cells(task: TaskSummary) -> Iterable[str | Text]:
    yield task.metric
    yield number(task.before)
    yield Text(number(task.after), style="bold")
    yield f"{task.samples:,}"
    yield number(task.rate)
    yield f"{task.budget:.0f} %" if task.budget else "–"
    yield str(task.level or "–")
    yield str(len(task.failures) or "")


def _outcome(outcome: Outcome) -> Text:
    return Text(outcome, style=_COLOURS.get(outcome, "red"))


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else 0.0
