"""A GPU's memory that two processes see."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from fedmt_flower.device.ipc.mailbox import new_place
from fedmt_flower.device.ipc.place import Place
from fedmt_flower.device.ipc.state import checksum

DEVICE = torch.device("cuda:0")
SIZE = 64 << 20
READER = """
import sys, msgspec, torch
from fedmt_flower.device.ipc.mailbox import opened
from fedmt_flower.device.ipc.place import Place
from fedmt_flower.device.ipc.state import checksum
buffer = opened(msgspec.json.decode(sys.stdin.buffer.read(), type=Place), torch.device("cuda:0"))
print(checksum(buffer), buffer.numel())
"""


def read(place: Place) -> tuple[int, int]:
    """Checksum and size of what another process finds at `place`."""
    told = subprocess.run(
        [sys.executable, "-c", READER], input=msgspec.json.encode(place), capture_output=True, check=False
    )
    assert told.returncode == 0, told.stderr.decode()[-2000:]
    total, size = told.stdout.split()
    return int(total), int(size)


@pytest.mark.gpu
def test_another_process_reads_what_was_written_after_the_place_was_made() -> None:
    buffer, place = new_place(SIZE, DEVICE)
    for value in (1, 200):
        buffer.fill_(value)
        buffer[:5] = torch.frombuffer(bytearray(b"fedmt"), dtype=torch.uint8).to(DEVICE)
        torch.cuda.synchronize()
        assert read(place) == (checksum(buffer), SIZE)


@pytest.mark.gpu
@pytest.mark.parametrize("reads", [False, True])
def test_a_place_ends_with_its_owners_hold_of_it(reads: bool) -> None:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        buffer, place = new_place(SIZE, DEVICE)
        assert torch.cuda.memory_allocated() >= before + SIZE
        if reads:
            read(place)
        del buffer
        assert torch.cuda.memory_allocated() == before
    torch.cuda.ipc_collect()
    assert list(Path("/dev/shm").glob(f"torch_{os.getpid()}_*")) == []
