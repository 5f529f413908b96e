"""How processes of one host speak: typed frames over AF_UNIX stream sockets, with memory files beside them.

A frame is a header (length of the body, number of file descriptors), a JSON body decoded straight into the
type that the receiver expects, and the descriptors. Whatever a peer states is checked against a limit before
anything is allocated for it.
"""

from __future__ import annotations

import array
import asyncio
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec

from fedmt_flower.errors import ProtocolError

T = TypeVar("T")

MAX_BODY = 8 << 20
"""Bytes of a frame's body; arrays never travel in it."""
MAX_FDS = 253
"""File descriptors of a frame: the kernel's own limit for one message."""

_HEADER = struct.Struct("!II")
_CREDENTIALS = struct.Struct("3i")
_CHUNK = 1 << 16
_ANCILLARY = socket.CMSG_SPACE(MAX_FDS * struct.calcsize("i"))


class Peer(msgspec.Struct, frozen=True):
    """The process at the other end of a connection, as the kernel tells."""

    pid: int
    user: int


def peer(sock: socket.socket) -> Peer:
    """Who made the other end of `sock`: the client that connected, or the server that listened."""
    pid, user, _ = _CREDENTIALS.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return Peer(pid, user)


class Received(msgspec.Struct, Generic[T], frozen=True):
    """A frame and the descriptors that came with it, which are the receiver's to close."""

    frame: T
    fds: tuple[int, ...]


class FrameDecoder(Generic[T]):
    """Cuts a stream of bytes and descriptors into frames of the type that `decoder` knows."""

    def __init__(self, decoder: msgspec.json.Decoder[T]) -> None:
        self._decoder = decoder
        self._data = bytearray()
        self._fds: deque[int] = deque()

    def feed(self, data: bytes, fds: Sequence[int] = ()) -> list[Received[T]]:
        """Take what arrived and return the frames that it completes.

        Raises
        ------
        ProtocolError
            If it cannot be the next part of a stream of frames. The stream is then of no more use.
        """
        self._data += data
        self._fds.extend(fds)
        frames = []
        while len(self._data) >= _HEADER.size:
            length, count = _HEADER.unpack_from(self._data)
            if length > MAX_BODY or count > MAX_FDS:
                raise ProtocolError(
                    f"frame of {length} bytes and {count} files: expected at most {MAX_BODY} and {MAX_FDS}"
                )
            end = _HEADER.size + length
            if len(self._data) < end:
                break
            # A message's descriptors arrive with its first byte, so they are here by its last.
            if len(self._fds) < count:
                raise ProtocolError(f"frame with {len(self._fds)} files: its header announces {count}")
            try:
                frame = self._decoder.decode(bytes(self._data[_HEADER.size : end]))
            except (msgspec.MsgspecError, RecursionError) as error:
                raise ProtocolError(f"frame not understood: {error}") from error
            del self._data[:end]
            frames.append(Received(frame, tuple(self._fds.popleft() for _ in range(count))))
        if self._fds and not self._data:
            raise ProtocolError(f"{len(self._fds)} files came with frames that announced none")
        return frames

    @property
    def empty(self) -> bool:
        """Whether no part of a frame is waiting for the rest."""
        return not self._data

    def close(self) -> None:
        """Close the descriptors of frames that never became whole."""
        while self._fds:
            os.close(self._fds.popleft())


def encode(frame: object, fds: int = 0) -> bytes:
    """The bytes of a frame that `fds` descriptors accompany; ProtocolError if it is over a limit."""
    body = msgspec.json.encode(frame)
    if len(body) > MAX_BODY or fds > MAX_FDS:
        raise ProtocolError(
            f"{type(frame).__name__} has {len(body)} bytes and {fds} files: "
            f"expected at most {MAX_BODY} and {MAX_FDS}"
        )
    return _HEADER.pack(len(body), fds) + body


