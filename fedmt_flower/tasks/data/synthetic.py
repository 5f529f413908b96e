"""Made-up data: for benchmarks only, where speed counts and learning does not."""

from __future__ import annotations

import functools

import torch

from fedmt_flower.tasks.data.partition import Whole, partitioned


@partitioned
@functools.lru_cache(maxsize=1)
def synthetic(
    samples: int = 2048, test_samples: int = 256, channels: int = 3, size: int = 32, num_classes: int = 10
) -> Whole:
    """Normal noise of shape (`channels`, `size`, `size`) with random labels, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    total = samples + test_samples
    inputs = torch.randn(total, channels, size, size, generator=generator)
    labels = torch.randint(num_classes, (total,), generator=generator)
    return Whole((inputs[:samples], labels[:samples]), (inputs[samples:], labels[samples:]), labels[:samples])
