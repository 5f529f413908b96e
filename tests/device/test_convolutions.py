"""Depthwise convolutions without a compiler: the same values, and only for batches that few steps have."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmt_flower.bench.mixes import synthetic_task
from fedmt_flower.device.ipc.job import Job
from fedmt_flower.device.training import convolutions
from fedmt_flower.device.training.convolutions import kernels_at_hand
from fedmt_flower.device.training.initial import initial_weights
from fedmt_flower.device.training.runtime import TaskRuntime
from fedmt_flower.device.training.trainer import Loop
from fedmt_flower.domain.round import Mode
from fedmt_flower.domain.step import MemoryFormat
from fedmt_flower.tasks.objectives import classification

LAST = MemoryFormat.CHANNELS_LAST
SGD = partial(torch.optim.SGD, lr=0.1)


def images(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return drawn.contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The samples of every depthwise convolution that was not left to torch's choice."""
    sizes: list[int] = []
    theirs = convolutions._convolved

    def noted(**known: Any) -> Tensor:
        sizes.append(len(known["input"]))
        return theirs(**known)

    monkeypatch.setattr(convolutions, "_convolved", noted)
    return sizes


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("out", "kernel", "places"),
    [
        (6, 3, {"padding": 1}),
        (6, 5, {"padding": 2, "stride": 2}),
        (12, 3, {"padding": (1, 0), "stride": (1, 2)}),
        (6, 3, {"dilation": 2}),
    ],
)
def test_outputs_and_all_gradients_are_torchs(
    out: int, kernel: int, places: dict[str, Any], bias: bool, taken: list[int]
) -> None:
    layer = nn.Conv2d(6, out, kernel, groups=6, bias=bias, dtype=torch.float64, **places)
    weights = list(layer.parameters())
    found = []
    for context in (kernels_at_hand(MemoryFormat.CONTIGUOUS), kernels_at_hand(LAST)):
        given = images(4, 6, 9, 9)
        with context:
            output = layer(given)
        # The backward pass is done outside.
        found.append((output, *torch.autograd.grad(output.square().sum(), [given, *weights])))
    assert taken == [4]
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)
    assert found[1][0].is_contiguous(memory_format=torch.channels_last)


def test_a_gradient_can_be_differentiated_once_more() -> None:
    layer = nn.Conv2d(3, 3, 3, groups=3, dtype=torch.float64)
    with kernels_at_hand(LAST):
        assert torch.autograd.gradgradcheck(layer, (images(2, 3, 5, 5),))


def test_autocast_is_heeded_and_frozen_weights_have_no_gradient() -> None:
    layer = nn.Conv2d(3, 3, 3, groups=3)
    layer.weight.requires_grad_(False)
    given = images(2, 3, 5, 5, dtype=torch.float32)
    with kernels_at_hand(LAST), torch.autocast("cpu", torch.bfloat16):
        output = layer(given)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert given.grad is not None
    assert given.grad.dtype == torch.float32
    assert layer.weight.grad is None
    assert layer.bias is not None
    assert layer.bias.grad is not None
    assert layer.bias.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "weight", "more"),
    [
        pytest.param((2, 6, 5, 5), (6, 6, 3, 3), {}, id="whole"),
        pytest.param((2, 6, 5, 5), (6, 2, 3, 3), {"groups": 3}, id="groups of several channels"),
        pytest.param((2, 6, 5, 5), (6, 1, 3, 3), {"groups": 6, "padding": "same"}, id="padding by name"),
        pytest.param((6, 5, 5), (6, 1, 3, 3), {"groups": 6}, id="one image"),
    ],
)
def test_other_convolutions_are_left_alone(
    given: tuple[int, ...], weight: tuple[int, ...], more: dict[str, Any], taken: list[int]
) -> None:
    image, filters = torch.randn(given), torch.randn(weight)
    with kernels_at_hand(LAST):
        output = functional.conv2d(image, filters, **more)
    torch.testing.assert_close(output, functional.conv2d(image, filters, **more))
    assert taken == []


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    )


