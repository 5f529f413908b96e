"""Seats of one GPU, within MPS and outside it: the SMs that a budget comes to, and what tells MPS so."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

from fedmt_flower.device.backends.facts import Gpu
from fedmt_flower.device.ipc.seat import Seat
from fedmt_flower.domain.plan import check_budget

PIPE: Final = "CUDA_MPS_PIPE_DIRECTORY"
"""Names, to a client and to the control program, the directory in which a daemon listens."""
LOG: Final = "CUDA_MPS_LOG_DIRECTORY"
_PERCENTAGE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
_MEMORY = "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"
_PRIORITY = "CUDA_MPS_CLIENT_PRIORITY"
_BELOW_NORMAL = "1"

_STEP = 2
"""SMs come in pairs (a TPC): on 132 SMs, 60 % gives 78, 33 % 42 and 30 % 38."""

_NEARLY_WHOLE: Final = 90.0
_PARTS: Final = (50.0, 25.0, 12.5)

_LEAST = 8
"""The fewest that a client is given: 1 % gives 8 of 132."""


def multiprocessors_of(budget: float, total: int) -> int:
    """SMs that a budget of `budget` % comes to on a GPU of `total` SMs: rounded down to a pair, at least 8.

    Raises
    ------
    ConfigError
        If `budget` is not in (0, 100].
    """
    check_budget("a task", budget)
    # The epsilon keeps a third of 132 SMs, 33.333… %, at 44 where the arithmetic is exact.
    return min(total, max(_LEAST, _STEP * math.floor(total * budget / (100 * _STEP) + 1e-9)))


def sound_share(budget: float, total: int) -> float:
    """The largest share of at most `budget` % in which a Hopper GPU's products in 16 bits are right.

    cuBLAS multiplies bfloat16 there by clusters of thread blocks, and with most numbers of SMs under MPS some
    leave their part of the result unwritten, without an error. On three H100s (CUDA 13.0, PyTorch 2.11) 72
    products and five convolutions were whole with 8 to 16, 30 to 34, 62 to 66 and 118 to 132 of the 132 SMs,
    beside others too, and with no other number. So a share is a half, a quarter or an eighth, and as it is
    from 90 % and up to an eighth.

    Parameters
    ----------
    budget
        Share of the SMs in per cent, (0, 100].
    total
        SMs of the GPU.

    Raises
    ------
    ConfigError
        If `budget` is not in (0, 100].
    """
    level = multiprocessors_of(budget, total)
    if level >= multiprocessors_of(_NEARLY_WHOLE, total):
        return budget
    fitting = (share for share in _PARTS if level >= multiprocessors_of(share, total))
    return min(budget, next(fitting, budget))


def percentage_for(level: int, total: int) -> int:
    """The least whole percentage that MPS rounds down to `level` of `total` SMs."""
    return min(100, math.ceil(100 * level / total - 1e-9))


def seat_within(card: Gpu, budget: float, pipe: Path, memory_share: float, *, yields: bool = False) -> Seat:
    """The seat of a client of the daemon at `pipe`: its SMs, its memory cap and its priority.

    Parameters
    ----------
    budget
        Share of the SMs in per cent, (0, 100].
    memory_share
        Largest part of the card's memory that the client may take, (0, 1].
    yields
        Whether the kernels of others go first.

    Raises
    ------
    ConfigError
        If `budget` is not in (0, 100].
    """
    level = multiprocessors_of(budget, card.multiprocessors)
    environment = {
        "CUDA_VISIBLE_DEVICES": card.uuid,
        PIPE: str(pipe),
        _PERCENTAGE: str(percentage_for(level, card.multiprocessors)),
        _MEMORY: f"0={max(1, int(card.memory_bytes * memory_share) >> 30)}G",
    }
    if yields:
        environment[_PRIORITY] = _BELOW_NORMAL
    return Seat(device="cuda:0", level=level, environment=environment)


def seat_outside(card: Gpu, directory: Path) -> Seat:
    """The seat of a process that time-slices `card`: no daemon listens in `directory`."""
    environment = {"CUDA_VISIBLE_DEVICES": card.uuid, PIPE: str(directory)}
    return Seat(device="cuda:0", level=card.multiprocessors, environment=environment)
