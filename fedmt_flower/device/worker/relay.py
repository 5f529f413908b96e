"""A worker's part in mid-round hand-over: giving its training away, and going on with another's."""

from __future__ import annotations

import logging
import os
import time

import msgspec
import torch
from torch import Tensor

from fedmt_flower.device.ipc import memory
from fedmt_flower.device.ipc.frames import (
    Continue,
    Offer,
    Offered,
    Orders,
    Pause,
    Paused,
    Relieve,
    Resume,
    Stand,
    Standing,
    Stays,
    Taken,
)
from fedmt_flower.device.ipc.job import JobResult
from fedmt_flower.device.ipc.mailbox import new_place, opened
from fedmt_flower.device.ipc.protocol import Channel, Received
from fedmt_flower.device.ipc.state import Layout, Packing, checksum, empty_buffer, unpacked
from fedmt_flower.device.training.execution import Execution, OnProgress
from fedmt_flower.device.training.faults import describe
from fedmt_flower.device.training.runtime import TaskRuntime
from fedmt_flower.errors import EngineError, FedMTError, ProtocolError, TaskError

log = logging.getLogger(__name__)

_LAYOUT: msgspec.json.Decoder[Layout] = msgspec.json.Decoder(Layout)
_FAILURES = (FedMTError, OSError, RuntimeError, TypeError, ValueError)
"""What packing a state and passing it on may raise."""


class Relay:
    """What a worker does at the boundary between two steps, and what it does for one that follows there."""

    def __init__(self, channel: Channel[Orders], runtime: TaskRuntime) -> None:
        self._channel = channel
        self._runtime = runtime
        self._own: Tensor | None = None
        self._others: Tensor | None = None
        self._standing: Execution | None = None
        self._practised = False

    def between(self, execution: Execution) -> bool:
        """Do what the engine has asked for meanwhile; true if another worker goes on with the job.

        Raises
        ------
        EngineError
            If the engine has gone, or asks for what nobody can do between two steps.
        """
        while self._channel.waiting():
            match self._next().frame:
                case Offer():
                    self._channel.send(self._offer(execution))
                case Pause(by_device=by_device):
                    return self._hand_over(execution, by_device)
                case other:
                    raise ProtocolError(f"asked for {type(other).__name__} between two steps")
        return False

    def stand(self, order: Stand) -> Standing:
        """Get ready to go on with a job; TaskError if that cannot be."""
        self.forget()
        self._standing = self._runtime.stand(order.job)
        self._practise(self._standing)
        if order.place is None:
            return Standing()
        try:
            self._others = opened(order.place, self._runtime.device)
        except RuntimeError as error:
            return Standing(why=describe(error))
        return Standing(opened=True)

    def go_on(self, order: Continue, file: int | None, on_progress: OnProgress) -> JobResult:
        """Take a job over, say so, and do the rest of it.

        Raises
        ------
        TaskError
            If its state has not arrived whole, or the job cannot be done.
        HandedOver
            If it is handed over in turn.
        """
        standing, self._standing = self._standing, None
        if standing is None:
            raise TaskError(f"task {self._runtime.task.name!r}: asked to go on with a job it never stood for")
        self._take(standing, order, file)
        self._channel.send(Taken())
        return self._runtime.go_on(standing, on_progress, self.between)

    def forget(self) -> None:
        """Let go of what is kept for a hand-over that will not be."""
        self._others = self._standing = None
        if self._own is not None:
            self._own = None
            # Deletes torch's file in /dev/shm, which a worker that is killed later would leave.
            torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]

    def _next(self) -> Received[Orders]:
        received = self._channel.receive()
        if received is None:
            raise EngineError("the engine has gone")
        return received

    def _take(self, standing: Execution, order: Continue, file: int | None) -> None:
        """Put a state in place; what it came in, which may be another worker's memory, is let go of."""
        began = time.monotonic()
        buffer, self._others = self._others if file is None else _mapped(file), None
        if buffer is None or (found := checksum(buffer[: order.size])) != order.checksum:
            got = "nothing" if buffer is None else f"checksum {found}"
            raise TaskError(
                f"task {self._runtime.task.name!r}: its state was handed over with checksum "
                f"{order.checksum}, but {got} arrived"
            )
        # The place is another worker's, and the optimizer keeps what it is given.
        own = buffer[: order.size].clone() if buffer.is_cuda else buffer
        self._runtime.take_over(standing, unpacked(_LAYOUT.decode(order.layout), own))
        _log("taken", order.size, began)

    def _practise(self, standing: Execution) -> None:
        """Give and take a state once, with nobody waiting: a GPU loads each kernel when it is first used."""
        if self._practised:
            return
        self._practised = True
        try:
            packing = Packing(standing.state())
            buffer = empty_buffer(packing.size, self._runtime.device)
            _fill(packing, buffer)
            self._runtime.take_over(standing, unpacked(packing.layout, buffer))
        except _FAILURES as error:
            log.debug("a hand-over may fail: %s", describe(error))
        # What it took is let go of, and a trainer of the user's need not bear to be loaded twice.
        standing.begin()

    def _offer(self, execution: Execution) -> Offered:
        try:
            packing = Packing(execution.state())
            if not self._practised:
                # Before the place is made, which then takes the same memory.
                _fill(packing, empty_buffer(packing.size, self._runtime.device))
                self._practised = True
            self._own, place = new_place(packing.size, self._runtime.device)
        except _FAILURES as error:
            return Offered(why=describe(error))
        return Offered(place=place)

    def _hand_over(self, execution: Execution, by_device: bool) -> bool:
        execution.pause()
        try:
            self._give(execution, by_device)
        except _FAILURES as error:
            log.warning("the job stays here: %s", describe(error))
            self._channel.send(Stays(why=describe(error)))
            execution.resume()
            return False
        match self._next().frame:
            case Relieve():
                self.forget()
                return True
            case Resume():
                self.forget()
                execution.resume()
                return False
            case other:
                raise ProtocolError(f"asked for {type(other).__name__} in mid hand-over")

    def _give(self, execution: Execution, by_device: bool) -> None:
        began = time.monotonic()
        packing = Packing(execution.state())
        layout = msgspec.Raw(msgspec.json.encode(packing.layout))
        if by_device and self._own is not None and packing.size <= self._own.numel():
            self._own[: packing.size] = 0
            total = _fill(packing, self._own)
            self._channel.send(Paused(layout=layout, size=packing.size, checksum=total))
            _log("given", packing.size, began)
            return
        buffer = empty_buffer(packing.size, "cpu")
        if self._runtime.device.type == "cuda":
            buffer = buffer.pin_memory()
        total = _fill(packing, buffer)
        file = memory.write("state", {"state": buffer.numpy()})
        self._channel.send(Paused(layout=layout, size=packing.size, checksum=total), [file])
        os.close(file)
        _log("given by the host's memory", packing.size, began)


def _fill(packing: Packing, buffer: Tensor) -> int:
    """Pack into `buffer` and wait for that; its checksum."""
    packing.into(buffer)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    return checksum(buffer[: packing.size])


def _log(what: str, size: int, began: float) -> None:
    log.info("a state of %.1f MB was %s in %.1f ms", size / 1e6, what, 1e3 * (time.monotonic() - began))


def _mapped(file: int) -> Tensor:
    """The buffer in the memory file, which is closed."""
    try:
        return torch.from_numpy(memory.read(file)["state"])
    finally:
        os.close(file)
