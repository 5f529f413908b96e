"""The built-in models have the paper's sizes, and learn from small images."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from fedmt_flower.tasks import models

# § VI-D's figures where it has one; else what torchvision's class comes to.
MEGABYTES = {
    "alexnet": 24,
    "densenet121": 30,
    "mobilenet_v3_large": 15,
    "resnet18": 45,
    "resnet34": 85,
    "resnet50": 100,
    "resnet101": 170,
    "shufflenet_v2": 9,
    "vgg16": 55,
}
SMALL = {"cnn": 8, "lenet": 28}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def check(model: nn.Module, inputs: torch.Tensor, outputs: int) -> None:
    scores = model(inputs)
    assert scores.shape == (len(inputs), outputs)
    scores.square().mean().backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert without == []
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


def test_every_public_model_is_tried_here() -> None:
    assert set(models.__all__) == {*MEGABYTES, *SMALL, "mlp", "autoencoder"}


@pytest.mark.parametrize("name", MEGABYTES)
def test_a_paper_model_has_its_size_and_takes_cifar(name: str) -> None:
    model = getattr(models, name)()
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values()) / 1e6
    assert size == pytest.approx(MEGABYTES[name], rel=0.15)
    check(model, torch.randn(2, 3, 32, 32), 10)


@pytest.mark.parametrize("name", MEGABYTES)
def test_a_paper_model_takes_fashion_mnist(name: str) -> None:
    model = getattr(models, name)(num_classes=7, in_channels=1).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 1, 32, 32)).shape == (1, 7)
        assert model(torch.randn(1, 1, 28, 28)).shape == (1, 7)


@pytest.mark.parametrize("name", ["densenet121", "mobilenet_v3_large", "resnet50", "shufflenet_v2"])
def test_the_last_feature_map_has_sixteen_pixels(name: str) -> None:
    seen: list[tuple[int, ...]] = []
    model = getattr(models, name)().eval()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape[2:])))
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    assert seen[0] == (32, 32)
    assert [shape for shape in seen if shape != (1, 1)][-1] == (4, 4)  # squeeze-and-excitation has 1×1


@pytest.mark.parametrize("name", SMALL)
def test_small_image_models(name: str) -> None:
    check(getattr(models, name)(num_classes=3), torch.randn(4, 1, SMALL[name], SMALL[name]), 3)
    check(getattr(models, name)(in_channels=3), torch.randn(2, 3, 32, 32), 10)


def test_small_table_models() -> None:
    check(models.mlp(in_features=13, out_features=3, hidden=8, dropout=0.1), torch.randn(4, 13), 3)
    check(models.autoencoder(in_features=64, code=2), torch.randn(4, 1, 8, 8), 64)
