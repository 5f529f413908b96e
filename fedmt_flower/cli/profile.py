"""`fedmt profile`: measure tasks on their device, alone and together."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from fedmt_flower.bench.mixes import BATCH, ZOO, fast_step, synthetic_task
from fedmt_flower.bench.result import installed, this_machine
from fedmt_flower.cli.tables import plural
from fedmt_flower.device.backends import chosen, make_backend
from fedmt_flower.device.profile.measurement import Window
from fedmt_flower.device.profile.profiler import Profiler
from fedmt_flower.device.profile.samples import Missing, Rates, SamplesFile
from fedmt_flower.device.profile.survey import Step, Subject, Survey, profile_of
from fedmt_flower.domain.device import Backend, DeviceSettings
from fedmt_flower.domain.task import Scalar, Task, TaskKind
from fedmt_flower.errors import ConfigError

if TYPE_CHECKING:
    from fedmt_flower.federation.settings import Settings

_PAPER_BATCHES = (32, 64, 128, 256)
_QUICK_BATCHES = (4, 8)
_QUICK = Window(settle_s=0.02, length_s=0.1, longest_s=1.0)
_DEFAULT_BATCH = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="Hydra overrides as of `fedmt sim`: which tasks, on which device",
    )
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("profile.jsonl"), help="file of samples (default: %(default)s)"
    )
    parser.add_argument(
        "--budget-s", type=float, default=300.0, help="begin no sample after so many seconds (default: 300)"
    )
    parser.add_argument("--samples", type=int, metavar="N", help="end when the file has N samples")
    parser.add_argument(
        "--batches",
        help="batch sizes of every task, such as 32,64,128 (default: half its own, its own, and twice)",
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the settings (default: 0)")
    parser.add_argument(
        "--fresh", action="store_true", help="begin the file anew instead of going on with what it has"
    )
    parser.add_argument(
        "--paper",
        action="store_true",
        help="measure the paper's models on synthetic images in place of the configured tasks",
    )
    parser.add_argument(
        "--fast",
        action="store_true",
        help="with --paper: the fastest steps in place of ordinary ones (captured, bfloat16, channels last)",
    )
    parser.add_argument("--quick", action="store_true", help="short windows, small networks: a try")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from fedmt_flower.federation.compose import compose

    if arguments.fast and not arguments.paper:
        raise ConfigError(
            "--fast: got no --paper, whose models alone it concerns; add --paper, or say how your tasks are "
            "to take their steps, such as +tasks.NAME.parameters.step=graph"
        )
    settings = compose(arguments.overrides)
    if settings.device.backend is Backend.INLINE:
        raise ConfigError("device inline: tasks that share no device cannot be profiled; take cpu or mps")
    console = Console(stderr=True, highlight=False)
    if arguments.paper:
        subjects = _paper(arguments.quick, fast_step(chosen(settings.device)) if arguments.fast else {})
    else:
        subjects = _configured(settings, _batch_sizes(arguments.batches), console)
    with tempfile.TemporaryDirectory(prefix="fedmt-") as directory:
        backend = make_backend(settings.device, Path(directory))
        window = _QUICK if arguments.quick else Window()
        with Profiler(
            backend, settings.device.index, Path(directory) / "workers", window=window, hertz=10.0
        ) as profiler:
            profile = profile_of(subjects, backend, arguments.seed, _origin(settings.device))
            file = SamplesFile(arguments.out, profile, resume=not arguments.fresh)
            survey = Survey(profiler, subjects, file)
            _survey(survey, file, arguments, console)
    _tell(file, as_json=arguments.json)
    return 0


def _configured(settings: Settings, batches: Sequence[int], console: Console) -> tuple[Subject, ...]:
    """The configured tasks whose steps the package takes; the others are named on the console."""
    whole = [task.name for task in settings.tasks if task.kind is TaskKind.WHOLE_CALL]
    stepped = [task for task in settings.tasks if task.kind is TaskKind.STEPPED]
    if whole:
        console.print(f"left out: {', '.join(whole)} (whole-call: their own train has no steps to measure)")
    if not stepped:
        raise ConfigError("profile: no task is stepped, so none can be measured; see the docs on trainers")
    # What Flower would tell the first site.
    site = {"partition-id": 0, "num-partitions": settings.federation.sites}
    return tuple(_subject(replace(task, parameters={**site, **task.parameters}), batches) for task in stepped)


def _subject(task: Task, batches: Sequence[int]) -> Subject:
    own = int(task.parameters.get("batch_size", _DEFAULT_BATCH))
    return Subject(task=task, reference=own, batches=tuple(batches) or (max(1, own // 2), own, 2 * own))


def _paper(quick: bool, step: Mapping[str, Scalar]) -> tuple[Subject, ...]:
    batches = _QUICK_BATCHES if quick else _PAPER_BATCHES
    reference = _QUICK_BATCHES[-1] if quick else BATCH
    # One size of the data for all batch sizes, so that a step is all that differs.
    return tuple(
        Subject(task=synthetic_task(name, reference, quick, **step), reference=reference, batches=batches)
        for name in ZOO
    )


def _batch_sizes(text: str | None) -> tuple[int, ...]:
    try:
        sizes = tuple(int(word) for word in text.split(",")) if text else ()
    except ValueError:
        sizes = (0,)
    if any(size < 1 for size in sizes):
        raise ConfigError(f"--batches: got {text!r}, expected whole numbers above 0 with commas between them")
    return sizes


def _origin(settings: DeviceSettings) -> dict[str, str]:
    machine = this_machine(settings.index if chosen(settings) is Backend.MPS else None)
    return {
        "gpu": machine.gpu,
        "driver": machine.driver,
        "cpus": str(machine.cpus),
        "system": machine.system,
        "versions": ", ".join(f"{name} {version}" for name, version in installed().items()),
        "command": f"fedmt {shlex.join(sys.argv[1:])}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _survey(survey: Survey, file: SamplesFile, arguments: argparse.Namespace, console: Console) -> None:
    began = time.monotonic()
    before = file.settings
    if before:
        console.print(f"going on with {plural(before, 'sample')} in {file.path}")
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        bar = progress.add_task("starting", total=1.0)

        def tell(step: Step) -> None:
            spent = (time.monotonic() - began) / arguments.budget_s
            taken = (
                (step.settings - before) / max(1, arguments.samples - before) if arguments.samples else 0.0
            )
            progress.update(
                bar,
                completed=min(1.0, max(spent, taken)),
                description=f"{plural(step.settings, 'sample')}, {step.doing}",
            )

        survey.run(began + arguments.budget_s, tell, most=arguments.samples)


def _tell(file: SamplesFile, *, as_json: bool) -> None:
    rates = [entry for entry in file.entries if isinstance(entry, Rates)]
    missing = [entry for entry in file.entries if isinstance(entry, Missing)]
    sets = len({frozenset(entry.tasks) for entry in rates})
    again = sum(len(entry.spoiled) for entry in rates)
    if as_json:
        counts = {"samples": len(rates), "sets": sets, "taken_again": again, "missing": len(missing)}
        print(json.dumps({"file": str(file.path), **counts, "seconds": round(file.seconds, 1)}))
        return
    console = Console(highlight=False)
    console.print(
        f"{plural(len(rates), 'sample')} of {plural(sets, 'set')} of tasks in {file.path}; "
        f"{again} taken again, {len(missing)} could not be taken",
        soft_wrap=True,
    )
    for entry in missing[:3]:
        console.print(f"  {' + '.join(entry.tasks)}: {entry.why}", soft_wrap=True, markup=False)
    console.print(f"next: fedmt fit {shlex.quote(str(file.path))}", soft_wrap=True)
