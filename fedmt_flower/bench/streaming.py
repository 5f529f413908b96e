"""The same round over a real network, by one message and by a SuperNode for each task: host only, as root.

A SuperLink and two sites are in network namespaces of their own, each site behind a link of the same rates.
One site is a single SuperNode, the other has one for each task. They train the same models in turn, a round
each, and what crosses their links is read off the devices.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from fedmt_flower.bench import freight
from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.deployment import Deployment, Node, deployed
from fedmt_flower.bench.namespaces import Meter, Network, Reading, inside, joined, unavailable
from fedmt_flower.bench.result import Bar, Json, Result
from fedmt_flower.device.engine.connection import connect
from fedmt_flower.domain.device import Backend, DeviceSettings
from fedmt_flower.domain.network import Link, Overlap, Volume
from fedmt_flower.domain.timeline import Phase
from fedmt_flower.errors import EngineError
from fedmt_flower.planning.rates import RateTable, states
from fedmt_flower.planning.simulator import Jobs, simulate

CLAIM = "over a real network a site streams its tasks' weights while others train, as its link allows"

_SITES: Final = ("one message", "streaming")
"""The sites, by what is to be seen of them; each is named as its first word, and asked in that order."""
_TOLERANCE: Final = 0.15
_PATIENCE_S: Final = 900.0
_POLLING: Final = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}
_EDGE: Final = 0.03
"""A transfer is taken from when this part of its bytes was over to when only this part was left: what
acknowledges a download is 1 % of its bytes, and goes up before the upload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """A round of a site: when its download, its upload and each task's training began and ended."""

    down: tuple[float, float]
    up: tuple[float, float]
    trained: dict[str, tuple[float, float]]


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with.

    A quick run has short downloads: a ClientApp starts with its message and looks for the bytes again after
    1, 2, 4, 8 and then 10 s, so that a longer one ends some seconds before anybody notices.
    """
    return {
        "Mbit/s": [20] if quick else [400, 100],
        "down over up": 3 if quick else 1,
        "megabytes": [8, 8] if quick else [50, 100, 170],
        "pauses": [1, 5] if quick else [6, 10, 14],
        "rounds of each site": 1 if quick else 3,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Play the rounds at each rate, in a network of its own."""
    if why := unavailable():
        raise EngineError(f"streaming is measured over a network that is made for it: {why}")
    cells = [f"{rate} Mbit/s" for rate in bench.settings["Mbit/s"]]
    for cell, repeat in bench.recorder.interleave(cells, 1):
        rate = float(cell.split()[0])
        link = Link(up_mbps=rate, down_mbps=rate * bench.settings["down over up"])
        bench.recorder.add(cell, repeat, {"rounds": _play(bench, link)})
    _judge(bench)
    return bench.recorder.has_all(cells, 1)


