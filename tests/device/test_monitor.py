"""What operators see of an engine, and where."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from fedmt_flower.cli import main
from fedmt_flower.device.engine.client import EngineClient
from fedmt_flower.device.engine.connection import connect
from fedmt_flower.device.engine.monitor import Monitor, merge
from fedmt_flower.device.ipc.frames import EngineStatus
from fedmt_flower.domain.allocation import Policy
from fedmt_flower.domain.device import Backend, DeviceSettings
from fedmt_flower.domain.round import RoundOrder
from fedmt_flower.domain.task import Task
from fedmt_flower.errors import ConfigError, EngineError

State = Mapping[str, NDArray[Any]]


def read(text: str) -> dict[tuple[str, ...], float]:
    """Values by name and labels (in the order of the labels' names), that of the device left out."""
    return {
        (sample.name, *(value for name, value in sorted(sample.labels.items()) if name != "device")): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture
def engine(home: Path, port: int) -> Iterator[EngineClient]:
    engine = connect(DeviceSettings(backend=Backend.CPU, idle_timeout_s=120, metrics_port=port))
    assert isinstance(engine, EngineClient)
    yield engine
    engine.close()


def test_rounds_are_counted_task_by_task(
    engine: EngineClient,
    port: int,
    make_task: Callable[..., Task],
    make_order: Callable[..., RoundOrder],
    weights: State,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good, bad = make_task("good"), make_task("bad", "raise")
    order = make_order(good, bad, policy=Policy.STATIC, budgets=(60, 40))
    reports = [engine.run_round(order, {"good": weights, "bad": weights}).report for _ in range(2)]
    now = read(engine.metrics())
    assert now["fedmt_rounds_total", "clinic"] == 2
    assert now["fedmt_task_rounds_total", "done", "good"] == 2
    assert now["fedmt_task_rounds_total", "failed", "good"] == 0
    assert now["fedmt_task_rounds_total", "failed", "bad"] == 2
    assert now["fedmt_task_samples_total", "good"] == 2 * 2 * 64
    assert now["fedmt_task_samples_total", "bad"] == 0
    compute = sum(report.task("good").compute_s for report in reports)
    assert now["fedmt_task_compute_seconds_total", "good"] == pytest.approx(compute)
    assert now["fedmt_task_rate_samples_per_second", "good"] == pytest.approx(reports[1].task("good").rate)
    assert now["fedmt_task_budget_percent", "good"] == 60
    assert now["fedmt_task_level", "good"] == reports[1].task("good").level
    assert now["fedmt_busy_seconds_total",] == pytest.approx(sum(report.wall_s for report in reports))
    assert now["fedmt_queue_length",] == 0
    assert now["fedmt_workers", "idle", "good"] == 1
    assert now["fedmt_task_memory_bytes", "good"] > 1 << 20
    assert 0 < now["fedmt_device_memory_used_bytes",] < now["fedmt_device_memory_bytes",]

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert set(read(answer.read().decode())) == set(now)
    assert main(["engine", "metrics"]) == 0
    assert set(read(capsys.readouterr().out)) == set(now)


def test_a_port_that_is_taken_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMT_HOME", str(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EngineError, match=f"metrics_port: 127.0.0.1:{port} cannot be used"):
            connect(DeviceSettings(backend=Backend.CPU, metrics_port=port))


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_what_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(ConfigError, match=f"metrics_port: got {port}, expected 1 to 65535"):
        DeviceSettings(metrics_port=port)


def test_engines_of_several_devices_make_one_text() -> None:
    def idle(device: str) -> EngineStatus:
        return EngineStatus(
            pid=1,
            version="1",
            backend="mps",
            device=device,
            uptime_s=1,
            rounds=0,
            sites={'a "site"': 3},
            queue=(),
            workers=(),
        )

    def lost() -> tuple[int, int]:
        raise EngineError("the GPU is gone")

    texts = [Monitor(partial(idle, device), lost).text() for device in ("gpu0", "gpu1")]
    merged = merge(texts)
    families = list(text_string_to_metric_families(merged))
    assert len({family.name for family in families}) == len(families)
    assert "fedmt_device_memory_bytes" not in merged
    (rounds,) = (family for family in families if family.name == "fedmt_rounds")
    assert [sample.labels for sample in rounds.samples] == [
        {"device": device, "site": 'a "site"'} for device in ("gpu0", "gpu1")
    ]
