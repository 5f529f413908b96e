"""The protocol: frames survive any cutting of the stream, and nonsense is an error in one line."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedmt_flower.device.ipc.frames import Advanced, Complete, Failed, FromClient, FromWorker, Hello, Run
from fedmt_flower.device.ipc.protocol import MAX_BODY, AsyncChannel, Channel, FrameDecoder, encode
from fedmt_flower.domain.allocation import Allocation, Policy
from fedmt_flower.domain.round import Assignment, Mode, RoundOrder
from fedmt_flower.domain.task import Task
from fedmt_flower.errors import ProtocolError

frames = st.one_of(
    st.builds(Advanced, task=st.text(), samples=st.integers(0, 2**40), total=st.integers(0, 2**40)),
    st.builds(Failed, error=st.text()),
)


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@given(st.lists(frames, max_size=5), st.lists(st.integers(0, 10**6), max_size=8))
def test_frames_arrive_however_the_stream_is_cut(sent: list[Advanced | Failed], places: list[int]) -> None:
    decoder = FrameDecoder(FromWorker)
    data = b"".join(encode(frame) for frame in sent)
    got = [received.frame for part in cut(data, places) for received in decoder.feed(part)]
    assert got == sent
    assert decoder.empty


@given(
    st.one_of(
        st.binary(max_size=100), st.binary(max_size=60).map(lambda b: struct.pack("!II", len(b), 0) + b)
    )
)
@example(struct.pack("!II", 100_000, 0) + b'{"type":' + b"[" * 99_992)
@example(struct.pack("!II", 100_005, 0) + b'{"x":' + b"[" * 100_000)
def test_any_bytes_are_frames_or_one_protocol_error(data: bytes) -> None:
    problem = ""
    try:
        FrameDecoder(FromClient).feed(data)
    except ProtocolError as error:
        problem = str(error)
    assert "\n" not in problem


@pytest.mark.parametrize("header", [(MAX_BODY + 1, 0), (2**32 - 1, 0), (2, 254)])
def test_a_stated_size_over_the_limit_is_refused_before_anything_is_read(header: tuple[int, int]) -> None:
    with pytest.raises(ProtocolError, match="expected at most"):
        FrameDecoder(FromClient).feed(struct.pack("!II", *header))


def test_a_frame_over_the_limit_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="Failed has"):
        encode(Failed(error="x" * MAX_BODY))


def test_a_value_that_the_vocabulary_forbids_is_a_protocol_error() -> None:
    order = RoundOrder(
        run="r",
        round=1,
        site="a",
        assignments=(Assignment(task=Task(name="t", model="m:f", data="m:d"), mode=Mode.TRAIN),),
        allocation=Allocation(policy=Policy.SHARING),
    )
    body = msgspec.json.encode(Run(order=order))
    assert FrameDecoder(FromClient).feed(struct.pack("!II", len(body), 0) + body)[0].frame == Run(order=order)
    for wrong in (
        body.replace(b'"t"', b'"t/u"'),
        body.replace(b'"m:f"', b'"m f"'),
        body.replace(b'"round":1', b'"round":-1'),
    ):
        with pytest.raises(ProtocolError, match="not understood"):
            FrameDecoder(FromClient).feed(struct.pack("!II", len(wrong), 0) + wrong)


@pytest.fixture
def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def test_files_arrive_with_their_own_frames(pair: tuple[socket.socket, socket.socket]) -> None:
    sender, receiver = Channel(pair[0], FromWorker), Channel(pair[1], FromWorker)
    files = [os.memfd_create(name) for name in "abc"]
    inodes = [os.fstat(fd).st_ino for fd in files]
    sender.send(Failed(error="one"), files[:2])
    sender.send(Failed(error="none"))
    sender.send(Failed(error="last"), files[2:])
    for fd in files:
        os.close(fd)
    got = [receiver.receive() for _ in range(3)]
    arrived = [[os.fstat(fd).st_ino for fd in received.fds] for received in got if received]
    assert arrived == [inodes[:2], [], inodes[2:]]
    for received in got:
        for fd in received.fds if received else ():
            assert not os.get_inheritable(fd)
            os.close(fd)
    sender.close()
    assert receiver.receive() is None
    receiver.close()


def test_a_peer_that_leaves_in_the_middle_of_a_frame_is_noticed(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    receiver = Channel(pair[1], FromWorker)
    pair[0].sendall(encode(Failed(error="x"))[:-1])
    pair[0].close()
    with pytest.raises(ProtocolError, match="middle of a frame"):
        receiver.receive()
    receiver.close()


def test_files_that_nobody_announced_are_closed(pair: tuple[socket.socket, socket.socket]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    receiver = Channel(pair[1], FromWorker)
    fd = os.memfd_create("x")
    socket.send_fds(pair[0], [encode(Failed(error="x"))], [fd])
    os.close(fd)
    with pytest.raises(ProtocolError, match="announced none"):
        receiver.receive()
    pair[0].close()
    assert len(os.listdir("/proc/self/fd")) == before - 2


def test_a_frame_larger_than_the_socket_takes_goes_through(pair: tuple[socket.socket, socket.socket]) -> None:
    async def converse() -> None:
        a, b = AsyncChannel(pair[0], FromWorker), AsyncChannel(pair[1], FromWorker)
        fd = os.memfd_create("x")
        large = [Failed(error=letter * 2_000_000) for letter in "ab"]
        sending = asyncio.gather(*(a.send(frame, [fd]) for frame in large))
        for frame in large:
            received = await b.receive()
            assert received is not None
            assert received.frame == frame
            os.close(received.fds[0])
        await sending
        os.close(fd)
        a.close()
        assert await b.receive() is None
        b.close()

    asyncio.run(converse())


def test_a_peer_that_does_not_read_is_given_up(pair: tuple[socket.socket, socket.socket]) -> None:
    async def converse() -> None:
        channel = AsyncChannel(pair[0], FromWorker)
        with pytest.raises(TimeoutError):
            await channel.send(Failed(error="x" * 5_000_000), patience_s=0.05)
        with pytest.raises(BrokenPipeError):
            await channel.send(Failed(error="x"))
        channel.close()
        pair[1].close()

    asyncio.run(converse())


def test_a_cancelled_send_leaves_no_half_frame(pair: tuple[socket.socket, socket.socket]) -> None:
    async def converse() -> None:
        a, b = AsyncChannel(pair[0], FromWorker), AsyncChannel(pair[1], FromWorker)
        large = Failed(error="x" * 5_000_000)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await a.send(large)
        next_one = asyncio.ensure_future(a.send(Failed(error="next")))
        got = [await b.receive(), await b.receive()]
        await next_one
        assert [received.frame for received in got if received] == [large, Failed(error="next")]
        a.close()
        b.close()

    asyncio.run(converse())


def test_each_side_takes_only_what_is_for_it() -> None:
    with pytest.raises(ProtocolError, match="not understood"):
        FrameDecoder(FromClient).feed(encode(Failed(error="x")))
    FrameDecoder(FromClient).feed(encode(Hello(version="1")))
    assert Complete.__struct_config__.tag == "Complete"
