"""Training steps as CUDA graphs: one launch for a whole step, where a step lets itself be recorded.

The first step of each round is always taken kernel by kernel: it gives the optimizer its state as only a
first step does. The second, in a round that has no graph yet, is watched for what no graph can repeat. Then
the step is recorded, which runs nothing, and replayed from there on. All of them are the round's own
steps, so nothing has to be set back; and later rounds, whose values are copied to where the graph expects
them, replay the same graph.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fedmt_flower.device.training.batches import Batch, Selection, gathered, rows
from fedmt_flower.device.training.capturable import (
    Signature,
    host_state,
    make_capturable,
    signature_of,
    unrepeatable,
)
from fedmt_flower.device.training.convolutions import kernels_at_hand
from fedmt_flower.device.training.recording import CudaRecorder, NotRecorded, Recorder
from fedmt_flower.device.training.training_step import TrainingStep
from fedmt_flower.domain.profile import StepKind
from fedmt_flower.domain.step import StepChoice

log = logging.getLogger(__name__)


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
        before = host_state(step)
        with self.recorder.watch() as waits:
            take()
        after = host_state(step)
        reason = unrepeatable(before, after)
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
        self._most = 0
        self._device = device
        self._begun = False
        self._wanted = step.rules.step is not StepChoice.EAGER
        if self._wanted and obstacle:
            self._give_up(obstacle)
        if self._wanted:
            make_capturable(step.optimizer)

    @property
    def kind(self) -> StepKind:
        """How steps reach the device, but for the few before a recording."""
        return StepKind.GRAPH if self._wanted else StepKind.EAGER

    def go_on(self, begun: bool) -> None:
        """Take note that the step's tensors were replaced, by those of a round that has `begun` elsewhere."""
        self._begun, self._graph = begun, None
        self._graphs.forget(self.step)
        if self._wanted:
            make_capturable(self.step.optimizer)

    def release(self) -> None:
        """Give the graph's memory back; the next step records it again."""
        self._graph = None
        self._graphs.drop()

    def take(self, drawn: Selection | Batch) -> int:
        """Take one step; returns its samples."""
        samples = rows(drawn)
        if not self._is_whole(drawn, samples):
            with kernels_at_hand(self.step.rules.memory_format):
                self.take_plainly(drawn)
        elif self._wanted and self._begun and isinstance(drawn, Selection):
            self._take_whole(drawn)
        else:
            self.take_plainly(drawn)
        return samples

    def take_plainly(self, drawn: Selection | Batch) -> None:
        """Take one step kernel by kernel."""
        with self._graphs.recorder.aside() if self._wanted else nullcontext():
            self.step.take(gathered(drawn, self._device), rows(drawn))
        self._begun = True

    def _is_whole(self, drawn: Selection | Batch, samples: int) -> bool:
        """Whether most batches are of this size, as the last of an epoch, even of one more, is not."""
        if isinstance(drawn, Selection):
            return samples == self._batch_size
        # A loader's batches have a size of its own.
        self._most = max(self._most, samples)
        return samples == self._most

    def _take_whole(self, selection: Selection) -> None:
        signature = None if self._graph else signature_of(self.step, selection)
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
