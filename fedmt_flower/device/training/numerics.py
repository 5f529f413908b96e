"""How arithmetic in float32 is done on a GPU, under whichever of torch's names for it a task has used.

Since 2.9 torch has ``fp32_precision`` beside ``allow_tf32``. The newer names tell what was set by either;
the older ones raise an error once a task has used the newer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch

TF32: Final = "tf32"


class Float32(NamedTuple):
    """What float32 is rounded to for each kind of operation, by torch's names, such as `TF32` or ``ieee``."""

    convolutions: str
    recurrences: str
    products: str


def float32() -> Float32:
    """The present arithmetic of this process."""
    known: Any = torch.backends
    if hasattr(known.cuda.matmul, "fp32_precision"):
        parts = (known.cudnn.conv, known.cudnn.rnn, known.cuda.matmul)
        return Float32(*(part.fp32_precision for part in parts))
    cudnn, products = (TF32 if part.allow_tf32 else "ieee" for part in (known.cudnn, known.cuda.matmul))
    return Float32(cudnn, cudnn, products)


@contextmanager
def products_like_convolutions() -> Iterator[None]:
    """Matrix products are done in the arithmetic that convolutions are allowed."""
    before = float32()
    _set_products(before.convolutions)
    try:
        yield
    finally:
        _set_products(before.products)


def _set_products(precision: str) -> None:
    products: Any = torch.backends.cuda.matmul
    if hasattr(products, "fp32_precision"):
        products.fp32_precision = precision
    else:
        products.allow_tf32 = precision == TF32
