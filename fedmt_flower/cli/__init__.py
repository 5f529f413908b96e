"""The command line: `fedmt`, also `python -m fedmt_flower`.

A command is a module of this package with `add_arguments(parser)` and `run(arguments) -> int`, named in
`COMMANDS`. Only the module of the command that was asked for is imported. What stands after ``--`` is
another program's command line, for a command that has an argument `program`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from fedmt_flower.errors import ConfigError, FedMTError, expected_one_of

COMMANDS = {
    "sim": "train a federation of several tasks here, on Flower's simulation",
    "profile": "measure tasks on their device, alone and together",
    "fit": "make a throughput model of the samples of a profile",
    "plan": "show what a device would do in a round, and what that promises",
    "show": "show the results of a run",
    "engine": "the engines of this host: status, logs, metrics, stop",
    "warm": "run a SuperExec or a SuperNode whose ClientApps start with their imports done",
    "doctor": "check what this machine has and what is missing",
    "bench": "measure one of the package's claims",
}

_INTERRUPTED = 128 + signal.SIGINT


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Codes are 0, 1 for an error, 2 for a wrong call and 130 for an interrupt. An error is one line (each
    problem of a configuration is one) on stderr; the traceback comes with ``--debug`` or FEDMT_DEBUG=1.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words or os.environ.get("FEDMT_DEBUG", "") not in ("", "0")
    try:
        return _dispatch([word for word in words if word != "--debug"])
    except KeyboardInterrupt:
        _complain("interrupted")
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe went away; without this Python complains again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        for line in _lines(error):
            _complain(line)
        return 1


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    name, *rest = words
    if name == "--version":
        print(f"fedmt {version('fedmt_flower')}")
        return 0
    if name not in COMMANDS:
        _complain(f"unknown command {name!r}: {expected_one_of(name, COMMANDS)}")
        return 2
    module = importlib.import_module(f"{__name__}.{name}")
    parser = _Parser(prog=f"fedmt {name}", description=COMMANDS[name], epilog="--debug adds tracebacks.")
    module.add_arguments(parser)
    end = rest.index("--") if "--" in rest else len(rest)
    arguments = parser.parse_intermixed_args(rest[:end])
    if rest[end:]:
        if "program" not in arguments:
            parser.error("takes nothing after `--`")
        arguments.program = rest[end + 1 :]
    return int(module.run(arguments))


def _usage() -> str:
    commands = "\n".join(f"  {name:<8} {summary}" for name, summary in COMMANDS.items())
    return (
        "usage: fedmt COMMAND [ARGUMENT ...]\n\n"
        f"{commands}\n\n"
        "`fedmt COMMAND --help` explains a command; `fedmt --version` prints the version."
    )


def _lines(error: Exception) -> tuple[str, ...]:
    match error:
        case ConfigError():
            return tuple(map(_one_line, error.problems))
        case FedMTError() | OSError():
            return (_one_line(str(error)),)
        case _:
            name = type(error).__name__
            return (f"unexpected {name}: {_one_line(str(error))} (--debug shows where)",)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _complain(line: str) -> None:
    print(f"fedmt: {line}", file=sys.stderr)
