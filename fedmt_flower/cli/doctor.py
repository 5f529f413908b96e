"""`fedmt doctor`: what this machine has, and what is missing."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedmt_flower.device.backends.facts import doctor as gpu_facts


class Verdict(StrEnum):
    """What a finding means for a user."""

    GOOD = "good"
    NOTE = "note"
    PROBLEM = "problem"


_MARKS = {Verdict.GOOD: "[green]✓[/]", Verdict.NOTE: "[yellow]–[/]", Verdict.PROBLEM: "[red]✗[/]"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at: what was found and, unless that is good, what to do."""

    what: str
    found: str
    verdict: Verdict = Verdict.GOOD
    advice: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print what was found; 1 if anything is a problem."""
    facts = gpu_facts()
    findings = [*_host(), *_packages(), *_gpus(facts)]
    if arguments.json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings], "gpu": facts}, indent=2))
    else:
        _print(findings)
    return int(any(finding.verdict is Verdict.PROBLEM for finding in findings))


def _print(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for finding in findings:
        found = finding.found + (f"\n[dim]{finding.advice}[/]" if finding.advice else "")
        table.add_row(_MARKS[finding.verdict], f"[bold]{finding.what}[/]", found)
    Console(highlight=False).print(table)


def _host() -> Iterator[Finding]:
    good = sys.platform == "linux"
    yield Finding(
        what="system",
        found=platform.platform(terse=True),
        verdict=Verdict.GOOD if good else Verdict.PROBLEM,
        advice="" if good else "engines need Linux; device=inline runs elsewhere",
    )
    yield Finding(what="python", found=platform.python_version())
    cores = len(os.sched_getaffinity(0)) if good else os.cpu_count() or 1
    yield Finding(
        what="cores",
        found=f"{cores} for this process",
        verdict=Verdict.GOOD if cores > 1 else Verdict.NOTE,
        advice="" if cores > 1 else "on one core every budget comes to one thread",
    )
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    yield Finding(
        what="disk",
        found=f"{free:.1f} GB free here",
        verdict=Verdict.GOOD if free > 1 else Verdict.PROBLEM,
        advice="" if free > 1 else "a run's folder needs room for each task's weights",
    )


def _packages() -> Iterator[Finding]:
    for name in ("fedmt_flower", "flwr", "torch", "torchvision"):
        yield Finding(what=name, found=version(name))
    ray = _installed("ray")
    yield Finding(
        what="ray",
        found=version("ray") if ray else "not installed",
        verdict=Verdict.GOOD if ray else Verdict.NOTE,
        advice=""
        if ray
        else "`fedmt sim` needs it: pip install 'fedmt_flower[simulation]'; a SuperNode does not",
    )
    if importlib.util.find_spec("xgboost") is None:
        yield Finding(
            what="xgboost",
            found="not installed",
            verdict=Verdict.PROBLEM,
            advice="pip install xgboost-cpu",
        )
    if _installed("xgboost"):
        yield Finding(
            what="xgboost",
            found="the CUDA build",
            verdict=Verdict.PROBLEM,
            advice="its libnccl replaces torch's: pip uninstall xgboost nvidia-nccl-cu12, then reinstall "
            "torch and xgboost-cpu",
        )


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def _gpus(facts: dict[str, Any]) -> Iterator[Finding]:
    if not facts["gpus"]:
        yield Finding(what="GPU", found="none", verdict=Verdict.NOTE, advice=str(facts["gpu_problem"]))
    for card in facts["gpus"]:
        yield Finding(
            what=f"GPU {card['index']}",
            found=f"{card['name']}, {card['memory_gb']} GB, {card['multiprocessors']} SMs, "
            f"driver {card['driver']} (CUDA {card['cuda']})",
        )
        enforced = str(card["budgets"]).startswith("enforced")
        yield Finding(
            what="  budgets",
            found="enforced by MPS" if enforced else "not enforced",
            verdict=Verdict.GOOD if enforced else Verdict.NOTE,
            advice="" if enforced else str(card["budgets"]),
        )
