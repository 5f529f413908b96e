"""Sampling a device beside a measurement."""

from __future__ import annotations

import time

import pytest

from fedmt_flower.device.profile import telemetry
from fedmt_flower.device.profile.telemetry import Host, Nvml, Reading, Sampler, summarise


def reading(at: float, **values: object) -> Reading:
    return Reading(**({"at": at, "utilisation": 50.0, "memory_bytes": 10} | values))  # type: ignore[arg-type]


def test_a_stretch_is_told_by_means_the_peak_of_memory_and_every_slowdown() -> None:
    usage = summarise(
        [
            reading(1.0, utilisation=20.0, memory_bytes=30, slowdowns=frozenset({"power cap"})),
            reading(1.1, utilisation=80.0, memory_bytes=10, clock_mhz=1980.0),
        ],
        0.1,
    )
    assert usage.utilisation == 50.0
    assert usage.memory_bytes == 30
    assert usage.clock_mhz == 1980.0
    assert usage.slowdowns == {"power cap"}
    assert usage.occupancy is None
    assert usage.energy_j is None


def test_an_occupancy_that_looks_back_beyond_the_stretch_is_left_out() -> None:
    readings = [
        reading(1.0, occupancy=10.0, window_s=0.1),
        reading(1.05, occupancy=20.0, window_s=0.1),
        reading(1.2, occupancy=60.0, window_s=0.1),
    ]
    assert summarise(readings, 0.2).occupancy == 60.0


def test_energy_is_read_between_two_movements_of_the_counter() -> None:
    # The counter moves every 0.2 s by 60 J: 300 W, whatever the ends of the stretch.
    readings = [reading(i * 0.1, energy_j=1000 + 60.0 * (i // 2), power_w=1.0) for i in range(11)]
    assert summarise(readings, 1.0).energy_j == pytest.approx(300.0)


def test_energy_of_a_short_stretch_is_power_times_time() -> None:
    readings = [reading(0.0, energy_j=5.0, power_w=280.0), reading(0.1, energy_j=5.0, power_w=320.0)]
    assert summarise(readings, 0.2).energy_j == pytest.approx(60.0)


def test_a_sampler_reads_in_the_background_until_it_is_left() -> None:
    start = time.monotonic()
    with Sampler(Host(), hertz=100) as sampler:
        time.sleep(0.2)
        end = time.monotonic()
    readings = sampler.readings(start, end)
    assert 5 <= len(readings) <= 20
    assert sampler.usage(start, end).memory_bytes > 0
    assert "GPU" in sampler.lacks


def test_a_source_that_fails_tells_whoever_asks() -> None:
    class Broken(Host):
        def read(self) -> Reading:
            raise OSError("the card fell off the bus")

    with Sampler(Broken(), hertz=100) as sampler:
        time.sleep(0.05)
    with pytest.raises(OSError, match="fell off the bus"):
        sampler.usage(0.0, 1.0)


@pytest.mark.gpu
def test_a_gpu_tells_memory_energy_and_clock() -> None:
    start = time.monotonic()
    with Sampler(Nvml(0)) as sampler:
        time.sleep(0.5)
        end = time.monotonic()
    usage = sampler.usage(start, end)
    assert usage.memory_bytes > 0
    assert usage.energy_j is not None
    assert usage.energy_j > 0
    assert usage.clock_mhz is not None
    assert (usage.occupancy is not None) == (sampler.lacks == "")
    assert not usage.slowdowns & telemetry.SPOILING
