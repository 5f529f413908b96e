"""Training steps as CUDA graphs: one launch for a whole step, where a step lets itself be recorded.

The first step of each round is always taken kernel by kernel: it gives the optimizer its state as only a
first step does. The second, in a round that has no graph yet, is watched for what no graph can repeat. Then
the step is recorded, which runs nothing, and replayed from there on. All of them are the round's own
steps, so nothing has to be set back; and later rounds, whose values are copied to where the graph expects
them, replay the same graph.
"""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedmt_flower.device.training.batches import Batch, Data, Selection, gathered, is_tensors, rows
from fedmt_flower.device.training.faults import describe
from fedmt_flower.device.training.numerics import float32
from fedmt_flower.device.training.training_step import TrainingStep
from fedmt_flower.domain.profile import StepKind
from fedmt_flower.domain.step import StepChoice
from fedmt_flower.errors import FedMTError

log = logging.getLogger(__name__)

Signature = tuple[object, ...]

_FEWEST = 3
"""Whole batches of a round: the first and the second step are taken kernel by kernel."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StepGraph:
    """A recorded step: it reads `inputs`, changes the tensors of `step`, and fits what `signature` says."""

    step: TrainingStep
    inputs: tuple[Tensor, ...]
    signature: Signature
    replay: Callable[[], None]


class StepGraphs:
    """The graph of one task's step, kept from round to round; the last one that was needed."""

    def __init__(self, recorder: Recorder | None = None) -> None:
        self.recorder: Recorder = recorder or CudaRecorder()
        self._kept: StepGraph | None = None
        self._watched: set[Signature] = set()
        self._refused: dict[Signature, str] = {}
        self._told = ""

    def find(self, signature: Signature) -> StepGraph | None:
        """The graph of `signature`, if it is kept."""
        return self._kept if self._kept is not None and self._kept.signature == signature else None

    def refusal(self, signature: Signature) -> str:
        """Why there can be no graph of `signature`, as far as is known."""
        return self._refused.get(signature, "")

    def watched(self, signature: Signature) -> bool:
        """Whether a step of `signature` was watched, and nothing against a graph was seen."""
        return signature in self._watched

    def watch(self, step: TrainingStep, take: Callable[[], None], signature: Signature) -> str:
        """Take a step by `take`; why there can be no graph of it, empty if there may be."""
        before = _host_state(step)
        with self.recorder.watch() as waits:
            take()
        after = _host_state(step)
        reason = _difference(before, after)
        if waits:
            reason = f"the host waits for the device at {waits[0]}"
        if reason:
            self._refused[signature] = reason
        else:
            self._watched.add(signature)
        return reason

    def record(self, step: TrainingStep, selection: Selection, signature: Signature) -> StepGraph:
        """A graph of `step` on batches like `selection`; NotRecorded if there can be none."""
        self.drop()
        samples = len(selection.index)
        inputs = tuple(t.new_empty((samples, *t.shape[1:])) for t in selection.tensors)
        selection.gather_into(inputs)
        try:
            replay = self.recorder.record(lambda: step.take(inputs, samples))
        except NotRecorded as error:
            self._refused[signature] = str(error)
            raise
        finally:
            step.optimizer.zero_grad(set_to_none=True)
        self._kept = StepGraph(step=step, inputs=inputs, signature=signature, replay=replay)
        return self._kept

    def forget(self, step: TrainingStep) -> None:
        """Drop the graph if it is one of `step`, whose tensors are no longer those recorded."""
        if self._kept is not None and self._kept.step is step:
            self.drop()

    def drop(self) -> None:
        """Drop the graph; its memory can be had again."""
        self._kept = None

    def tell(self, reason: str) -> None:
        """Log why steps are taken kernel by kernel, unless that was the last thing told."""
        if reason != self._told:
            log.info("steps are taken kernel by kernel: %s", reason)
        self._told = reason


class Steps:
    """Takes the steps of one round, as a graph where its rules and its step allow.

    Parameters
    ----------
    step
        The step; what it changes may move to other tensors, see `step`.
    graphs
        What was recorded in earlier rounds.
    obstacle
        Why this round takes no graph, as far as is known before its first step.
    batch_size
        The samples of a whole batch; others are taken kernel by kernel.
    device
        Where batches go.

    Raises
    ------
    NotRecorded
        Here or from `take`, if the rules ask for a graph and there can be none.
    """

    def __init__(
        self, step: TrainingStep, graphs: StepGraphs, obstacle: str, batch_size: int, device: torch.device
    ) -> None:
        self.step = step
        self.reason = ""
        """Why no graph is taken; empty where one is, or where the rules want none."""
        self._graphs = graphs
        self._graph: StepGraph | None = None
        self._batch_size = batch_size
        self._device = device
        self._begun = False
        self._wanted = step.rules.step is not StepChoice.EAGER
        if self._wanted and obstacle:
            self._give_up(obstacle)
        if self._wanted:
            _make_capturable(step.optimizer)

    @property
    def kind(self) -> StepKind:
        """How steps reach the device, but for the few before a recording."""
        return StepKind.GRAPH if self._wanted else StepKind.EAGER

    def go_on(self, begun: bool) -> None:
        """Take note that the step's tensors were replaced, by those of a round that has `begun` elsewhere."""
        self._begun, self._graph = begun, None
        self._graphs.forget(self.step)
        if self._wanted:
            _make_capturable(self.step.optimizer)

    def release(self) -> None:
        """Give the graph's memory back; the next step records it again."""
        self._graph = None
        self._graphs.drop()

    def take(self, drawn: Selection | Batch) -> int:
        """Take one step; returns its samples."""
        samples = rows(drawn)
        whole = isinstance(drawn, Selection) and samples == self._batch_size
        if self._wanted and self._begun and whole:
            self._take_whole(drawn)
        else:
            self.take_plainly(drawn)
        return samples

    def take_plainly(self, drawn: Selection | Batch) -> None:
        """Take one step kernel by kernel."""
        with self._graphs.recorder.aside() if self._wanted else nullcontext():
            self.step.take(gathered(drawn, self._device), rows(drawn))
        self._begun = True

    def _take_whole(self, selection: Selection) -> None:
        signature = None if self._graph else _signature(self.step, selection)
        if signature is not None:
            self._graph = self._find(selection, signature)
        if self._graph is not None:
            selection.gather_into(self._graph.inputs)
            self._graph.replay()
        elif signature is not None and self._wanted:
            take = partial(self.take_plainly, selection)
            if reason := self._graphs.watch(self.step, take, signature):
                self._give_up(reason)
        else:
            self.take_plainly(selection)

    def _find(self, selection: Selection, signature: Signature) -> StepGraph | None:
        """The graph to go on with: kept, or recorded now if a step was watched and may be."""
        if reason := self._graphs.refusal(signature):
            self._give_up(reason)
            return None
        if (kept := self._graphs.find(signature)) is not None:
            if kept.step is not self.step:
                kept.step.adopt(self.step)
                self.step = kept.step
            return kept
        if not self._graphs.watched(signature):
            return None
        try:
            return self._graphs.record(self.step, selection, signature)
        except NotRecorded as error:
            self._give_up(str(error))
            return None

    def _give_up(self, reason: str) -> None:
        if self.step.rules.step is StepChoice.GRAPH:
            raise NotRecorded(f"step 'graph' cannot be had: {reason}; take 'auto' or 'eager'")
        self._wanted, self.reason = False, reason
        self._graphs.tell(reason)


