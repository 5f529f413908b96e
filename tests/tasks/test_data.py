"""The built-in data: real where it is bundled, and read from files of its own format where it is not."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets

from fedmt_flower.errors import ConfigError
from fedmt_flower.tasks import data
from fedmt_flower.tasks.data import images

BUNDLED = {
    "digits": (1797, (1, 8, 8), 10),
    "breast_cancer": (569, (30,), 2),
    "wine": (178, (13,), 3),
}


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    for name in ("cifar10", "cifar100", "fashion_mnist"):
        getattr(data, name).__wrapped__.cache_clear()


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_classes(name: str) -> None:
    total, shape, classes = BUNDLED[name]
    (x, y), (test_x, test_y) = getattr(data, name)()
    assert len(x) + len(test_x) == total
    assert len(test_x) == pytest.approx(0.2 * total, abs=1)
    assert x.shape[1:] == test_x.shape[1:] == shape
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert set(y.tolist()) == set(test_y.tolist()) == set(range(classes))
    flat = x.reshape(len(x), -1).double()
    varying = flat.std(dim=0) > 0
    torch.testing.assert_close(flat.mean(dim=0), torch.zeros(flat.shape[1]).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        flat.std(dim=0, correction=0)[varying], torch.ones(int(varying.sum())).double(), atol=1e-4, rtol=0
    )


def test_diabetes_is_standardised_and_linear_in_part() -> None:
    (x, y), (test_x, test_y) = data.diabetes()
    assert (x.shape, y.shape, len(test_x)) == ((353, 10), (353, 1), 89)
    assert float(y.mean()) == pytest.approx(0, abs=1e-5)
    assert float(y.std(correction=0)) == pytest.approx(1, abs=1e-5)
    fit = torch.linalg.lstsq(x, y).solution
    assert 0.3 < 1 - float(((test_x @ fit - test_y) ** 2).mean()) < 0.6  # R² known of this data


def test_regression_data_can_differ_between_sites() -> None:
    means = [
        float(data.diabetes(partition_id=i, num_partitions=3, partition="dirichlet", alpha=0.1)[0][1].mean())
        for i in range(3)
    ]
    assert max(means) - min(means) > 0.5


def test_synthetic_data_has_the_shape_asked_for() -> None:
    (x, y), (test_x, _) = data.synthetic(samples=30, test_samples=9, channels=1, size=8, num_partitions=3)
    assert (x.shape, len(y), len(test_x)) == ((10, 1, 8, 8), 10, 3)


def write_cifar(root: Path, kind: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[Any, int]]]:
    """Write a CIFAR of ten images a file in its own format; tell torchvision the files' checksums."""
    rng = np.random.default_rng(0)
    key = "fine_labels" if kind is datasets.CIFAR100 else "labels"
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    written: dict[str, list[tuple[Any, int]]] = {"train_list": [], "test_list": []}

    def write(name: str, content: object) -> str:
        raw = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(raw)
        return hashlib.md5(raw).hexdigest()

    for which in written:
        sums = []
        for name, _ in getattr(kind, which):
            pixels = rng.integers(0, 256, (10, 3072), dtype=np.uint8)
            labels = rng.integers(0, 10, 10).tolist()
            sums.append([name, write(name, {"data": pixels, key: labels})])
            written[which] += list(zip(pixels.reshape(10, 3, 32, 32), labels, strict=True))
        monkeypatch.setattr(kind, which, sums)
    meta = {kind.meta["key"]: [str(i) for i in range(10)]}
    md5 = write(kind.meta["filename"], meta)
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5})
    return written


@pytest.mark.parametrize(("name", "kind"), [("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)])
def test_cifar_is_read_from_its_own_format(
    name: str, kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_cifar(tmp_path, kind, monkeypatch)
    (x, y), (test_x, test_y) = getattr(data, name)(root=str(tmp_path))
    assert len(x) == len(written["train_list"])
    assert x.shape[1:] == (3, 32, 32)
    mean = getattr(images, f"_{name.upper()}_MEAN")
    std = getattr(images, f"_{name.upper()}_STD")

    def pixels(inputs: torch.Tensor) -> torch.Tensor:
        scale = torch.tensor(std).view(3, 1, 1), torch.tensor(mean).view(3, 1, 1)
        return (inputs * scale[0] + scale[1]) * 255

    for inputs, labels, which in ((x, y, "train_list"), (test_x, test_y, "test_list")):
        found = {
            (pixels(i).round().byte().numpy().tobytes(), int(label))
            for i, label in zip(inputs, labels, strict=True)
        }
        assert found == {(image.tobytes(), label) for image, label in written[which]}


def test_a_damaged_cifar_is_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, datasets.CIFAR10, monkeypatch)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(
        ConfigError, match=r"CIFAR10 is not in .*, or not whole; unpack cifar-10-python.tar.gz"
    ):
        data.cifar10(root=str(tmp_path))


@pytest.mark.skipif(not images._DEBIAN_FASHION.exists(), reason="dataset-fashion-mnist is not installed")
def test_fashion_mnist_as_debian_installs_it(tmp_path: Path) -> None:
    (x, y), (test_x, _) = data.fashion_mnist(root=str(tmp_path), num_partitions=20)
    assert (x.shape, test_x.shape) == ((3000, 1, 32, 32), (500, 1, 32, 32))
    assert set(y.tolist()) == set(range(10))
    inner = x[:, :, 2:-2, 2:-2]
    assert float(inner.mean()) == pytest.approx(0, abs=0.05)
    assert float(inner.std()) == pytest.approx(1, abs=0.05)
    assert float(x[:, :, :2].max()) == pytest.approx(float(x.min()))  # padded with black


def test_fashion_mnist_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_DEBIAN_FASHION", tmp_path / "absent")
    with pytest.raises(ConfigError, match="install Debian's package dataset-fashion-mnist") as info:
        data.fashion_mnist(root=str(tmp_path))
    assert "\n" not in str(info.value)
