"""`fedmt show RUN`: the results of a run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fedmt_flower.federation.record import Outcome, Summary
from fedmt_flower.federation.run_folder import RunFolder

TIMELINE = "timeline.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, or of a sweep's runs")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the tables of a run; draw its timeline if it has none yet."""
    folder = RunFolder.open(arguments.run)
    summary = folder.summary()
    if arguments.json:
        sys.stdout.write(folder.path.joinpath("summary.json").read_text())
        return 0
    if not (folder.path / TIMELINE).exists():
        draw_timeline(folder)
    print_run(folder, summary)
    return 0


def draw_timeline(folder: RunFolder) -> None:
    """Draw the last round that trained, if there is one."""
    from fedmt_flower.plots.timeline import timeline_png

    trained = [entry for entry in folder.rounds() if entry.spans and not entry.final]
    if trained:
        last = max(entry.round for entry in trained)
        folder.write(TIMELINE, timeline_png([entry for entry in trained if entry.round == last]))


def print_run(folder: RunFolder, summary: Summary) -> None:
    """Print the tables of a run and where its files are."""
    from rich.console import Console

    from fedmt_flower.cli.tables import run_tables

    console = Console(highlight=False)
    console.print(run_tables(summary))
    if summary.error:
        console.print(f"{summary.outcome}: {summary.error}", style="red", markup=False)
    for task in summary.tasks.values():
        for failure in task.failures:
            console.print(f"left out: {failure}", style="red", markup=False)
    files = {"timeline": TIMELINE, "trace": "trace.json", "weights": "weights"}
    for what, name in files.items():
        if (folder.path / name).exists():
            console.print(f"{what:<9} {folder.path / name}", soft_wrap=True, markup=False)
    if summary.outcome is Outcome.FINISHED:
        loads = [task.load for task in summary.tasks.values() if task.load]
        console.print(f"{'load':<9} {loads[0]}" if loads else "", soft_wrap=True, markup=False)
