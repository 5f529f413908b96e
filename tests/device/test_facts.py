"""What a host's GPUs allow."""

from __future__ import annotations

import dataclasses

import pytest

from fedmt_flower.device.backends import facts

H100 = facts.Gpu(
    index=0,
    uuid="GPU-0",
    name="NVIDIA H100 80GB HBM3",
    memory_bytes=85_520_809_984,
    multiprocessors=132,
    capability=(9, 0),
    driver="580.159.04",
    cuda=(13, 0),
    mig=False,
    compute_mode="default",
    gpm=True,
)
INSTALLED = facts.MpsBinaries(
    control="/usr/bin/nvidia-cuda-mps-control", server="/usr/bin/nvidia-cuda-mps-server"
)


def test_a_whole_hopper_card_with_mps_installed_allows_budgets() -> None:
    assert facts.why_not_mps(H100, INSTALLED) == ""


@pytest.mark.parametrize(
    ("card", "binaries", "says"),
    [
        (H100, dataclasses.replace(INSTALLED, control=""), "nvidia-cuda-mps-control is not on the PATH"),
        (H100, dataclasses.replace(INSTALLED, server=""), "nvidia-cuda-mps-server is not on the PATH"),
        (dataclasses.replace(H100, mig=True), INSTALLED, "MIG slices"),
        (dataclasses.replace(H100, capability=(6, 1)), INSTALLED, "compute capability 6.1"),
        (dataclasses.replace(H100, compute_mode="prohibited"), INSTALLED, "'prohibited'"),
    ],
)
def test_what_stands_in_the_way_of_mps_is_told_in_one_line(
    card: facts.Gpu, binaries: facts.MpsBinaries, says: str
) -> None:
    reason = facts.why_not_mps(card, binaries)
    assert says in reason
    assert "\n" not in reason


@pytest.mark.parametrize(("cuda", "clients"), [((12, 9), 48), ((13, 0), 48), ((13, 1), 60), ((14, 0), 60)])
def test_the_number_of_clients_follows_the_cuda_version(cuda: tuple[int, int], clients: int) -> None:
    assert facts.max_clients(cuda) == clients


def test_gpus_are_counted_on_every_host() -> None:
    assert facts.gpu_count() >= 0


def test_doctor_answers_on_every_host() -> None:
    answer = facts.doctor()
    assert answer["gpus"] or "NVML" in str(answer["gpu_problem"])


@pytest.mark.gpu
def test_a_gpu_of_this_host_is_described_in_full() -> None:
    card = facts.gpu(0)
    assert card.uuid.startswith("GPU-")
    assert card.multiprocessors > 0
    assert card.memory_bytes > 1e9
