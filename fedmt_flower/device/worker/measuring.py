"""A task's own training step under measurement, inside the worker that runs it."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from fedmt_flower.device.ipc.frames import (
    Appraise,
    Appraised,
    Cover,
    Covered,
    Describe,
    Described,
    Failed,
    Measure,
    Measured,
    Rehearse,
    Rehearsed,
    Rest,
    Rested,
    Trace,
    Traced,
)
from fedmt_flower.device.ipc.job import Job
from fedmt_flower.device.ipc.steps import Kernel, Step
from fedmt_flower.device.training.faults import describe
from fedmt_flower.device.training.numerics import TF32, float32
from fedmt_flower.device.training.pace import AHEAD
from fedmt_flower.device.training.runtime import TaskRuntime
from fedmt_flower.device.training.trainer import Loop
from fedmt_flower.device.worker.features import device_features, product_peak, step_cost
from fedmt_flower.device.worker.inspection import appraise, pass_of
from fedmt_flower.domain.profile import StepKind
from fedmt_flower.domain.step import Precision
from fedmt_flower.errors import TaskError

log = logging.getLogger(__name__)

_LONGEST_NAME = 64
"""Characters of a kernel's name that are kept: template arguments go on for hundreds."""


Order = Appraise | Rehearse | Describe | Rest | Measure | Cover | Trace
Answer = Appraised | Rehearsed | Described | Rested | Measured | Covered | Traced


class Measurer:
    """Does what the frames for measuring ask for, in the worker whose task `runtime` runs."""

    def __init__(self, runtime: TaskRuntime) -> None:
        self._runtime = runtime
        self._stepper: Stepper | None = None
        self._job: Job | None = None

    def answer(self, order: Order) -> Answer | Failed:
        """What came of `order`; a failure is one line, its traceback goes to the log."""
        try:
            return self._do(order)
        except Exception as error:
            log.exception("%s failed", type(order).__name__)
            task = self._runtime.task.name
            text = str(error) if isinstance(error, TaskError) else f"task {task!r}: {describe(error)}"
            return Failed(error=text)

    def forget(self) -> None:
        """Let go of what the last rehearsal left: a round takes the task's model, and memory for its own."""
        self._stepper = self._job = None

    def _do(self, order: Order) -> Answer:
        match order:
            case Appraise(job=job):
                return appraise(self._runtime, job)
            case Rehearse():
                return self._rehearse(order)
            case Describe():
                return self._describe(order)
            case Rest(forget=forget):
                if forget:
                    self.forget()
                return self._rest()
        if self._stepper is None:
            raise TaskError(f"task {self._runtime.task.name!r}: asked to measure before any rehearsal")
        match order:
            case Measure(start=start, end=end):
                return Measured(steps=self._stepper.during(start, end))
            case Cover(start=start, samples=samples):
                begun, ended = self._stepper.over(start, samples)
                return Covered(begun=begun, ended=ended)
            case Trace(start=start, end=end):
                return Traced(kernels=self._stepper.traced(start, end))

    def _rehearse(self, order: Rehearse) -> Rehearsed:
        began = time.monotonic()
        if order.autotune is not None:
            torch.backends.cudnn.benchmark = order.autotune
        on_gpu = self._runtime.device.type == "cuda"
        if self._stepper is None or self._job != order.job:
            self.forget()
            if on_gpu:
                # What the last rehearsal held shall not count for this one.
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(self._runtime.device)
            if order.evaluate:
                self._runtime.glance(order.job)
            self._stepper, self._job = Stepper(self._runtime, order.job), order.job
        self._stepper.rehearse(order.steps)
        arithmetic = float32()
        return Rehearsed(
            seconds=time.monotonic() - began,
            memory_bytes=torch.cuda.max_memory_reserved() if on_gpu else 0,
            numerics={
                "cudnn.allow_tf32": arithmetic.convolutions == TF32,
                "matmul.allow_tf32": arithmetic.products == TF32,
                "cudnn.benchmark": torch.backends.cudnn.benchmark,
                "cudnn.deterministic": torch.backends.cudnn.deterministic,
            },
        )

    def _describe(self, order: Describe) -> Described:
        stepper, job = self._stepper, order.job
        if stepper is not None:
            cost = step_cost(stepper.plain_step)
        elif job is not None:
            cost = step_cost(lambda: pass_of(self._runtime, job, order.batch))
        else:
            raise TaskError(f"task {self._runtime.task.name!r}: asked to describe before any rehearsal")
        device = device_features(self._runtime.device) if order.device else None
        step, precision = StepKind.EAGER, Precision.FLOAT32
        if stepper is not None:
            step, precision = stepper.kind, stepper.precision
        peak = product_peak(self._runtime.device, precision) if order.peak else None
        self._rest()
        return Described(flops=cost.flops, traffic=cost.traffic, device=device, peak=peak, step=step)

    def _rest(self) -> Rested:
        if self._stepper is not None:
            self._stepper.release()
        self._runtime.release()
        if self._runtime.device.type == "cuda":
            torch.cuda.empty_cache()
        return Rested()


