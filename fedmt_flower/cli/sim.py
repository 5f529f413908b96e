"""`fedmt sim`: a federation on this machine."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedmt_flower.cli.show import draw_timeline, print_run, print_sweep
from fedmt_flower.cli.tables import Job, plural
from fedmt_flower.errors import FedMTError
from fedmt_flower.federation.record import Outcome, Summary
from fedmt_flower.federation.run_folder import LOG, SweepFolder

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
    # Flower looks at these once, when it is first imported.
    os.environ.update({key: value for key, value in _AT_HOME.items() if key not in os.environ})
    from fedmt_flower.federation.compose import compose

    overrides = list(arguments.overrides)
    if arguments.config_dir:
        overrides.insert(0, f"hydra.searchpath=['file://{arguments.config_dir.absolute()}']")
    if arguments.multirun:
        return _sweep(overrides, as_json=arguments.json)
    settings = compose(overrides)
    if arguments.print_config:
        sys.stdout.write(settings.text)
        return 0
    summary = _simulate(settings)
    print_run(settings.folder, summary, as_json=arguments.json)
    return _verdict([Job(choices={}, summary=summary)])


def _sweep(overrides: list[str], *, as_json: bool) -> int:
    from fedmt_flower.federation.compose import compose, expand

    combinations = expand(overrides)
    first = compose(combinations[0])
    folder, checkpoint = first.folder, first.federation.checkpoint
    swept: dict[str, tuple[dict[str, str], Settings]] = {}
    for index, words in enumerate(combinations):
        own = [word for word in words if not all(word in others for others in combinations)]
        name = "_".join([str(index), *own]).replace("/", "-")
        choices = dict(word.lstrip("+").split("=", 1) for word in own)
        places = [f"folder='{folder / name}'"]
        if checkpoint:
            places.append(f"federation.checkpoint='{Path(checkpoint) / name}'")
        swept[name] = choices, compose([*words, *places])
    sweep_folder = SweepFolder.create(folder, {name: choices for name, (choices, _) in swept.items()})
    jobs = []
    for number, (choices, settings) in enumerate(swept.values(), start=1):
        job = Job(choices=choices)
        print(f"[{number}/{len(swept)}] {job}", file=sys.stderr)
        try:
            jobs.append(replace(job, summary=_simulate(settings)))
        except FedMTError as error:
            jobs.append(replace(job, error=str(error)))
    print_sweep(sweep_folder.path, jobs, as_json=as_json)
    return _verdict(jobs)


def _simulate(settings: Settings) -> Summary:
    """Run one federation with its progress on the terminal, and write all of its folder."""
    from fedmt_flower.cli.live import Live
    from fedmt_flower.federation.recorder import Recorder
    from fedmt_flower.federation.running import initial_models
    from fedmt_flower.federation.simulation import simulate

    initial = initial_models(settings)
    recorder = Recorder(settings)
    try:
        with Live(settings) as live:

            def on_round(done: FederationRound) -> None:
                recorder.on_round(done)
                live.on_round(done)

            weights = simulate(settings, initial, recorder.folder.path / LOG, on_round, live.on_status)
        summary = recorder.finish(weights)
    except KeyboardInterrupt:
        recorder.give_up(Outcome.INTERRUPTED, "interrupted")
        raise
    except Exception as error:
        recorder.give_up(Outcome.FAILED, str(error))
        raise
    draw_timeline(recorder.folder)
    return summary


def _verdict(jobs: Sequence[Job]) -> int:
    """Say on stderr what failed, a line for each; the exit code."""
    lines = []
    for job in jobs:
        where = f"{job}: " if job.choices else ""
        if job.error:
            lines.append(f"{where}{job.error}")
        for name, task in job.summary.tasks.items() if job.summary else ():
            if count := len(task.failures):
                lines.append(f"{where}task {name}: {plural(count, 'failure')}, the first: {task.failures[0]}")
    for line in lines:
        print(f"fedmt: {line}", file=sys.stderr)
    return int(bool(lines))
