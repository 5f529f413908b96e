"""A worker: the process that runs one task in its seat on the device.

It is forked by the zygote and does what the engine says until it is told to leave. What the user's code
prints goes to the worker's own log, as do the tracebacks of failed jobs.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch

from fedmt_flower.device.contract import Progress
from fedmt_flower.device.ipc import memory
from fedmt_flower.device.ipc.frames import (
    Advanced,
    Appraise,
    Begin,
    Continue,
    Cover,
    Describe,
    Do,
    Done,
    Failed,
    Measure,
    Offer,
    Orders,
    Pause,
    Ready,
    Rehearse,
    Relieve,
    Rest,
    Stand,
    Standing,
    Trace,
)
from fedmt_flower.device.ipc.job import Job, JobResult
from fedmt_flower.device.ipc.prctl import TELL_WHERE, die_with_parent
from fedmt_flower.device.ipc.protocol import Channel
from fedmt_flower.device.ipc.seat import Seat
from fedmt_flower.device.training.execution import HandedOver, OnProgress
from fedmt_flower.device.training.faults import describe
from fedmt_flower.device.training.runtime import TaskRuntime
from fedmt_flower.device.worker.measuring import Measurer
from fedmt_flower.device.worker.relay import Relay
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
    measurer, relay = Measurer(runtime), Relay(channel, runtime)

    def tell(progress: Progress) -> None:
        channel.send(Advanced(task=progress.task, samples=progress.samples, total=progress.total))

    while (received := channel.receive()) is not None:
        match received.frame:
            case Do(job=job):
                measurer.forget()
                where = f"site {job.site!r}, task {begin.task.name!r}"
                (weights,) = received.fds
                # A model is as long after training as before.
                size = os.fstat(weights).st_size if job.mode.trains else 0
                try:
                    _answer(channel, where, partial(_do, job, weights, runtime, relay, tell), size)
                finally:
                    os.close(weights)
                relay.forget()
            case Stand(job=job) as order:
                measurer.forget()
                where = f"site {job.site!r}, task {begin.task.name!r}"
                _answer(channel, where, partial(relay.stand, order))
            case Continue() as order:
                file = received.fds[0] if received.fds else None
                _answer(channel, f"task {begin.task.name!r}", partial(relay.go_on, order, file, tell))
                relay.forget()
            case Offer() | Pause():
                log.info("asked to hand a job over that is done")
            case Relieve():
                relay.forget()
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


def _do(job: Job, file: int, runtime: TaskRuntime, relay: Relay, on_progress: OnProgress) -> JobResult:
    return runtime.run(job, memory.read(file), on_progress, relay.between)


def _answer(channel: ToEngine, where: str, work: Callable[[], JobResult | Standing], size: int = 0) -> None:
    """Do `work` and send what came of it, with weights of about `size` bytes.

    A failure is one line, its traceback goes to the log.
    """
    with ExitStack() as drafts:
        try:
            draft = drafts.enter_context(memory.Draft(where, size))
            came = work()
            trained = came.weights if isinstance(came, JobResult) else None
            files = [] if trained is None else [draft.finish(trained)]
        except HandedOver:
            return
        except TaskError as error:
            log.exception("%s failed", where)
            channel.send(Failed(error=str(error)))
            return
        except Exception as error:
            log.exception("%s failed", where)
            channel.send(Failed(error=f"{where}: {describe(error)}"))
            return
        channel.send(Done(result=replace(came, weights=None)) if isinstance(came, JobResult) else came, files)
