"""Convolutions by torch's own kernels; depthwise ones, where steps are too few for those of cuDNN.

cuDNN, since 9.10, compiles a kernel for every depthwise convolution in channels last and every batch size
when a process first meets it (github.com/NVIDIA/cudnn-frontend/issues/1066). On an H100 under torch 2.11 and
cuDNN 9.19 the first step of MobileNetV3 took 14.6 s for that and one on a batch of another size 10.8 s; by
torch's own kernels it is 1.4 s and 0.4 s. Those are slower when repeated, 12 000 against 20 000 samples/s: a
round's whole batches are cuDNN's, the last of an epoch and those of an evaluation are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fedmt_flower.domain.step import MemoryFormat

_ARGUMENTS: Final = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def kernels_at_hand(memory_format: MemoryFormat) -> AbstractContextManager[object]:
    """Within it no kernel is compiled for a depthwise convolution, nor for its backward pass at any time."""
    return _ByTorch() if memory_format is MemoryFormat.CHANNELS_LAST else nullcontext()


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Convolutions are torch's own, and nothing else of cuDNN's settings is touched."""
    known: Any = torch.backends.cudnn
    before = known.enabled
    known.enabled = False
    try:
        yield
    finally:
        known.enabled = before


class _ByTorch(TorchFunctionMode):
    """Depthwise convolutions of images are torch's own."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do what torch was asked to do."""
        given = kwargs or {}
        if func is torch.conv2d:
            known = dict(zip(_ARGUMENTS, args, strict=False)) | dict(given)
            if _is_depthwise(known):
                return _convolved(**known)
        return func(*args, **given)


class _Depthwise(torch.autograd.Function):
    """A convolution whose backward pass, too, is none of cuDNN's."""

    @staticmethod
    def forward(
        image: Tensor, weight: Tensor, bias: Tensor | None, places: tuple[list[int], ...], groups: int
    ) -> Tensor:
        """Convolve `image`; `places` are stride, padding and dilation."""
        with without_cudnn():
            output: Tensor = torch.ops.aten.convolution(image, weight, bias, *places, False, [0, 0], groups)
            return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the backward pass needs."""
        image, weight, bias, ctx.places, ctx.groups = inputs
        ctx.bias = None if bias is None else list(bias.shape)
        ctx.save_for_backward(image, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of image, weight and bias."""
        image, weight = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        with without_cudnn():
            found = torch.ops.aten.convolution_backward(
                gradient.contiguous(),
                image,
                weight,
                ctx.bias,
                *ctx.places,
                False,
                [0, 0],
                ctx.groups,
                wanted,
            )
        return *found, None, None


def _is_depthwise(known: Mapping[str, Any]) -> bool:
    """Whether each channel of images has filters of its own; a padding by its name is torch's to read."""
    image, weight = known["input"], known["weight"]
    return (
        image.dim() == 4
        and known.get("groups", 1) == image.shape[1] > 1
        and weight.shape[1] == 1
        and not isinstance(known.get("padding", 0), str)
    )


def _convolved(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """As `torch.conv2d` in the arithmetic of autocast, the result in the memory format of its input."""
    kind = input.device.type
    parts = [input, weight, bias]
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        parts = [None if part is None else part.to(dtype) for part in parts]
    image, filters, offset = parts
    assert image is not None
    assert filters is not None
    with torch.autocast(kind, enabled=False):
        places = tuple(_pair(place) for place in (stride, padding, dilation))
        output: Tensor = _Depthwise.apply(image.contiguous(), filters.contiguous(), offset, places, groups)
    if input.is_contiguous(memory_format=torch.channels_last):
        return output.contiguous(memory_format=torch.channels_last)
    return output


def _pair(place: Any) -> list[int]:
    return [place, place] if isinstance(place, int) else list(place)
