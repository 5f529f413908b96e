"""What a task has to do on a site, told inside the worker that will do it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from fedmt_flower.device.ipc.frames import Appraised
from fedmt_flower.device.ipc.job import DEFAULT_BATCH, Job
from fedmt_flower.device.training.batches import batches, rows
from fedmt_flower.device.training.binding import defaults, lookup, names, resolve_callable
from fedmt_flower.device.training.runtime import TaskRuntime
from fedmt_flower.domain.task import TaskKind


def appraise(runtime: TaskRuntime, job: Job) -> Appraised:
    """Load the data of a job's site and tell what there is to do.

    Raises
    ------
    TaskError
        If the data cannot be loaded.
    """
    splits = runtime.splits(job)
    known, asked = names(job.parameters), {}
    if runtime.task.kind is TaskKind.WHOLE_CALL:
        asked = defaults(resolve_callable(runtime.task, "train"))
        adapts = "batch_size" in asked
    else:
        # The package's loop takes batches from tensors and data sets; a loader brings its own, and a
        # trainer of the user's is known to have a batch size only where the task names one.
        adapts = "batch_size" in known if runtime.task.trainer else not isinstance(splits.train, DataLoader)
    loaded = splits.train.batch_size if isinstance(splits.train, DataLoader) else None
    batch = loaded or lookup(known, "batch_size") or lookup(asked, "batch_size") or DEFAULT_BATCH
    epochs = lookup(known, "epochs") or lookup(asked, "epochs") or 1
    return Appraised(
        samples=int(epochs) * splits.train_examples,
        examples=splits.train_examples,
        batch=int(batch),
        adapts=adapts,
    )


def pass_of(runtime: TaskRuntime, job: Job, batch_size: int) -> int:
    """Take one batch of a job's data through its model and back; the samples of it.

    It stands for the step of a task whose own `train` takes a round as a whole. What is differentiated is
    the sum of what the model gives: a loss adds little to that.

    Raises
    ------
    TaskError
        If the model cannot be called with the first tensor of a batch.
    """
    model, splits = runtime.model(job), runtime.splits(job)
    with runtime.blame("model"):
        batch = next(batches(splits.train, batch_size, runtime.device))
        model.train()
        _sum(model(_first(batch))).backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)
    return rows(batch)


def _first(batch: Any) -> Tensor:
    """The first tensor of a batch, in whatever it is wrapped."""
    while not isinstance(batch, Tensor):
        batch = next(iter(batch.values() if isinstance(batch, Mapping) else batch))
    return batch


def _sum(output: Any) -> Tensor:
    """The sum of all tensors of a model's output that can be differentiated."""
    leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return torch.stack([leaf.sum() for leaf in leaves if leaf.requires_grad]).sum()
