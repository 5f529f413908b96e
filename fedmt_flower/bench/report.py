"""The tables of the documents, made from the records of benchmarks and from nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from fedmt_flower.bench.driver import DRIVERS, load_driver
from fedmt_flower.bench.result import Result, load

DOCUMENTS = (Path("README.md"), Path("docs/benchmarks.md"))
"""Where tables stand, each between ``<!-- bench: NAME KIND -->`` and ``<!-- /bench -->``."""

_MARKED = re.compile(
    r"(?P<start><!-- bench: (?P<name>[\w-]+) (?P<kind>[\w-]+) -->\n).*?(?P<end><!-- /bench -->)", re.DOTALL
)


def tables(result: Result) -> str:
    """The tables of one record, in Markdown; empty if it is not a driver's but a test's."""
    return load_driver(result.name).report(result) if result.name in DRIVERS else ""


def bars(result: Result) -> str:
    """The goals of one record and what was reached, in Markdown; empty if it has none."""
    if not result.bars:
        return ""
    lines = ["| goal | asked | measured | 95 % | met |", "|---|---:|---:|---|---|"]
    for bar in result.bars:
        low, high = ("–" if bound is None else f"{bound:.4g}" for bound in bar.ci95)
        met = "yes" if bar.met else "**no**"
        lines.append(f"| {bar.name} | {bar.goal:.4g} | {bar.value:.4g} | {low} to {high} | {met} |")
    return "\n".join(lines)


def block(result: Result, picture: str = "") -> str:
    """What stands in a document for one record.

    Its tables, its picture (a path as seen from the document, or none), its bars and where they come from.
    """
    state = "" if result.complete else " Not complete: its time was up before every repeat was taken."
    source = (
        f"`{result.command}` on {result.machine.gpu or 'CPUs'}, {result.date[:10]}, {result.seconds:.0f} s; "
        f"raw data in `benchmarks/results/{result.machine.kind}/{result.name}.json`.{state}"
    )
    image = f"![{DRIVERS[result.name]}]({picture})" if picture else ""
    return "\n\n".join(part for part in (tables(result), image, bars(result), source) if part)


def filled(text: str, results: Path, folder: Path) -> str:
    """`text`, of a document in `folder`, with every marked place filled from the records under `results`."""

    def fill(match: re.Match[str]) -> str:
        record = results / match["kind"] / f"{match['name']}.json"
        content = f"Not measured yet: run `fedmt bench {match['name']}`."
        if record.exists():
            png = record.with_suffix(".png")
            picture = Path(os.path.relpath(png, folder)).as_posix() if png.exists() else ""
            content = block(load(record), picture)
        return f"{match['start']}{content}\n{match['end']}"

    return _MARKED.sub(fill, text)


def write(results: Path, root: Path = Path()) -> Iterator[Path]:
    """Fill the documents under `root`; those that have changed."""
    for document in DOCUMENTS:
        path = root / document
        if not path.exists():
            continue
        before = path.read_text()
        after = filled(before, results, path.parent)
        if after != before:
            path.write_text(after)
            yield path
