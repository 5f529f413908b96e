"""What a training step costs and what a device can do, measured inside a worker: fᵢ and mᵢ of § IV."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fedmt_flower.device.training.numerics import products_like_convolutions
from fedmt_flower.domain.profile import DeviceFeatures
from fedmt_flower.domain.step import Precision

_LOOK_S: Final = 0.05
"""Seconds for which a device is kept busy to see what it can do."""
_SIDES: Final[Mapping[str, int]] = {"cuda": 8192, "cpu": 512}
_COPIED: Final[Mapping[str, int]] = {"cuda": 1 << 29, "cpu": 1 << 26}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """What one training step came to, per sample.

    Parameters
    ----------
    flops
        fᵢ: floating-point operations of matrix products and convolutions, forward and backward.
    traffic
        mᵢ: bytes that all operators read and write, as if nothing were cached.
    samples
        Samples of the step.
    """

    flops: float
    traffic: float
    samples: int


def step_cost(step: Callable[[], int]) -> StepCost:
    """Count what `step`, which returns the samples that it used, does.

    Raises
    ------
    ValueError
        If it used no samples.
    """
    traffic = _Traffic()
    # torch counts a grouped convolution's backward pass as if it had no groups: 256 times for MobileNets.
    flops = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}
    )
    with flops, traffic:
        samples = step()
    if samples < 1:
        raise ValueError("a training step used no samples: there is no data to train on")
    # A model without any product still adds and compares: a sample costs one operation at least.
    return StepCost(
        flops=max(1.0, flops.get_total_flops() / samples),
        traffic=max(1.0, traffic.bytes / samples),
        samples=samples,
    )


def device_features(device: torch.device) -> DeviceFeatures:
    """Measure `device` as far as this process may use it; takes a fraction of a second.

    Its peak is that of the arithmetic that a step in float32 uses, see `product_peak`.
    """
    source = torch.empty(_COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = _rate(device, lambda: target.copy_(source))
    on_gpu = device.type == "cuda"
    units = (
        torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else torch.get_num_threads()
    )
    return DeviceFeatures(
        name=torch.cuda.get_device_name(device) if on_gpu else _processor(),
        units=units,
        peak=product_peak(device, Precision.FLOAT32),
        bandwidth=copied * 2.0 * source.numel(),
    )


def product_peak(device: torch.device, precision: Precision) -> float:
    """FLOP/s of a large matrix product, as far as this process may use `device`.

    In float32 it is done in the arithmetic that convolutions are allowed: TF32 on a GPU unless the user
    forbids it.
    """
    side = _SIDES[device.type]
    dtype = torch.bfloat16 if precision is Precision.BFLOAT16 else torch.float32
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    with torch.no_grad(), products_like_convolutions():
        return _rate(device, lambda: torch.matmul(left, right, out=product)) * 2.0 * side**3


def _convolution_backward(
    grad: Sequence[int],
    inputs: Sequence[int],
    weight: Sequence[int],
    bias: object,
    stride: object,
    padding: object,
    dilation: object,
    transposed: bool,
    output_padding: object,
    groups: int,
    wanted: Sequence[bool],
    **kwargs: object,
) -> int:
    """FLOPs of a convolution's gradients, by the shapes of what it takes: one forward pass for each."""
    places = math.prod((inputs if transposed else grad)[2:])
    return 2 * sum(wanted[:2]) * inputs[0] * places * math.prod(weight)


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the bytes of what each operator reads and writes; views move nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            moved = tree_leaves((args, kwargs, result))
            self.bytes += sum(
                part.numel() * part.element_size() for part in moved if isinstance(part, Tensor)
            )
        return result


def _rate(device: torch.device, work: Callable[[], object]) -> float:
    """How often a second `device` does `work`: the best of three looks, after a warm one."""
    _times(device, work, 1)
    count = max(1, int(_LOOK_S / max(_times(device, work, 1), 1e-6)))
    return count / min(_times(device, work, count) for _ in range(3))


def _times(device: torch.device, work: Callable[[], object], count: int) -> float:
    begun = time.perf_counter()
    for _ in range(count):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def _processor() -> str:
    """The vendor's name of the CPUs, as far as the system tells."""
    with Path("/proc/cpuinfo").open() as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return "CPUs"
