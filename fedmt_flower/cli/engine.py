"""`fedmt engine status|logs|metrics|stop`: the engines of this host."""

from __future__ import annotations

import argparse
import sys

import msgspec

from fedmt_flower.device.engine.connection import running
from fedmt_flower.device.engine.home import Home, homes
from fedmt_flower.device.ipc.frames import EngineStatus
from fedmt_flower.errors import EngineError, expected_one_of

_LINES = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("action", choices=("status", "logs", "metrics", "stop"))
    parser.add_argument("device", nargs="?", help="one device's engine, such as cpu or gpu0; all if left out")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Ask, show or stop the engines of this user on this host."""
    known = {home.device: home for home in homes()}
    if arguments.device and arguments.device not in known:
        expected = expected_one_of(arguments.device, known) if known else "no engine has run here yet"
        raise EngineError(f"there is no engine of {arguments.device!r}; {expected}")
    chosen = [home for home in known.values() if arguments.device in (None, home.device)]
    actions = {"status": _status, "logs": _logs, "metrics": _metrics, "stop": _stop}
    actions[arguments.action](chosen, arguments.json)
    return 0


def _status(chosen: list[Home], as_json: bool) -> None:
    devices = {home.device for home in chosen}
    statuses = [engine.status() for engine in running() if engine.home.device in devices]
    if as_json:
        _print_json(statuses)
    elif not statuses:
        print("no engine is running")
    else:
        for status in statuses:
            _print_status(status)


def _print_status(status: EngineStatus) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    sites = ", ".join(f"{site} ({rounds})" for site, rounds in status.sites.items()) or "none yet"
    waiting = f"; waiting: {', '.join(status.queue)}" if status.queue else ""
    console.print(
        f"[bold]{status.device}[/]  {status.backend}, pid {status.pid}, up {status.uptime_s:.0f} s, "
        f"fedmt_flower {status.version}\nrounds by site: {sites}{waiting}"
    )
    if not status.workers:
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    table.add_column("task", style="bold")
    for heading in ("pid", "budget", "level", "rounds"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for worker in status.workers:
        busy = "busy" if worker.busy else "idle"
        numbers = (str(worker.pid), f"{worker.budget:g} %", str(worker.level), str(worker.rounds))
        table.add_row(worker.task, *numbers, busy)
    console.print(table)


def _logs(chosen: list[Home], as_json: bool) -> None:
    tails = {home.device: home.log_tail(_LINES) for home in chosen}
    if as_json:
        _print_json(tails)
        return
    for home in chosen:
        print(f"==> {home.log}\n{tails[home.device]}")
        for log in sorted(home.workers.glob("*.log")):
            if text := log.read_text(errors="replace").strip():
                print(f"==> {log}\n{text}")
    if not chosen:
        print("no engine has run here yet")


def _metrics(chosen: list[Home], as_json: bool) -> None:
    devices = {home.device for home in chosen}
    texts = {e.home.device: e.metrics() for e in running() if e.home.device in devices}
    if as_json:
        _print_json(texts)
        return
    from fedmt_flower.device.engine.monitor import merge

    sys.stdout.write(merge(texts.values()))


def _stop(chosen: list[Home], as_json: bool) -> None:
    devices = {home.device for home in chosen}
    stopped = [engine for engine in running() if engine.home.device in devices]
    for engine in stopped:
        engine.stop()
    if as_json:
        _print_json([{"device": engine.home.device, "pid": engine.pid} for engine in stopped])
    elif not stopped:
        print("no engine is running")
    else:
        for engine in stopped:
            print(f"stopped the engine of {engine.home.device}, pid {engine.pid}")


def _print_json(value: object) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
