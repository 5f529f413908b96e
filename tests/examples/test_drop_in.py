"""What it takes to make one federation of several ordinary apps, and that the guide tells it as it is."""

from __future__ import annotations

import difflib
import itertools
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
GUIDE = ROOT / "docs" / "drop-in.md"
JOINED = {"hospital": ("digits", "cells"), "clinic": ("wine", "cells")}
FILES = ("client_app.py", "server_app.py")
CHANGED_LINES_EACH = 15


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def original(app: str, file: str) -> Path:
    return EXAMPLES / "apps" / app / app / file


def diff(app: str, joined: str, file: str) -> list[str]:
    before, after = original(app, file), EXAMPLES / joined / joined / file
    old, new = (str(path.relative_to(EXAMPLES)) for path in (before, after))
    return list(difflib.unified_diff(lines(before), lines(after), old, new, n=1, lineterm=""))


def written(joined: str, file: str) -> list[str]:
    """The lines of a joined app's file that stand in the file of none of the apps that it is made of."""
    apps = JOINED[joined]
    new = [{line[1:] for line in diff(app, joined, file)[2:] if line.startswith("+")} for app in apps]
    return [line for line in set.intersection(*new) if line.strip()]


@pytest.mark.parametrize(
    ("joined", "app"), [(joined, app) for joined, apps in JOINED.items() for app in apps]
)
def test_model_data_and_training_are_taken_over_unchanged(joined: str, app: str) -> None:
    taken = EXAMPLES / joined / app
    for path in taken.glob("*.py"):
        assert path.read_bytes() == original(app, path.name).read_bytes()
    assert (taken / "task.py").is_file()


@pytest.mark.parametrize("joined", JOINED)
def test_few_lines_join_the_apps(joined: str) -> None:
    changed = list(itertools.chain.from_iterable(written(joined, file) for file in FILES))
    assert 0 < len(changed) <= CHANGED_LINES_EACH, "\n".join(changed)


@pytest.mark.parametrize(
    ("joined", "app", "file"),
    [
        ("hospital", "digits", "client_app.py"),
        ("hospital", "digits", "server_app.py"),
        ("clinic", "wine", "client_app.py"),
    ],
)
def test_the_guide_shows_the_change_as_it_is(joined: str, app: str, file: str) -> None:
    block = "\n".join(["```diff", *diff(app, joined, file), "```"])
    assert block in GUIDE.read_text(), f"docs/drop-in.md should have:\n{block}"


def test_the_guide_gives_the_true_numbers() -> None:
    counts = {joined: [len(written(joined, file)) for file in FILES] for joined in JOINED}
    for joined, (client, server) in counts.items():
        assert f"`{joined}`: {client} in the client, {server} in the server" in GUIDE.read_text()