def report(result: Result) -> str:
    """A row for each rate and site, medians over the rounds, in Markdown."""
    lines = [
        "| link | site | round (s) | on the wire (s) | planned (s) | download (s) | by the link model (s) |"
        " upload (s) | by the link model (s) |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    faster = result.settings.get("down over up", 1)
    ways = "each way" if faster == 1 else f"up, {faster} times that down"
    for sample in result.samples:
        for site in _SITES:
            columns = ("round_s", "wire_s", "planned_s", "download_s", "link_down_s", "upload_s", "link_up_s")
            found = [
                [
                    played[site][column]
                    for played in sample.values["rounds"]
                    if played[site][column] is not None
                ]
                for column in columns
            ]
            cells = " | ".join(f"{np.median(values):.1f}" if values else "–" for values in found)
            lines.append(f"| {sample.cell} {ways} | {site} | {cells} |")
    return "\n".join(lines)


def _play(bench: Bench, link: Link) -> list[dict[str, Json]]:
    """Play the rounds over `link`; what each of them was on each site."""
    sizes, pauses = bench.settings["megabytes"], bench.settings["pauses"]
    with joined([link] * len(_SITES)) as network, tempfile.TemporaryDirectory(prefix="fedmt-") as place:
        nodes = [_node(network, 0), *(_node(network, 1, f"task-{task}") for task in range(len(sizes)))]
        at = inside(network.server)
        with deployed(Path(place), nodes, inside=at, host="0.0.0.0", settings=_POLLING) as deployment:
            with Meter({_SITES[0]: deployment.nodes[0], _SITES[1]: deployment.nodes[1]}) as meter:
                rounds = _rounds(bench, deployment, nodes)
            return [
                _measured(dict(zip(_SITES, pair, strict=True)), meter.readings, link, sizes, pauses)
                for pair in zip(*[iter(rounds)] * len(_SITES), strict=True)
            ]


def _node(network: Network, site: int, task: str = "") -> Node:
    """The SuperNode of `site`, or of one of its tasks."""
    return Node(
        config=f'site="{_SITES[site].split()[0]}"' + (f' tasks="{task}"' if task else ""),
        device=f"device-{site}",
        home=f"flwr-{site}{task}",
        inside=inside(network.sites[site]),
        superlink=network.address(site),
    )


def _start_engine(home: Path) -> None:
    """Start a site's engine, which its first message would have to wait for."""
    before = os.environ["FEDMT_HOME"]
    os.environ["FEDMT_HOME"] = str(home)
    try:
        connect(DeviceSettings(backend=Backend.CPU)).close()
    finally:
        os.environ["FEDMT_HOME"] = before


def _rounds(bench: Bench, deployment: Deployment, nodes: Sequence[Node]) -> list[dict[str, Json]]:
    """Have the rounds of training played, and what the server tells of them."""
    told, wanted = deployment.directory / "told.json", len(_SITES) * bench.settings["rounds of each site"]
    config = {
        "sizes": ",".join(map(str, bench.settings["megabytes"])),
        "pauses": ",".join(map(str, bench.settings["pauses"])),
        "rounds": wanted,
        "nodes": len(nodes),
        "told": str(told),
    }
    words = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
    number = deployment.submit(freight.FILES, words)
    for device in sorted({node.device for node in nodes}):
        _start_engine(deployment.directory / device)
    deadline = time.monotonic() + _PATIENCE_S
    while not told.exists() or len(rounds := json.loads(told.read_text())) < wanted:
        if time.monotonic() > deadline:
            raise EngineError(f"the rounds over the network had no end: {deployment.errors(number)}")
        time.sleep(0.2)
    failed = [line for played in rounds for task in played["tasks"].values() for line in task["failures"]]
    if failed:
        raise EngineError(f"over the network: {failed[0]}")
    return list(rounds[:wanted])


def _measured(
    rounds: dict[str, Json],
    readings: dict[str, list[Reading]],
    link: Link,
    megabytes: Sequence[float],
    pauses: Sequence[float],
) -> dict[str, Json]:
    """What a round of each site was, in seconds."""
    found: dict[str, _Seen] = {}
    for site, played in rounds.items():
        window = played["started"], played["started"] + played["wall_s"]
        down = _crossing(readings[site], lambda reading: reading.received, window)
        up = _crossing(readings[site], lambda reading: reading.sent, window)
        found[site] = _Seen(down=down, up=up, trained=_trained(played))
    whole, lanes = (found[site] for site in _SITES)
    # What Flower and the package take of a message besides: from its last byte to the training, and back.
    spans = whole.trained.values()
    begun, ended = min(begin for begin, _ in spans), max(end for _, end in spans)
    beside = begun - whole.down[1] + whole.up[0] - ended
    sizes = [1e6 * size for size in megabytes]
    order = [int(task.removeprefix("task-")) for task in lanes.trained]
    plan = _planned(link, order, sizes, [pause + beside for pause in pauses])
    values: dict[str, Json] = {}
    for site, streams in zip(_SITES, (False, True), strict=True):
        down, up = found[site].down, found[site].up
        values[site] = {
            "round_s": round(up[1] - rounds[site]["started"], 3),
            "wire_s": round(up[1] - down[0], 3),
            "planned_s": round(plan[streams], 3),
            "download_s": None if streams else round(down[1] - down[0], 3),
            "link_down_s": None if streams else round(link.download_s(round(sum(sizes))), 3),
            "upload_s": None if streams else round(up[1] - up[0], 3),
            "link_up_s": None if streams else round(link.upload_s(round(sum(sizes))), 3),
        }
    return values | {"beside_s": round(beside, 3), "order": order}


def _crossing(
    readings: Sequence[Reading], count: Callable[[Reading], int], window: tuple[float, float]
) -> tuple[float, float]:
    """When the bytes that crossed within `window` began to, and when the last of them had."""
    within = [reading for reading in readings if window[0] <= reading.moment <= window[1]]
    moments = np.array([reading.moment for reading in within])
    bytes_ = np.array([count(reading) for reading in within], dtype=float)
    over = (bytes_ - bytes_[0]) / (bytes_[-1] - bytes_[0])
    low, high = (float(np.interp(part, over, moments)) for part in (_EDGE, 1 - _EDGE))
    margin = (high - low) * _EDGE / (1 - 2 * _EDGE)
    return low - margin, high + margin


def _trained(played: dict[str, Json]) -> dict[str, tuple[float, float]]:
    """When each task of a round trained, in seconds since the epoch, in the order in which they began."""
    spans = {
        span["task"]: (
            answer["report"]["arrived"] + span["start_s"],
            answer["report"]["arrived"] + span["end_s"],
        )
        for answer in played["answers"]
        for span in answer["report"]["timeline"]
        if span["phase"] == Phase.COMPUTE
    }
    return dict(sorted(spans.items(), key=lambda item: item[1]))


def _planned(link: Link, order: Sequence[int], sizes: Sequence[float], lasts: Sequence[float]) -> list[float]:
    """Seconds of a round of tasks that each take `lasts` seconds: phased, and streamed in `order`."""
    volumes = [
        Volume(
            task=str(place), samples=round(1000 * last), download_bytes=round(size), upload_bytes=round(size)
        )
        for place, (size, last) in enumerate(zip(sizes, lasts, strict=True))
    ]
    table = RateTable(choices=1, rates=states(len(sizes), 1).astype(float) * 1000.0)
    jobs, choice = Jobs.over(volumes, link), np.zeros(len(sizes), dtype=np.intp)
    return [
        float(simulate(jobs, table, np.array(order), choice, overlap=overlap).makespan[0])
        for overlap in (Overlap.OFF, Overlap.FIFO)
    ]


def _judge(bench: Bench) -> None:
    for sample in bench.recorder.samples:
        whole, lanes = ([played[site] for played in sample.values["rounds"]] for site in _SITES)
        ratios = [
            one[f"{way}_s"] / one[f"link_{short}_s"]
            for one in whole
            for way, short in (("download", "down"), ("upload", "up"))
        ]
        gains = [other["wire_s"] / one["wire_s"] for one, other in zip(whole, lanes, strict=True)]
        plans = [one["wire_s"] / one["planned_s"] for one in lanes]
        transfer, plan = (max(abs(ratio - 1) for ratio in found) for found in (ratios, plans))
        bench.bars += [
            Bar.counted(
                f"{sample.cell}: furthest of a transfer from the link model",
                _TOLERANCE,
                transfer,
                transfer <= _TOLERANCE,
            ),
            Bar.counted(
                f"{sample.cell}: streaming over one message, its worst round",
                1.0,
                max(gains),
                max(gains) < 1.0,
            ),
            Bar.counted(
                f"{sample.cell}: furthest of a streamed round from the plan",
                _TOLERANCE,
                plan,
                plan <= _TOLERANCE,
            ),
        ]
