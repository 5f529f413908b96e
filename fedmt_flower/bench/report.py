"""The tables of the documents, made from the records of benchmarks and from nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from fedmt_flower.bench.driver import DRIVERS, Comparing, load_driver
from fedmt_flower.bench.result import Bar, Result, load

DOCUMENTS = (Path("README.md"), Path("docs/benchmarks.md"))
"""Where tables stand, each between ``<!-- bench: NAME KIND -->`` and ``<!-- /bench -->``.

With ``KIND+KIND`` the records of two kinds of device are compared.
"""

_MARKED = re.compile(
    r"(?P<start><!-- bench: (?P<name>[\w-]+) (?P<kinds>[\w+-]+) -->\n).*?(?P<end><!-- /bench -->)", re.DOTALL
)


def tables(result: Result) -> str:
    """The tables of one record, in Markdown; empty if it is not a driver's but a test's."""
    return load_driver(result.name).report(result) if result.name in DRIVERS else ""


def comparison(results: Sequence[Result]) -> str:
    """What the records of one benchmark on two kinds of device come to side by side, in Markdown."""
    driver = cast(Comparing, load_driver(results[0].name))
    table, found = driver.compare(results)
    return "\n\n".join(part for part in (table, goals(found)) if part)


def goals(bars: Sequence[Bar]) -> str:
    """Goals and what was reached, in Markdown; empty if there are none."""
    if not bars:
        return ""
    lines = ["| goal | asked | measured | 95 % | met |", "|---|---:|---:|---|---|"]
    for bar in bars:
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
    return "\n\n".join(part for part in (tables(result), image, goals(result.bars), source) if part)


def filled(text: str, results: Path, folder: Path) -> str:
    """`text`, of a document in `folder`, with every marked place filled from the records under `results`."""

    def fill(match: re.Match[str]) -> str:
        name, kinds = match["name"], match["kinds"].split("+")
        records = [results / kind / f"{name}.json" for kind in kinds]
        if missing := [kind for kind, record in zip(kinds, records, strict=True) if not record.exists()]:
            where = f" on both, {' and '.join(missing)} missing" if len(kinds) > 1 else ""
            content = f"Not measured yet{where}: run `fedmt bench {name}`."
        elif len(kinds) > 1:
            content = comparison([load(record) for record in records])
        else:
            png = records[0].with_suffix(".png")
            picture = Path(os.path.relpath(png, folder)).as_posix() if png.exists() else ""
            content = block(load(records[0]), picture)
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
