"""`fedmt bench`: measure one of the package's claims or all of them, and write the tables of the results."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from fedmt_flower.bench import report
from fedmt_flower.bench.bench import Options
from fedmt_flower.bench.driver import BUDGETS_S, DRIVERS, HOST, load_driver, measure
from fedmt_flower.bench.result import Result
from fedmt_flower.device.backends import facts
from fedmt_flower.domain.device import Backend
from fedmt_flower.errors import ConfigError

_LEAST_S = 15.0
"""Below this a benchmark would only warm up."""
_GRACE_S = 30.0
"""Beyond a benchmark's own budget: its start, its last sample and its end."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    names = "; ".join(f"{name}: {claim}" for name, claim in DRIVERS.items())
    parser.add_argument(
        "names",
        metavar="NAME",
        nargs="+",
        help=f"{names}; all: every one, in this order; report: write the documents' tables of the results",
    )
    parser.add_argument(
        "--budget-s", type=float, help="begin no sample after so many seconds (default: the benchmark's own)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("benchmarks/results"),
        help="the results' folder (default: %(default)s)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the samples that a stopped run left"
    )
    parser.add_argument(
        "--device", choices=["auto", "mps", "cpu"], default="auto", help="auto: mps where there is a GPU"
    )
    parser.add_argument("--index", type=int, default=0, help="which GPU, as NVML counts")
    parser.add_argument("--model", type=Path, metavar="FILE", help="of fedmt fit: the model that plans")
    parser.add_argument(
        "--profile",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        dest="profiles",
        help="of fedmt profile, for benchmarks that fit models themselves; may be given again",
    )
    parser.add_argument("--quick", action="store_true", help="small networks, to try a benchmark anywhere")
    parser.add_argument("--json", action="store_true", help="print the record")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; 1 if one of several benchmarks failed."""
    names = list(DRIVERS) if arguments.names == ["all"] else arguments.names
    if names == ["report"]:
        for path in report.write(arguments.out):
            Console().print(f"wrote {path}", highlight=False)
        return 0
    for name in names:
        load_driver(name)
    backend = Backend.CPU if HOST.issuperset(names) else _backend(arguments.device)
    if len(names) > 1:
        return _each(names, arguments, backend)
    options = Options(
        backend=backend,
        index=arguments.index,
        quick=arguments.quick,
        out=arguments.out,
        budget_s=arguments.budget_s or BUDGETS_S[names[0]],
        resume=arguments.resume,
        command=f"fedmt {shlex.join(sys.argv[1:])}",
        model=arguments.model,
        profiles=tuple(arguments.profiles),
    )
    console = Console(stderr=True)
    result = measure(names[0], options, lambda line: console.print(line, highlight=False))
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    else:
        _show(result)
    return 0


def _show(result: Result) -> None:
    console = Console()
    console.print(report.tables(result), highlight=False, markup=False, soft_wrap=True)
    table = Table("bar", "goal", "value", "95 %", "met")
    for bar in result.bars:
        low, high = ("" if bound is None else f"{bound:.4g}" for bound in bar.ci95)
        table.add_row(
            bar.name, f"{bar.goal:.4g}", f"{bar.value:.4g}", f"{low} … {high}", "yes" if bar.met else "NO"
        )
    if result.bars:
        console.print(table)
    state = "complete" if result.complete else "not complete: run again with --resume"
    console.print(f"{result.name}: {state}, {result.seconds:.0f} s", highlight=False)


def _each(names: Sequence[str], arguments: argparse.Namespace, backend: Backend) -> int:
    """Each benchmark in a process of its own: one that hangs or dies must not take the others with it."""
    budget_s = arguments.budget_s or sum(BUDGETS_S[name] for name in names)
    deadline = time.monotonic() + budget_s
    console = Console()
    failed = []
    for name in names:
        left = deadline - time.monotonic()
        if left < _LEAST_S:
            console.print(f"{name}: no time left", highlight=False)
            continue
        own = min(BUDGETS_S[name], left)
        command = [sys.executable, "-m", "fedmt_flower", "bench", name, "--budget-s", f"{own:.0f}"]
        command += ["--out", str(arguments.out), "--device", backend, "--index", str(arguments.index)]
        command += ["--model", str(arguments.model)] if arguments.model else []
        command += [word for path in arguments.profiles for word in ("--profile", str(path))]
        command += [flag for flag in ("--resume", "--quick") if getattr(arguments, flag[2:])]
        began = time.monotonic()
        try:
            code = subprocess.run(command, timeout=own + _GRACE_S, check=False).returncode
        except subprocess.TimeoutExpired:
            code = -1
            console.print(f"{name}: given up after {own + _GRACE_S:.0f} s", highlight=False)
        console.print(f"{name}: exit code {code} after {time.monotonic() - began:.0f} s", highlight=False)
        if code:
            failed.append(name)
    if failed:
        console.print(f"failed: {', '.join(failed)}", highlight=False)
    return 1 if failed else 0


def _backend(device: str) -> Backend:
    if device == "cpu":
        return Backend.CPU
    if device == "auto" and not facts.gpu_count():
        raise ConfigError("no NVIDIA GPU here; a benchmark can be tried with --device cpu --quick")
    return Backend.MPS
