"""`fedmt show RUN`: the results of a run, or of every run of a sweep."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from fedmt_flower.cli.tables import Job, comparison_table, run_tables
from fedmt_flower.federation.record import Summary
from fedmt_flower.federation.run_folder import (
    TIMELINE,
    TRACE,
    WEIGHTS,
    RunFolder,
    RunFolderError,
    SweepFolder,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, or of a sweep's runs")
    parser.add_argument("--json", action="store_true", help="print the summary, or the summaries, as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the tables of a run, and draw its timeline if it has none; of a sweep, print the comparison."""
    if (sweep := SweepFolder.find(arguments.run)) is not None:
        jobs = []
        for name, choices in sweep.runs().items():
            try:
                jobs.append(Job(choices=choices, summary=RunFolder.open(sweep.path / name).summary()))
            except RunFolderError as error:
                jobs.append(Job(choices=choices, error=str(error)))
        print_sweep(sweep.path, jobs, as_json=arguments.json)
        return 0
    folder = RunFolder.open(arguments.run)
    summary = folder.summary()
    if not (folder.path / TIMELINE).exists():
        draw_timeline(folder)
    print_run(folder.path, summary, as_json=arguments.json)
    if not arguments.json:
        for name, task in summary.tasks.items():
            for failure in task.failures:
                print(f"failure in {name}: {failure}")
    return 0


def draw_timeline(folder: RunFolder) -> None:
    """Draw the last round that trained, if there is one."""
    from fedmt_flower.plots.timeline import timeline_png

    trained = [entry for entry in folder.rounds() if entry.spans and not entry.final]
    if trained:
        last = max(entry.round for entry in trained)
        folder.write(TIMELINE, timeline_png([entry for entry in trained if entry.round == last]))


def print_run(folder: Path, summary: Summary, *, as_json: bool) -> None:
    """Print the tables of a run and where its files are, or its summary as JSON."""
    if as_json:
        _print_json(summary)
        return
    console = Console(highlight=False)
    console.print(run_tables(summary))
    if summary.error:
        console.print(f"{summary.outcome}: {summary.error}", style="red", markup=False)
    for what, name in {"timeline": TIMELINE, "trace": TRACE, "weights": WEIGHTS}.items():
        if (folder / name).exists():
            console.print(f"{what:<9} {folder / name}", soft_wrap=True, markup=False)
    if load := next((task.load for task in summary.tasks.values() if task.load), ""):
        console.print(f"{'load':<9} {load}", soft_wrap=True, markup=False)


def print_sweep(folder: Path, jobs: Sequence[Job], *, as_json: bool) -> None:
    """Print one table of a sweep's runs, or their summaries as JSON."""
    if as_json:
        _print_json(jobs)
        return
    console = Console(highlight=False)
    console.print(comparison_table(jobs), "")
    console.print(f"{'results':<9} {folder}", soft_wrap=True, markup=False)


def _print_json(value: object) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
