"""Work on a device made into something to replay: CUDA graphs, and what torch needs around them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import torch

from fedmt_flower.device.training.faults import describe
from fedmt_flower.errors import FedMTError

log = logging.getLogger(__name__)

_SYNCHRONIZING = "called a synchronizing CUDA operation"
_PROTOTYPE = "Synchronization debug mode is a prototype"


class NotRecorded(FedMTError):
    """A step of which there can be no graph; the text says why."""


class Recorder(Protocol):
    """What turns work on a device into something to replay."""

    def obstacle(self, device: torch.device) -> str:
        """Why it records nothing on `device`; empty if it does."""
        ...

    def aside(self) -> AbstractContextManager[object]:
        """Where work goes that a recording will repeat; the surrounding work waits for it."""
        ...

    def watch(self) -> AbstractContextManager[list[str]]:
        """Lists, once it is left, where the host waited for the device meanwhile."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Something that does `work`, which is not done now, each time; NotRecorded if that cannot be."""
        ...


class CudaRecorder:
    """Records CUDA graphs."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def obstacle(self, device: torch.device) -> str:
        """Why it records nothing on `device`; empty if it does."""
        return (
            "" if device.type == "cuda" else f"graphs are recorded on NVIDIA GPUs, not on the {device.type}"
        )

    @contextmanager
    def aside(self) -> Iterator[None]:
        """The stream that is recorded: autograd must have seen no other before (torch's rule)."""
        here, stream = torch.cuda.current_stream(), self._recorded()
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            yield
        here.wait_stream(stream)

    @contextmanager
    def watch(self) -> Iterator[list[str]]:
        """Lists, once it is left, the lines at which torch says that the host waited."""
        waits: list[str] = []
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield waits
            finally:
                torch.cuda.set_sync_debug_mode(before)
        for warning in said:
            text = str(warning.message)
            if _SYNCHRONIZING in text:
                waits.append(f"{Path(warning.filename).name}:{warning.lineno}")
            elif _PROTOTYPE not in text:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """A graph's `replay`; see `Recorder.record`."""
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        here = torch.cuda.current_stream()
        cause = ""
        try:
            # Other threads of the process, such as a library's, may use CUDA as they like meanwhile.
            with torch.cuda.graph(
                graph, pool=pool, stream=self._recorded(), capture_error_mode="thread_local"
            ):
                try:
                    work()
                except Exception as error:
                    # Its text alone: the exception would keep this frame, and so the pool's tensors, alive.
                    cause = describe(error)
                    raise
        except Exception as error:
            self._stream = None
            _recover(pool, here)
            raise NotRecorded(f"recording it raised {cause or describe(error)}") from error
        return graph.replay

    def _recorded(self) -> torch.cuda.Stream:
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        return self._stream


def _recover(pool: tuple[int, int], stream: torch.cuda.Stream) -> None:
    """Have torch forget a recording that failed and go on in `stream`, none of which it does by itself.

    By the source of 2.11, its context manager leaves the recorded stream current; its allocator goes on
    believing that a graph is recorded, and asserts that none is when memory is given back; its generator
    refuses the next draw. Later versions tell the allocator.
    """
    torch.cuda.set_stream(stream)
    device = torch.cuda.current_device()
    try:
        torch._C._cuda_endAllocateToPool(device, pool)
    except RuntimeError as error:
        log.debug("the allocator knows: %s", error)
    else:
        torch._C._cuda_releasePool(device, pool)
    generator = torch.cuda.default_generators[device]
    generator.graphsafe_set_state(generator.clone_state())
    torch.cuda.synchronize()