class _Connection(Generic[T]):
    """What both kinds of channel share: the socket, and the frames that have arrived on it."""

    def __init__(self, sock: socket.socket, decoder: msgspec.json.Decoder[T]) -> None:
        self.sock = sock
        self._decoder = FrameDecoder(decoder)
        self._arrived: deque[Received[T]] = deque()

    def _take(self) -> bool:
        """Read once from the socket; False at its end. Raises BlockingIOError, OSError, ProtocolError."""
        data, ancillary, flags, _ = self.sock.recvmsg(_CHUNK, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        fds = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        try:
            if flags & socket.MSG_CTRUNC:
                raise ProtocolError("files of a frame were lost: this process has too many open")
            self._arrived.extend(self._decoder.feed(data, fds))
        except ProtocolError:
            self.close()
            raise
        if not data and not self._decoder.empty:
            raise ProtocolError("connection closed in the middle of a frame")
        return bool(data)

    def hang_up(self) -> None:
        """End the conversation: what has arrived can still be received, and then its end."""
        self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket and every descriptor that nobody has taken."""
        self.sock.close()
        self._decoder.close()
        while self._arrived:
            for fd in self._arrived.popleft().fds:
                os.close(fd)


class Channel(_Connection[T]):
    """One end of a conversation, for a process that does nothing else meanwhile."""

    def send(self, frame: object, fds: Sequence[int] = ()) -> None:
        """Send a frame; OSError if the peer has gone."""
        data = encode(frame, len(fds))
        sent = socket.send_fds(self.sock, [data], fds) if fds else 0
        self.sock.sendall(memoryview(data)[sent:])

    def waiting(self) -> bool:
        """Whether `receive` would return at once, with a frame, a part of one or the end."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(self._arrived or poll.poll(0))

    def receive(self) -> Received[T] | None:
        """The next frame, or None when the peer has closed its end.

        Raises
        ------
        TimeoutError
            If the socket has a time-out and it passes.
        ProtocolError
            If the peer does not keep to the protocol.
        """
        while not self._arrived:
            if not self._take():
                return None
        return self._arrived.popleft()


class AsyncChannel(_Connection[T]):
    """One end of a conversation, for an event loop that serves several."""

    def __init__(self, sock: socket.socket, decoder: msgspec.json.Decoder[T]) -> None:
        super().__init__(sock, decoder)
        sock.setblocking(False)
        self._sending = asyncio.Lock()

    async def send(self, frame: object, fds: Sequence[int] = (), patience_s: float = 30.0) -> None:
        """Send a frame, after those that other coroutines are sending.

        Cancelled, it still sends the rest of a frame that it has begun.

        Raises
        ------
        OSError
            If the peer has gone, or (TimeoutError) does not read for `patience_s` seconds: that ends the
            conversation.
        """
        data = encode(frame, len(fds))
        # The caller may close its descriptors before a frame that it no longer waits for is sent.
        await asyncio.shield(self._send(data, [os.dup(fd) for fd in fds], patience_s))

    async def _send(self, data: bytes, copies: Sequence[int], patience_s: float) -> None:
        rest, fds = memoryview(data), copies
        try:
            async with self._sending:
                while rest:
                    try:
                        sent = socket.send_fds(self.sock, [rest], fds) if fds else self.sock.send(rest)
                    except BlockingIOError:
                        async with asyncio.timeout(patience_s):
                            await ready(self.sock.fileno(), write=True)
                    else:
                        rest, fds = rest[sent:], ()
        except TimeoutError:
            self.hang_up()
            raise
        finally:
            for fd in copies:
                os.close(fd)

    async def receive(self) -> Received[T] | None:
        """The next frame, or None when the peer has closed its end; ProtocolError as `Channel.receive`.

        May be cancelled without loss.
        """
        while not self._arrived:
            try:
                if not self._take():
                    return None
            except BlockingIOError:
                await ready(self.sock.fileno())
        return self._arrived.popleft()

    async def left(self) -> None:
        """Return once the peer has hung up; if it says something first, never. Takes nothing in."""
        await ready(self.sock.fileno())
        try:
            said = self.sock.recv(1, socket.MSG_PEEK)
        except ConnectionError:
            return
        if said:
            await asyncio.get_running_loop().create_future()


async def ready(fd: int, *, write: bool = False) -> None:
    """Wait until `fd` can be read (or written); a pidfd can be read once its process has ended."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    if write:
        loop.add_writer(fd, event.set)
    else:
        loop.add_reader(fd, event.set)
    try:
        await event.wait()
    finally:
        if write:
            loop.remove_writer(fd)
        else:
            loop.remove_reader(fd)
