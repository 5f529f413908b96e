"""A task's data, whichever of its forms it comes in, and batches of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

Data = DataLoader[Any] | Dataset[Any] | tuple[Tensor, ...]
"""One split of a task's data."""
Batch = Any
"""A tensor, or a tuple, list or mapping of tensors; the first dimension of each counts samples."""


@dataclass(frozen=True, slots=True)
class Selection:
    """A batch of `tensors` in memory, not gathered yet: the rows that `index`, beside them, names."""

    tensors: tuple[Tensor, ...]
    index: Tensor

    def gather(self) -> tuple[Tensor, ...]:
        """The batch."""
        return tuple(tensor[self.index] for tensor in self.tensors)

    def gather_into(self, places: Sequence[Tensor]) -> None:
        """Put the batch into `places`, one for each tensor."""
        for tensor, place in zip(self.tensors, places, strict=True):
            torch.index_select(tensor, 0, self.index, out=place)


def count(data: Data) -> int:
    """Samples of `data`; of a loader, those that its sampler draws.

    Raises
    ------
    TypeError
        If they cannot be counted: an iterable-style data set has no length.
    """
    if is_tensors(data):
        return len(data[0])
    sized: Any = data.sampler if isinstance(data, DataLoader) else data
    return len(sized)


def is_tensors(data: object) -> TypeGuard[tuple[Tensor, ...]]:
    """Whether `data` is a tuple of tensors, held in memory."""
    return isinstance(data, tuple) and bool(data) and all(isinstance(part, Tensor) for part in data)


def in_memory(data: Data) -> Data:
    """`data` as a tuple of tensors where it is nothing else underneath; else `data` itself.

    Other data sets stay what they are: their transforms may be random, one draw per access.
    """
    if isinstance(data, TensorDataset):
        return tuple(data.tensors)
    if isinstance(data, Subset):
        whole = in_memory(data.dataset)
        if is_tensors(whole):
            chosen = torch.as_tensor(data.indices)
            return tuple(part[chosen] for part in whole)
    return data


def resident(data: Data, device: torch.device) -> Data:
    """`data` moved to `device` if it is in memory and takes less than half of what is free there."""
    data = in_memory(data)
    if device.type != "cuda" or not is_tensors(data):
        return data
    free, _ = torch.cuda.mem_get_info(device)
    if sum(part.numel() * part.element_size() for part in data) > free // 2:
        return tuple(part.pin_memory() for part in data)
    return tuple(part.to(device) for part in data)


def generators(data: Data) -> list[torch.Generator]:
    """The generators that a loader draws from, other than the global one."""
    if not isinstance(data, DataLoader):
        return []
    holders = (data, data.sampler, data.batch_sampler, getattr(data.batch_sampler, "sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    unique = {id(generator): generator for generator in found if isinstance(generator, torch.Generator)}
    return list(unique.values())


def draws(
    data: Data,
    batch_size: int,
    device: torch.device,
    shuffle: torch.Generator | None = None,
    skip: int = 0,
) -> Iterator[Selection | Batch]:
    """One epoch of `data`: a `Selection` of data in memory for each batch, of other data the batch itself.

    A last batch of a single sample joins the batch before it: BatchNorm cannot train on one value, and
    every epoch stays as long as the data. A ``DataLoader`` makes its own batches, in its own order.

    Parameters
    ----------
    data
        What to draw from.
    batch_size
        Samples of a batch, 1 or more; unused with a ``DataLoader``.
    device
        Where batches go.
    shuffle
        Draws the order; None keeps that of `data`.
    skip
        Leave out so many batches at the start.
    """
    if isinstance(data, DataLoader):
        source: Iterable[Batch] = data
    else:
        n = count(data)
        order = torch.arange(n) if shuffle is None else torch.randperm(n, generator=shuffle)
        sizes = _sizes(n, batch_size)
        if is_tensors(data):
            # One transfer of the order for an epoch, none for a batch.
            for part in torch.split(_beside(data[0], order), sizes)[skip:]:
                yield Selection(data, part)
            return
        parts = torch.split(order, sizes)[skip:]
        source = DataLoader(cast(Dataset[Any], data), batch_sampler=[part.tolist() for part in parts])
        skip = 0
    for position, batch in enumerate(source):
        if position >= skip:
            yield to_device(batch, device)


def batches(data: Data, batch_size: int, device: torch.device) -> Iterator[Batch]:
    """One epoch of `data` in its own order, on `device`; sizes as `draws` has them."""
    return (gathered(drawn, device) for drawn in draws(data, batch_size, device))


def gathered(drawn: Selection | Batch, device: torch.device) -> Batch:
    """The batch that was drawn, on `device`."""
    return to_device(drawn.gather(), device) if isinstance(drawn, Selection) else drawn


def whole_batches(data: Data, batch_size: int) -> int:
    """Batches of exactly `batch_size` samples in an epoch of tensors; 0 of other data."""
    return _sizes(count(data), batch_size).count(batch_size) if is_tensors(data) else 0


def rows(batch: Selection | Batch) -> int:
    """Samples of `batch`."""
    if isinstance(batch, Selection):
        return len(batch.index)
    while not isinstance(batch, Tensor):
        batch = next(iter(batch.values() if isinstance(batch, Mapping) else batch))
    return len(batch)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """`batch` with every tensor in it on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: to_device(part, device) for name, part in batch.items()}
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return tuple(to_device(part, device) for part in batch)
    return batch


def _beside(data: Tensor, order: Tensor) -> Tensor:
    """`order` where `data` is; the host need not wait for a GPU to take it."""
    return order.pin_memory().to(data.device, non_blocking=True) if data.is_cuda else order


def _sizes(n: int, batch_size: int) -> list[int]:
    sizes = [batch_size] * (n // batch_size) + ([n % batch_size] if n % batch_size else [])
    if len(sizes) > 1 and sizes[-1] == 1 < batch_size:
        sizes[-2:] = [batch_size + 1]
    return sizes
