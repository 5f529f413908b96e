"""`fedmt show RUN`: the results of a run, or of every run of a sweep."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from fedmt_flower.federation.record import Summary
from fedmt_flower.federation.run_folder import CONFIG, TRACE, WEIGHTS, RunFolder

_TIMELINE = "timeline.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, or of a sweep's runs")
    parser.add_argument("--json", action="store_true", help="print the summary, or the summaries, as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the tables of a run, and draw its timeline if it has none; of a sweep, print the comparison."""
    runs = sorted(path.parent for path in arguments.run.glob(f"*/{CONFIG}"))
    if (arguments.run / CONFIG).is_file() or not runs:
        folder = RunFolder.open(arguments.run)
        summary = folder.summary()
        if arguments.json:
            _print_json(summary)
            return 0
        if not (folder.path / _TIMELINE).exists():
            draw_timeline(folder)
        print_run(folder.path, summary)
        return 0
    summaries = {path.name: RunFolder.open(path).summary() for path in runs}
    if arguments.json:
        _print_json(summaries)
    else:
        print_comparison(summaries)
    return 0


def draw_timeline(folder: RunFolder) -> None:
    """Draw the last round that trained, if there is one."""
    from fedmt_flower.plots.timeline import timeline_png

    trained = [entry for entry in folder.rounds() if entry.spans and not entry.final]
    if trained:
        last = max(entry.round for entry in trained)
        folder.write(_TIMELINE, timeline_png([entry for entry in trained if entry.round == last]))


def print_run(folder: Path, summary: Summary) -> None:
    """Print the tables of a run and where its files are."""
    from rich.console import Console

    from fedmt_flower.cli.tables import run_tables

    console = Console(highlight=False)
    console.print(run_tables(summary))
    if summary.error:
        console.print(f"{summary.outcome}: {summary.error}", style="red", markup=False)
    for what, name in {"timeline": _TIMELINE, "trace": TRACE, "weights": WEIGHTS}.items():
        if (folder / name).exists():
            console.print(f"{what:<9} {folder / name}", soft_wrap=True, markup=False)
    load = next((task.load for task in summary.tasks.values() if task.load), "")
    if load:
        console.print(f"{'load':<9} {load}", soft_wrap=True, markup=False)


def print_comparison(runs: Mapping[str, Summary | str]) -> None:
    """Print one table of several runs."""
    from rich.console import Console

    from fedmt_flower.cli.tables import comparison_table

    Console(highlight=False).print(comparison_table(runs))


def _print_json(value: object) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
