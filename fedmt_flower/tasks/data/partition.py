"""How the samples of a data set are shared out between sites."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmt_flower.errors import ConfigError

Split = tuple[Tensor, ...]
_KINDS = ("iid", "dirichlet")


def _unchanged(inputs: Tensor) -> Tensor:
    return inputs


@dataclass(frozen=True, slots=True)
class Whole:
    """A data set before it is shared out.

    Parameters
    ----------
    train, test
        (inputs, targets) of each split.
    strata
        The class of each training sample, for partitions that differ in their classes; shape (n,).
    prepare
        Makes a model's input of chosen inputs: what is large stays small until it is chosen.
    """

    train: Split
    test: Split
    strata: Tensor
    prepare: Callable[[Tensor], Tensor] = _unchanged


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One site's share.

    Parameters
    ----------
    partition_id, num_partitions
        Which share, from 0, of how many.
    partition
        ``iid``, or ``dirichlet``: the shares of each class follow Dir(α).
    alpha
        α > 0 of ``dirichlet``; the smaller, the more the sites differ.
    site_volumes
        Ratio of the sites' volumes, such as ``1:2:3``; empty: equal.
    volume
        The part (0, 1] of the share's training samples that is used, for ratios between tasks.
    partition_seed
        Which partition of all possible ones; the same on every site.

    Raises
    ------
    ConfigError
        If a value is out of its range, or `site_volumes` has not one number for each site.
    """

    partition_id: int = 0
    num_partitions: int = 1
    partition: str = "iid"
    alpha: float = 0.5
    site_volumes: str = ""
    volume: float = 1.0
    partition_seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.partition_id < self.num_partitions:
            problems.append(
                f"partition_id {self.partition_id} of num_partitions {self.num_partitions}: "
                "expected 0 or more and less than the number"
            )
        if self.partition not in _KINDS:
            problems.append(f"partition {self.partition!r}: expected one of {', '.join(_KINDS)}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            problems.append(f"alpha {self.alpha}: expected more than 0")
        if not 0 < self.volume <= 1:
            problems.append(f"volume {self.volume}: expected a part above 0 and at most 1")
        if problems:
            raise ConfigError(*problems)
        self.weights()

    def weights(self) -> NDArray[np.float64]:
        """The sites' parts of the whole; they sum to 1."""
        if not self.site_volumes:
            return np.full(self.num_partitions, 1 / self.num_partitions)
        try:
            ratio = np.array([float(part) for part in str(self.site_volumes).split(":")])
        except ValueError:
            ratio = np.empty(0)
        if len(ratio) != self.num_partitions or not np.isfinite(ratio).all() or (ratio <= 0).any():
            raise ConfigError(
                f"site_volumes {self.site_volumes!r}: expected {self.num_partitions} numbers above 0, "
                "one for each site, such as 1:2:3"
            )
        weights: NDArray[np.float64] = ratio / ratio.sum()
        return weights

    def of(self, whole: Whole) -> tuple[Split, Split]:
        """This site's share of `whole`: of the training split as asked, of the test split equally.

        Raises
        ------
        ConfigError
            If no sample is left for one of the two.
        """
        strata = whole.strata if self.partition == "dirichlet" else torch.zeros_like(whole.strata)
        train = self._train_indices(strata.numpy())
        order = self._generator().permutation(len(whole.test[0]))
        test = np.array_split(order, self.num_partitions)[self.partition_id]
        for name, chosen in (("training", train), ("test", test)):
            if len(chosen) == 0:
                raise ConfigError(
                    f"partition {self.partition_id} of {self.num_partitions} ({self.partition}, volume "
                    f"{self.volume:g}) has no {name} sample: use fewer partitions, a larger alpha or volume"
                )
        return _take(whole, whole.train, train), _take(whole, whole.test, test)

    def _train_indices(self, strata: NDArray[np.int64]) -> NDArray[np.int64]:
        generator = self._generator()
        weights, mine = self.weights(), self.partition_id
        parts = []
        for stratum in np.unique(strata):
            members = generator.permutation(np.flatnonzero(strata == stratum))
            if self.partition == "dirichlet":
                shares = generator.dirichlet(self.alpha * self.num_partitions * weights)
            else:
                shares = weights
            cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
            parts.append(np.split(members, cuts)[mine])
        share: NDArray[np.int64] = generator.permutation(np.concatenate(parts))
        return share[: math.ceil(self.volume * len(share))]

    def _generator(self) -> np.random.Generator:
        return np.random.default_rng(self.partition_seed)


def partitioned(load: Callable[..., Whole]) -> Callable[..., tuple[Split, Split]]:
    """Make of `load`, which gives a whole data set, a task's data function.

    The result has the parameters of `load` and those of `Partition`, all by name, and gives
    ``(train, test)`` of one site.
    """
    ours = [field.name for field in fields(Partition)]

    @functools.wraps(load)
    def share(**arguments: Any) -> tuple[Split, Split]:
        partition = Partition(**{name: arguments.pop(name) for name in ours if name in arguments})
        return partition.of(load(**arguments))

    parameters = [
        *inspect.signature(load).parameters.values(),
        *inspect.signature(Partition).parameters.values(),
    ]
    share.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in parameters]
    )
    return share


def _take(whole: Whole, split: Split, chosen: NDArray[np.int64]) -> Split:
    inputs, *others = (part[torch.from_numpy(chosen)] for part in split)
    return (whole.prepare(inputs), *others)
