"""A worker: the process that runs one task in its seat on the device.

It is forked by the zygote and does what the engine says until it is told to leave. What the user's code
prints goes to the worker's own log, as do the tracebacks of failed jobs.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
from dataclasses import replace

import torch

from fedmt_flower.device import memory
from fedmt_flower.device.contract import Progress
from fedmt_flower.device.faults import describe
from fedmt_flower.device.frames import (
    Advanced,
    Appraise,
    Begin,
    Cover,
    Describe,
    Do,
    Done,
    Failed,
    Measure,
    Orders,
    Ready,
    Rehearse,
    Rest,
    Trace,
)
from fedmt_flower.device.job import Job
from fedmt_flower.device.measuring import Measurer
from fedmt_flower.device.prctl import TELL_WHERE, die_with_parent
from fedmt_flower.device.protocol import Channel
from fedmt_flower.device.runtime import TaskRuntime
from fedmt_flower.device.seat import Seat
from fedmt_flower.errors import EngineError, TaskError

log = logging.getLogger(__name__)

ToEngine = Channel[Orders]


def serve(channel: ToEngine) -> int:
    """Do what the engine says; return the exit code of the process."""
    received = channel.receive()
    if received is None or not isinstance(received.frame, Begin):
        return 1
    begin = received.frame
    die_with_parent()
    if os.getppid() != begin.parent:  # the engine ended before the line above
        return 1
    faulthandler.enable()
    faulthandler.register(TELL_WHERE)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        take_seat(begin.seat)
    except Exception as error:
        log.exception("task %s cannot run on %s", begin.task.name, begin.seat.device)
        channel.send(Failed(error=f"{begin.seat.device} cannot be used: {describe(error)}"))
        return 1
    channel.send(Ready())
    runtime = TaskRuntime(begin.task, begin.seat.device)
    measurer = Measurer(runtime)
    while (received := channel.receive()) is not None:
        match received.frame:
            case Do(job=job):
                measurer.forget()
                _do(job, received.fds[0], runtime, channel)
            case Appraise() | Rehearse() | Describe() | Rest() | Measure() | Cover() | Trace() as order:
                channel.send(measurer.answer(order))
            case _:
                break
    if begin.seat.device.startswith("cuda"):
        # MPS leaves undefined what becomes of other clients when one ends with work in flight.
        torch.cuda.synchronize()
    return 0


def take_seat(seat: Seat) -> None:
    """Set the environment of `seat` and initialise its device.

    Raises
    ------
    EngineError
        If the GPU does not show as many multiprocessors as the seat has: MPS does not enforce the budget.
    """
    os.environ.update(seat.environment)
    if not seat.device.startswith("cuda"):
        torch.set_num_threads(seat.level)
        return
    torch.cuda.synchronize(seat.device)  # makes the context: only then does MPS count this process
    visible = torch.cuda.get_device_properties(seat.device).multi_processor_count
    if visible != seat.level:
        raise EngineError(
            f"{seat.device} shows {visible} multiprocessors, expected {seat.level}: "
            "the budget is not enforced; see `fedmt doctor`"
        )


def _do(job: Job, file: int, runtime: TaskRuntime, channel: ToEngine) -> None:
    def tell(progress: Progress) -> None:
        channel.send(Advanced(task=progress.task, samples=progress.samples, total=progress.total))

    task = runtime.task.name
    try:
        try:
            weights = memory.read(file)
        finally:
            os.close(file)
        result = runtime.run(job, weights, tell)
        update = None if result.weights is None else memory.write(task, result.weights)
    except TaskError as error:
        log.exception("round %d failed", job.round)
        channel.send(Failed(error=str(error)))
        return
    except Exception as error:
        log.exception("round %d failed", job.round)
        channel.send(Failed(error=f"site {job.site!r}, task {task!r}: {describe(error)}"))
        return
    done = Done(result=replace(result, weights=None))
    if update is None:
        channel.send(done)
        return
    channel.send(done, [update])
    os.close(update)
