"""Seeds: one stream of randomness for each (run, round, site, task)."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_sequence(seed: int, *names: str | int) -> np.random.SeedSequence:
    """The stream of a run's `seed` that `names` (a round, a site, a task) stand for."""
    return np.random.SeedSequence([seed, *(_number(name) for name in names)])


def seed_everything(stream: np.random.SeedSequence) -> int:
    """Seed torch's, numpy's and Python's global generators, since users' loaders draw from them.

    Returns
    -------
    int
        An unsigned 32-bit seed of the same stream, for generators of one's own.
    """
    small, large = stream.generate_state(1, np.uint32), stream.generate_state(1, np.uint64)
    torch.manual_seed(int(large[0]))
    np.random.seed(small)
    random.seed(int(large[0]))
    return int(small[0])


def choose_kernels(deterministic: bool) -> None:
    """Have torch use only kernels that give the same bits every time, or whichever are fast.

    An operation that has no such kernel then raises RuntimeError.
    """
    if deterministic:
        # cuBLAS reads it when it first starts in this process.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)


def generator_states(device: torch.device) -> dict[str, Any]:
    """The states of the global generators, those of `seed_everything`, as tensors and numbers."""
    version, words, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": (version, torch.tensor(words), gauss),
        "numpy": (
            torch.from_numpy(legacy["state"]["key"].astype(np.int64)),
            int(legacy["state"]["pos"]),
            int(legacy["has_gauss"]),
            float(legacy["gauss"]),
        ),
    }


def set_generator_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Set the global generators to what `generator_states` gave."""
    torch.set_rng_state(states["torch"])
    if states["device"] is not None:
        torch.cuda.set_rng_state(states["device"], device)
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    key, *rest = states["numpy"]
    np.random.set_state(("MT19937", key.numpy().astype(np.uint32), *rest))


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Give torch's, numpy's and Python's global generators back as they were."""
    python, legacy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def _number(name: str | int) -> int:
    if isinstance(name, int):
        return name
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
