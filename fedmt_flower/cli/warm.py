"""`fedmt warm`: a program of Flower's whose ClientApps start with their imports done."""

from __future__ import annotations

import argparse

from fedmt_flower.federation import warm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "fedmt warm -- flower-superexec|flower-supernode [ARGUMENT ...]"
    parser.set_defaults(program=[])


def run(arguments: argparse.Namespace) -> int:
    """Become the program."""
    warm.run(arguments.program)
