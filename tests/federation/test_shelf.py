"""What is put on a shelf is read from it, in whatever order and by however many threads."""

from __future__ import annotations

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fedmt_flower.federation import shelf as module
from fedmt_flower.federation.arrays import Region
from fedmt_flower.federation.shelf import Shelf

WINDOW = 3 * 4096
SIZES = (1, 0, 4095, 4096, 4097, WINDOW, WINDOW - 1, 5 * WINDOW + 7, 300, 12)


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WINDOW_BYTES", WINDOW)


def _shelved(records: int) -> tuple[list[bytes], list[Region], Shelf]:
    generator = np.random.default_rng(3)
    contents = [generator.bytes(size) for _ in range(records) for size in SIZES]
    regions = [Region(content) for content in contents]
    shelf = Shelf()
    for begin in range(0, len(regions), len(SIZES)):
        shelf.put(regions[begin : begin + len(SIZES)])
    assert all(region.data is None for region in regions)
    return contents, regions, shelf


@pytest.mark.parametrize("expected", [False, True])
@pytest.mark.parametrize("order", ["as put", "backwards", "shuffled", "twice", "every third"])
def test_any_order(order: str, expected: bool) -> None:
    contents, regions, shelf = _shelved(3)
    if expected:
        shelf.expect(regions[2 * len(SIZES) :] + regions[: 2 * len(SIZES)])
    places = list(range(len(regions)))
    if order == "backwards":
        places.reverse()
    elif order == "shuffled":
        random.Random(1).shuffle(places)
    elif order == "twice":
        places = [place for place in places for _ in range(2)]
    elif order == "every third":
        places = [place for start in range(3) for place in places[start::3]]
    for place in places:
        assert bytes(regions[place].view(0, regions[place].size)) == contents[place]


def test_parts_of_a_region() -> None:
    contents, regions, _ = _shelved(2)
    long = SIZES.index(5 * WINDOW + 7)
    step = 1000
    for start in range(0, len(contents[long]), step):
        part = contents[long][start : start + step]
        assert bytes(regions[long].view(start, len(part))) == part


def test_many_readers_beside_a_writer() -> None:
    contents, regions, shelf = _shelved(2)
    late = [Region(content) for content in contents]

    def read(place: int) -> bool:
        return bytes(late[place].view(0, late[place].size)) == contents[place]

    with ThreadPoolExecutor(4) as pool:
        writing = pool.submit(shelf.put, late)
        found = list(pool.map(read, [*range(len(late))] * 20))
        writing.result()
    assert all(found)
    assert bytes(regions[2].view(0, regions[2].size)) == contents[2]


def test_what_reading_on_reads_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    contents, regions, _ = _shelved(1)
    read: list[int] = []

    def counted(file: int, buffers: list[memoryview], place: int) -> int:
        read.append(len(buffers[0]))
        return preadv(file, buffers, place)

    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", counted)
    for region in regions:
        region.view(0, region.size)
    shelved = sum(len(content) for content in contents)
    assert shelved <= sum(read) <= shelved + 4 * 4096
    read.clear()
    # One from the middle costs no window of what follows it.
    assert bytes(regions[0].view(0, 1)) == contents[0]
    assert sum(read) == 4096


def test_what_is_expected_is_read_ahead_from_one_put_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    contents, regions, shelf = _shelved(3)
    first, second, third = (range(begin, begin + len(SIZES)) for begin in range(0, len(regions), len(SIZES)))
    order = [*third, *first, *second]
    shelf.expect(regions[place] for place in order)
    readers: list[str] = []

    def seen(file: int, buffers: list[memoryview], place: int) -> int:
        readers.append(threading.current_thread().name)
        return preadv(file, buffers, place)

    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", seen)
    for place in order:
        assert bytes(regions[place].view(0, regions[place].size)) == contents[place]
    own = threading.current_thread().name
    # The first array, and what follows it, which nobody knew to be wanted then.
    assert readers.count(own) == 2
    assert len(readers) > 3 * 5


def test_a_slow_disk_is_left_to_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SLOW_BYTES_PER_S", 1e15)
    shelf = Shelf()
    for content in (b"abc" * 5000, b"defg" * 5000):
        region = Region(content)
        shelf.put([region])
        assert bytes(region.view(0, region.size)) == content
        assert not shelf.past_cache


def test_a_full_disk_leaves_regions_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, shelf = _shelved(1)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    region = Region(b"x" * 100)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            shelf.put([region])
    assert region.data == b"x" * 100
    shelf.put([region])
    assert region.data is None
    assert bytes(region.view(0, 100)) == b"x" * 100
