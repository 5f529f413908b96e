"""`fedmt sim`: a federation on this machine."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedmt_flower.cli.show import draw_timeline, print_comparison, print_run
from fedmt_flower.errors import FedMTError
from fedmt_flower.federation.record import Outcome, Summary
from fedmt_flower.federation.run_folder import LOG, SUMMARY

if TYPE_CHECKING:
    from fedmt_flower.domain.history import FederationRound
    from fedmt_flower.federation.settings import Settings

_AT_HOME = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
"""A simulation tells nobody of itself, unless the user asks for it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="Hydra overrides, such as allocation=temporal or federation.rounds=5",
    )
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="a run for each combination of values with commas"
    )
    parser.add_argument(
        "--config-dir", type=Path, metavar="DIR", help="a directory of your own groups, such as DIR/tasks/"
    )
    parser.add_argument("--print-config", action="store_true", help="print the configuration and run nothing")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Run the federation, or each one of a sweep; 1 if anything of it failed."""
    from fedmt_flower.federation.compose import compose

    overrides = list(arguments.overrides)
    if arguments.config_dir:
        overrides.insert(0, f"hydra.searchpath=['file://{arguments.config_dir.absolute()}']")
    if arguments.multirun:
        return _sweep(overrides)
    settings = compose(overrides)
    if arguments.print_config:
        sys.stdout.write(settings.text)
        return 0
    summary = _simulate(settings)
    if arguments.json:
        sys.stdout.write((settings.folder / SUMMARY).read_text())
    else:
        print_run(settings.folder, summary)
    return _verdict({"": summary})


def _sweep(overrides: list[str]) -> int:
    from fedmt_flower.federation.compose import compose, expand

    combinations = expand(overrides)
    folder = compose(combinations[0]).folder
    jobs: dict[str, Settings] = {}
    for index, words in enumerate(combinations):
        own = [word for word in words if not all(word in others for others in combinations)]
        label = " ".join(own)
        name = f"{index}_{'_'.join(own)}".replace("/", "-")
        jobs[label] = compose([*words, f"folder='{folder / name}'"])
    results: dict[str, Summary | str] = {}
    for index, (label, settings) in enumerate(jobs.items()):
        print(f"[{index + 1}/{len(jobs)}] {label}", file=sys.stderr)
        try:
            results[label] = _simulate(settings)
        except FedMTError as error:
            results[label] = str(error)
    print_comparison(results)
    print(f"results   {folder}")
    return _verdict(results)


def _simulate(settings: Settings) -> Summary:
    """Run one federation with its progress on the terminal, and write all of its folder."""
    os.environ.update({key: value for key, value in _AT_HOME.items() if key not in os.environ})
    from fedmt_flower.cli.live import Live
    from fedmt_flower.federation.recorder import Recorder
    from fedmt_flower.federation.simulation import simulate

    recorder = Recorder(settings)
    try:
        with Live(settings) as live:

            def on_round(done: FederationRound) -> None:
                recorder.on_round(done)
                live.on_round(done)

            weights = simulate(settings, recorder.folder.path / LOG, on_round)
        summary = recorder.finish(weights)
    except KeyboardInterrupt:
        recorder.give_up(Outcome.INTERRUPTED, "interrupted")
        raise
    except Exception as error:
        recorder.give_up(Outcome.FAILED, str(error))
        raise
    draw_timeline(recorder.folder)
    return summary


def _verdict(results: Mapping[str, Summary | str]) -> int:
    """Say on stderr what failed, a line for each; the exit code."""
    lines = []
    for label, result in results.items():
        where = f"{label}: " if label else ""
        if isinstance(result, str):
            lines.append(f"{where}{result}")
        else:
            for name, task in result.tasks.items():
                if task.failures:
                    count = len(task.failures)
                    updates = "an update was" if count == 1 else f"{count} updates were"
                    lines.append(f"{where}task {name}: {updates} left out; {task.failures[0]}")
    for line in lines:
        print(f"fedmt: {line}", file=sys.stderr)
    return int(bool(lines))