class Stepper:
    """Takes the training steps of `job` on the runtime's device, for as long as it is asked to.

    The job's ``epochs`` should be many: steps end with the last of them. TaskError, as in a round, if model,
    data or training cannot be set up.
    """

    def __init__(self, runtime: TaskRuntime, job: Job) -> None:
        self._device = runtime.device
        self._trainer = runtime.trainer(job)
        ours = self._trainer if isinstance(self._trainer, Loop) else None
        self._ours = ours
        self.plain_step = ours.plain_step if ours else self._trainer.step

    @property
    def kind(self) -> StepKind:
        """How steps reach the device."""
        return self._ours.step_kind if self._ours else StepKind.EAGER

    @property
    def precision(self) -> Precision:
        """The arithmetic of its steps; a user's own trainer is taken to have torch's usual one."""
        return self._ours.precision if self._ours else Precision.FLOAT32

    def release(self) -> None:
        """Give back memory that the next step can take again."""
        if self._ours:
            self._ours.release()

    def rehearse(self, steps: int) -> None:
        """Take `steps` steps and wait for them: memory is then held and every kernel chosen."""
        for _ in self._steps(time.monotonic(), samples=None, end=None, at_most=steps):
            continue

    def during(self, start: float, end: float) -> tuple[Step, ...]:
        """The steps from the moment `start` on; the last one begins before `end`."""
        return tuple(self._steps(start, samples=None, end=end))

    def over(self, start: float, samples: int) -> tuple[float, float]:
        """Train on `samples` samples (rounded up to a batch) from `start` on; when that began and ended."""
        _wait_until(start)
        begun = time.monotonic()
        finished = [step.finished for step in self._steps(begun, samples=samples, end=None)]
        return begun, finished[-1]

    def traced(self, start: float, end: float) -> tuple[Kernel, ...]:
        """As `during`, and every kernel that ran."""
        on_gpu = self._device.type == "cuda"
        activity = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
        # Kineto's clock counts from the epoch, everything else here from the boot.
        offset = time.time() - time.monotonic()
        with torch.profiler.profile(activities=[activity]) as profile:
            self.during(start, end)
        results = profile.profiler.kineto_results
        wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
        return tuple(
            Kernel(
                name=event.name()[:_LONGEST_NAME],
                start=event.start_ns() / 1e9 - offset,
                seconds=event.duration_ns() / 1e9,
            )
            for event in results.events()
            if event.device_type() == wanted and event.duration_ns() > 0
        )

    def _steps(
        self, start: float, *, samples: int | None, end: float | None, at_most: int | None = None
    ) -> Iterator[Step]:
        _wait_until(start)
        pending: deque[tuple[torch.cuda.Event | float, int]] = deque()
        used = taken = 0
        while (
            (end is None or time.monotonic() < end)
            and (samples is None or used < samples)
            and (at_most is None or taken < at_most)
        ):
            size = self._trainer.step()
            if size == 0:
                break
            used, taken = used + size, taken + 1
            pending.append((self._mark(), size))
            if len(pending) > AHEAD:
                yield _finish(*pending.popleft())
        while pending:
            yield _finish(*pending.popleft())

    def _mark(self) -> torch.cuda.Event | float:
        if self._device.type != "cuda":
            return time.monotonic()
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event


def _finish(mark: torch.cuda.Event | float, samples: int) -> Step:
    if isinstance(mark, float):
        return Step(finished=mark, samples=samples)
    mark.synchronize()
    return Step(finished=time.monotonic(), samples=samples)


def _wait_until(moment: float) -> None:
    """Return at `moment` of the monotonic clock: asleep but for the last millisecond."""
    while (left := moment - time.monotonic()) > 0:
        if left > 1e-3:
            time.sleep(left - 1e-3)
