"""CIFAR and Fashion-MNIST, from a folder; nothing here downloads."""

from __future__ import annotations

import functools
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from fedmt_flower.errors import ConfigError
from fedmt_flower.tasks.data.partition import Whole, partitioned

_DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
_CIFAR10_MEAN, _CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_CIFAR100_MEAN, _CIFAR100_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
_FASHION_MEAN, _FASHION_STD = (0.2860,), (0.3530,)


@partitioned
@functools.lru_cache(maxsize=1)
def cifar10(root: str = "data") -> Whole:
    """60 000 colour images of shape (3, 32, 32), 10 classes; from ``ROOT/cifar-10-batches-py``."""
    archive = "cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html"
    return _cifar(datasets.CIFAR10, root, archive, _scale(_CIFAR10_MEAN, _CIFAR10_STD))


@partitioned
@functools.lru_cache(maxsize=1)
def cifar100(root: str = "data") -> Whole:
    """60 000 colour images of shape (3, 32, 32), 100 classes; from ``ROOT/cifar-100-python``."""
    archive = "cifar-100-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html"
    return _cifar(datasets.CIFAR100, root, archive, _scale(_CIFAR100_MEAN, _CIFAR100_STD))


@partitioned
@functools.lru_cache(maxsize=1)
def fashion_mnist(root: str = "data") -> Whole:
    """70 000 grey images of clothes, 28×28 padded to (1, 32, 32), 10 classes.

    From ``ROOT/FashionMNIST/raw``, else from where Debian's ``dataset-fashion-mnist`` puts them.
    """
    try:
        splits = [_fashion_split(root, train) for train in (True, False)]
    except (RuntimeError, FileNotFoundError) as error:
        raise ConfigError(
            f"Fashion-MNIST is neither in {Path(root).absolute()}/FashionMNIST/raw nor in {_DEBIAN_FASHION}; "
            "install Debian's package dataset-fashion-mnist, or give the folder as root"
        ) from error
    return Whole(splits[0], splits[1], splits[0][1], _scale(_FASHION_MEAN, _FASHION_STD, pad=2))


def _cifar(kind: Any, root: str, archive: str, prepare: Callable[[Tensor], Tensor]) -> Whole:
    splits = []
    for train in (True, False):
        try:
            loaded = kind(root, train=train, download=False)
        except RuntimeError as error:
            raise ConfigError(
                f"{kind.__name__} is not in {Path(root).absolute()}/{kind.base_folder}, or not whole; "
                f"unpack {archive} there, or give the folder as root"
            ) from error
        images = torch.from_numpy(np.ascontiguousarray(loaded.data.transpose(0, 3, 1, 2)))
        splits.append((images, torch.tensor(loaded.targets)))
    return Whole(splits[0], splits[1], splits[0][1], prepare)


def _fashion_split(root: str, train: bool) -> tuple[Tensor, Tensor]:
    if (Path(root) / "FashionMNIST").exists() or not _DEBIAN_FASHION.exists():
        loaded = datasets.FashionMNIST(root, train=train, download=False)
        return loaded.data[:, None], loaded.targets
    stem = "train" if train else "t10k"
    images = _read_idx(_DEBIAN_FASHION / f"{stem}-images-idx3-ubyte.gz")
    return images[:, None], _read_idx(_DEBIAN_FASHION / f"{stem}-labels-idx1-ubyte.gz").long()


def _read_idx(path: Path) -> Tensor:
    """Bytes in MNIST's format: a header of 4 bytes, the last of them the rank; the shape; the values."""
    content = gzip.decompress(path.read_bytes())
    rank = content[3]
    shape = np.frombuffer(content, dtype=">i4", count=rank, offset=4)
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * rank)
    return torch.from_numpy(values.reshape(tuple(shape)).copy())


def _scale(mean: tuple[float, ...], std: tuple[float, ...], pad: int = 0) -> Callable[[Tensor], Tensor]:
    def prepare(images: Tensor) -> Tensor:
        shape = (1, len(mean), 1, 1)
        scaled = (images.float() / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
        return torch.nn.functional.pad(scaled, (pad,) * 4, value=-mean[0] / std[0])

    return prepare
