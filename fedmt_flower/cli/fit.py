"""`fedmt fit`: a throughput model from the samples of a profile."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fedmt_flower.cli.tables import plural
from fedmt_flower.device.profile.samples import read_samples
from fedmt_flower.domain.profile import CoRunSample
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning import evaluation
from fedmt_flower.planning.alternatives import BOOSTED, SPLITS, fits
from fedmt_flower.planning.workload import Workload, fit_workload, step_times
from fedmt_flower.planning.xgboost_model import XGBoostModel, fit_xgboost

_SHOWN_FEATURES = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("samples", nargs="+", type=Path, metavar="SAMPLES", help="files of `fedmt profile`")
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("model.json"), help="the model (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="CPUs to use (default: all there are)"
    )
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a fit came to.

    Parameters
    ----------
    samples
        How many it rests on.
    errors
        Hold-out MAPE by split and kind of model, as fractions.
    noise
        MAPE of a measurement taken again; None if none was.
    workloads
        Eq. 3, by device.
    importance
        Share of the gain by feature.
    """

    samples: int
    errors: Mapping[str, Mapping[str, float]]
    noise: float | None
    workloads: Mapping[str, Workload] = field(default_factory=dict)
    importance: Mapping[str, float] = field(default_factory=dict)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    samples = [sample for path in arguments.samples for sample in read_samples(path)]
    if not samples:
        names = ", ".join(map(str, arguments.samples))
        raise ConfigError(f"{names}: no task was measured alone yet; let fedmt profile go on")
    errors = hold_out_errors(samples, arguments.threads)
    card = {split: of[BOOSTED] for split, of in errors.items()}
    model = fit_xgboost(samples, errors=card, threads=arguments.threads)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(model.to_text())
    found = _findings(samples, errors, model)
    if arguments.json:
        print(json.dumps({"model": str(arguments.out), **asdict(found)}))
    else:
        _show(found, arguments.out)
    return 0


def hold_out_errors(samples: Sequence[CoRunSample], threads: int) -> dict[str, dict[str, float]]:
    """MAPE on samples that were held out, by split and kind of model; splits that there are none of aside."""
    kinds = fits(threads)
    errors: dict[str, dict[str, float]] = {}
    for split, splitter in SPLITS.items():
        parts = [(training, held_out) for _, training, held_out in splitter(samples)]
        if any(training and any(len(s.tasks) > 1 for s in held_out) for training, held_out in parts):
            errors[split] = {
                kind: evaluation.hold_out_score(fit, samples, splitter).mape for kind, fit in kinds.items()
            }
    return errors


def _findings(
    samples: Sequence[CoRunSample], errors: Mapping[str, Mapping[str, float]], model: XGBoostModel
) -> Findings:
    workloads = {}
    for device in sorted({sample.device.name for sample in samples}):
        steps = step_times(sample for sample in samples if sample.device.name == device)
        if len(steps) >= 3:
            workloads[device] = fit_workload(steps)
    return Findings(
        samples=len(samples),
        errors=errors,
        noise=evaluation.noise(samples),
        workloads=workloads,
        importance=model.importance(),
    )


def _show(found: Findings, out: Path) -> None:
    console = Console(highlight=False)
    console.print(f"fitted to {plural(found.samples, 'sample')}; mean error of rates that were held out:")
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("model", style="bold")
    for split in found.errors:
        table.add_column(split, justify="right")
    for kind in next(iter(found.errors.values()), {}):
        table.add_row(kind, *(f"{of[kind]:.1%}" for of in found.errors.values()))
    console.print(table)
    if found.noise is not None:
        console.print(f"a measurement taken again differs by {found.noise:.1%}")
    for device, workload in found.workloads.items():
        console.print(
            f"Eq. 3 on {device}: α {workload.alpha:.3g} s/FLOP, β {workload.beta:.3g} s/byte, "
            f"{1e3 * workload.overhead_s:.2g} ms a step; mean error {workload.error:.1%}",
            soft_wrap=True,
        )
    shares = [f"{name} {share:.0%}" for name, share in list(found.importance.items())[:_SHOWN_FEATURES]]
    console.print(f"what the trees go by: {', '.join(shares)}", soft_wrap=True)
    console.print(f"wrote {out}", soft_wrap=True)
