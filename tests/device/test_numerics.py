"""How float32 is computed is told and changed under torch's older and its newer names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fedmt_flower.device.training.numerics import TF32, float32, products_like_convolutions
from fedmt_flower.device.worker.features import device_features, product_peak
from fedmt_flower.domain.step import Precision

NEWER = hasattr(torch.backends.cuda.matmul, "fp32_precision")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = float32()
    yield
    if NEWER:
        torch.backends.cuda.matmul.fp32_precision = before.products


def test_torchs_own_choice_is_told() -> None:
    assert float32().convolutions == TF32
    assert float32().products != TF32


@pytest.mark.skipif(not NEWER, reason="torch has newer names since 2.9")
def test_a_device_is_measured_after_a_task_has_used_the_newer_names() -> None:
    torch.backends.cuda.matmul.fp32_precision = TF32
    with pytest.raises(RuntimeError):
        _ = torch.backends.cuda.matmul.allow_tf32
    assert float32().products == TF32
    assert device_features(torch.device("cpu")).peak > 0
    assert float32().products == TF32


@pytest.mark.parametrize(
    "newer", [False, pytest.param(True, marks=pytest.mark.skipif(not NEWER, reason="2.9"))]
)
def test_products_follow_convolutions_and_are_set_back(newer: bool) -> None:
    if newer:
        torch.backends.cuda.matmul.fp32_precision = "ieee"
    before = float32()
    with products_like_convolutions():
        assert float32().products == before.convolutions == TF32
    assert float32() == before


def test_a_peak_is_that_of_the_precision() -> None:
    peaks = [product_peak(torch.device("cpu"), precision) for precision in Precision]
    assert min(peaks) > 1e8
    assert peaks[0] != peaks[1]


@pytest.mark.gpu
def test_a_gpu_multiplies_faster_in_the_precision_of_fast_steps() -> None:
    plain, fast = (product_peak(torch.device("cuda:0"), precision) for precision in Precision)
    assert fast > 1.3 * plain