def trained(data: Any, config: dict[str, Any], batch_size: int = 16) -> None:
    network = model().to(memory_format=torch.channels_last)
    loop = Loop(classification, SGD)
    known = {"seed": 1, "epochs": 2, "batch_size": batch_size, "step": "eager", **config}
    loop.setup(network, data, known, torch.device("cpu"))
    while loop.step():
        pass


INPUTS, LABELS = torch.randn(39, 3, 8, 8), torch.arange(39) % 4


@pytest.mark.parametrize("memory_format", list(MemoryFormat))
def test_only_the_last_batch_of_an_epoch_is_taken_so(memory_format: MemoryFormat, taken: list[int]) -> None:
    trained((INPUTS, LABELS), {"memory_format": memory_format})
    assert taken == ([7, 7] if memory_format is LAST else [])


def test_so_is_one_of_a_sample_more(taken: list[int]) -> None:
    trained((INPUTS[:33], LABELS[:33]), {"memory_format": LAST})
    assert taken == [17, 17]


@pytest.mark.parametrize("batch_size", [8, 64], ids=["smaller than the loader's", "larger"])
def test_a_loaders_own_batches_are_whole_ones(batch_size: int, taken: list[int]) -> None:
    data = torch.utils.data.TensorDataset(INPUTS, LABELS)
    trained(torch.utils.data.DataLoader(data, 16), {"memory_format": LAST}, batch_size)
    assert taken == [7, 7]


def test_a_task_may_have_set_float32_arithmetic_by_torchs_newer_names(taken: list[int]) -> None:
    if not hasattr(torch.backends.cudnn, "conv"):
        pytest.skip("torch has had them since 2.9")
    layer, conv = nn.Conv2d(3, 3, 3, groups=3), torch.backends.cudnn.conv
    before = conv.fp32_precision
    conv.fp32_precision = "ieee"
    try:
        with kernels_at_hand(LAST):
            layer(images(2, 3, 5, 5, dtype=torch.float32)).sum().backward()
        assert conv.fp32_precision == "ieee"
    finally:
        conv.fp32_precision = before
    assert taken == [2]
    assert torch.backends.cudnn.enabled


@pytest.mark.parametrize("memory_format", list(MemoryFormat))
def test_an_evaluation_is_taken_so(memory_format: MemoryFormat, taken: list[int]) -> None:
    sizes: dict[str, Any] = {"samples": 8, "test_samples": 6, "memory_format": str(memory_format)}
    task = synthetic_task("S2", batch=8, **sizes)
    job = Job(site="s", round=1, seed=0, mode=Mode.EVALUATE, parameters=task.parameters)
    runtime = TaskRuntime(task, "cpu")
    judged = runtime.run(job, initial_weights(task, 0)).evaluate_metrics
    assert 0.0 <= judged["accuracy"] <= 1.0
    assert set(taken) == ({6} if memory_format is LAST else set())


@pytest.mark.gpu
def test_on_a_gpu_the_values_are_those_of_cudnn() -> None:
    layer = (
        nn.Conv2d(72, 72, 5, padding=2, groups=72, bias=False).cuda().to(memory_format=torch.channels_last)
    )
    found = []
    for context in (kernels_at_hand(LAST), kernels_at_hand(MemoryFormat.CONTIGUOUS)):
        given = images(16, 72, 16, 16, dtype=torch.float32).detach().cuda().requires_grad_()
        with context, torch.autocast("cuda", torch.bfloat16):
            output = layer(given)
        found.append((output, *torch.autograd.grad(output.float().square().sum(), [given, layer.weight])))
    for ours, theirs in zip(*found, strict=True):
        assert float((ours - theirs).float().norm()) < 0.02 * float(theirs.float().norm())
