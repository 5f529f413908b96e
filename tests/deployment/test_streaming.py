"""Streaming over a network that has a rate: a SuperLink and two sites, namespaces joined by veth and `tc`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fedmt_flower.bench import report
from fedmt_flower.bench.bench import Options
from fedmt_flower.bench.driver import measure
from fedmt_flower.bench.namespaces import inside, joined, unavailable
from fedmt_flower.bench.result import load
from fedmt_flower.domain.device import Backend
from fedmt_flower.domain.network import Link

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(why := unavailable()), reason=why or "it can be had"),
]


def namespaces() -> list[str]:
    """Those of this process."""
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line for line in names.splitlines() if line.startswith(f"fmt{os.getpid()}-")]


@pytest.mark.timeout(600)
def test_transfers_take_what_the_link_gives_and_a_streamed_round_what_was_planned(tmp_path: Path) -> None:
    for attempt in range(3):  # a busy host makes a round longer than its plan; no host makes it keep to it
        options = Options(
            backend=Backend.CPU,
            quick=True,
            out=tmp_path / str(attempt),
            budget_s=200.0,
            command="fedmt bench streaming",
        )
        result = measure("streaming", options, lambda line: None)
        assert result.complete
        assert load(options.out / "cpu" / "streaming.json") == result
        assert len(result.bars) == 3
        assert report.tables(result).count("\n|") == 3
        assert namespaces() == []
        missed = {bar.name: bar.value for bar in result.bars if not bar.met}
        assert missed.keys() <= {"20 Mbit/s: furthest of a streamed round from the plan"}
        if not missed:
            break
    assert missed == {}


def test_a_network_leaves_nothing_whatever_happens_in_it() -> None:
    children = []

    def interrupted() -> None:
        with joined([Link(up_mbps=10, down_mbps=20), Link(up_mbps=1, down_mbps=1)]) as network:
            assert len(namespaces()) == 3
            children.append(subprocess.Popen([*inside(network.sites[1]), "sleep", "1000"]))
            show = [*inside(network.sites[0]), "tc", "qdisc", "show"]
            assert "rate 10Mbit" in subprocess.run(show, capture_output=True, text=True, check=True).stdout
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert children[0].wait(10) < 0
    assert namespaces() == []