def obstacle(
    recorder: Recorder,
    device: torch.device,
    data: Data,
    optimizer: torch.optim.Optimizer,
    whole_batches: int,
) -> str:
    """Why a round takes no graph, as far as is known before its first step; empty if it may take one."""
    if reason := recorder.obstacle(device):
        return reason
    if not is_tensors(data):
        return f"its data is a {type(data).__name__}, not tensors in memory"
    if any(part.device != device for part in data):
        return "its data does not fit on the device"
    if whole_batches < _FEWEST:
        return f"a round of {whole_batches} whole batches is too short"
    return _uncapturable(optimizer)


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


@dataclass(frozen=True, slots=True)
class _HostState:
    """What a step may change on the host, where no graph would change it."""

    generators: tuple[object, ...]
    attributes: tuple[tuple[str, str, object], ...]
    addresses: tuple[int, ...]


def _host_state(step: TrainingStep) -> _HostState:
    legacy = np.random.get_state(legacy=False)
    return _HostState(
        generators=(
            torch.get_rng_state().numpy().tobytes(),
            random.getstate(),
            repr(legacy["state"]["pos"]),
            legacy["state"]["key"].tobytes(),
        ),
        attributes=tuple(
            (name, key, value)
            for name, module in step.model.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, (bool, int, float, str))
        ),
        addresses=(*_addresses(step.model), *(tensor.data_ptr() for tensor in step.tensors())),
    )


def _difference(before: _HostState, after: _HostState) -> str:
    if before.generators != after.generators:
        return "each step draws from a generator of the host, and a graph would repeat one draw"
    changed = set(after.attributes) - set(before.attributes)
    if changed or len(before.attributes) != len(after.attributes):
        module, key = min((name, key) for name, key, _ in changed) if changed else ("", "an attribute")
        return f"each step changes {'.'.join(filter(None, (module, key)))} of the model on the host"
    if before.addresses != after.addresses:
        return "each step puts new tensors in the place of the model's or the optimizer's"
    return ""


def _addresses(model: nn.Module) -> Iterator[int]:
    yield from (tensor.data_ptr() for tensor in model.parameters())
    yield from (tensor.data_ptr() for tensor in model.buffers())


def _signature(step: TrainingStep, selection: Selection) -> Signature:
    """What a graph has built in: two steps of one signature differ in the values of tensors alone."""
    settings = tuple(
        tuple((name, repr(value)) for name, value in sorted(group.items()) if not _is_data(name, value))
        for group in step.optimizer.param_groups
    )
    return (
        id(step.model),
        tuple(_addresses(step.model)),
        tuple(weight.data_ptr() for weight in step.weights),
        id(step.objective),
        type(step.optimizer),
        settings,
        tuple((tuple(tensor.shape), tensor.dtype) for tensor in step.tensors()),
        step.mu,
        step.rules,
        tuple((len(selection.index), *tensor.shape[1:], tensor.dtype) for tensor in selection.tensors),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        float32(),
    )


def _is_data(name: str, value: object) -> bool:
    return name == "params" or isinstance(value, Tensor)


def _uncapturable(optimizer: torch.optim.Optimizer) -> str:
    if type(optimizer) is torch.optim.SGD or all("capturable" in group for group in optimizer.param_groups):
        return ""
    kind = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
    return f"its optimizer {kind} has no `capturable`: part of its state may lie on the host"


def _make_capturable(optimizer: torch.optim.Optimizer) -> None:
    """Have `optimizer` keep on the device whatever changes from step to step, and from round to round."""
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True
        takes_tensor = type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) or group.get("fused")
        if takes_tensor and group["params"]:
            device = group["params"][0].device
            # A clone, since a loaded one is a view of all that was loaded, copied with it.
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device).clone()
        for weight in group["params"]:
            # A process that took plain steps only may have counted them on the host.
            if "step" in (held := optimizer.state.get(weight, {})):
                held["step"] = torch.as_tensor(held["step"], dtype=torch.float32, device=weight.device)
