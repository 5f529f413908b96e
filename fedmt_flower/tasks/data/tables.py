"""Scikit-learn's bundled data, which needs no download.

A fifth of each is its test split, the same on every site. Inputs are standardised by the statistics of
the training split; constants are left as they are.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from sklearn.model_selection import train_test_split

from fedmt_flower.tasks.data.partition import Whole, partitioned

_TEST_PART = 0.2
_QUANTILES = 10


@partitioned
@functools.lru_cache(maxsize=1)
def digits() -> Whole:
    """1797 handwritten digits: (1, 8, 8) images, 10 classes."""
    return _classes(datasets.load_digits(), shape=(1, 8, 8))


@partitioned
@functools.lru_cache(maxsize=1)
def breast_cancer() -> Whole:
    """569 biopsies, each 30 measurements of cell nuclei; benign or malignant."""
    return _classes(datasets.load_breast_cancer())


@partitioned
@functools.lru_cache(maxsize=1)
def wine() -> Whole:
    """178 wines, each 13 measurements; 3 growers."""
    return _classes(datasets.load_wine())


@partitioned
@functools.lru_cache(maxsize=1)
def diabetes() -> Whole:
    """442 patients, each 10 measurements; the progression of their disease a year later.

    Progression is standardised too: a mean squared error is the part of its variance left unexplained.
    Its tenths serve as classes where sites are to differ.
    """
    bunch = datasets.load_diabetes()
    target = bunch.target
    strata = np.digitize(target, np.quantile(target, np.arange(1, _QUANTILES) / _QUANTILES))
    train, test = train_test_split(np.arange(len(target)), test_size=_TEST_PART, random_state=0)
    target = (target - target[train].mean()) / target[train].std()
    return _whole(bunch.data, target.astype(np.float32)[:, None], strata, train, test)


def _classes(bunch: Any, shape: tuple[int, ...] = (-1,)) -> Whole:
    labels = bunch.target.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=_TEST_PART, random_state=0, stratify=labels
    )
    return _whole(bunch.data, labels, labels, train, test, shape)


def _whole(
    inputs: Any, targets: Any, strata: Any, train: Any, test: Any, shape: tuple[int, ...] = (-1,)
) -> Whole:
    spread = inputs[train].std(axis=0)
    scaled = (inputs - inputs[train].mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    x = torch.from_numpy(scaled.astype(np.float32)).reshape(len(inputs), *shape)
    y = torch.from_numpy(targets)
    return Whole((x[train], y[train]), (x[test], y[test]), torch.from_numpy(strata[train].astype(np.int64)))
