"""Between a model's state and the arrays that cross the engine's boundary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmt_flower.device.contract import Weights


class WeightCourier:
    """Carries weights into a model and out of it, by way of pinned memory if it lives on a GPU.

    The pinned buffers are made once and kept: page-locking memory costs more than the copy.
    """

    def __init__(self) -> None:
        self._pinned: dict[str, Tensor] = {}

    def load(self, model: nn.Module, weights: Weights) -> None:
        """Copy `weights` into the state of `model`, cast to its dtypes.

        Raises
        ------
        ValueError
            If names or shapes are not those of the model's state, or a value is not finite.
        """
        state = state_of(model)
        check_names("weights", state, weights)
        for name, tensor in state.items():
            if tuple(weights[name].shape) != tuple(tensor.shape):
                raise ValueError(_shape_problem("weights", name, tensor.shape, weights[name].shape))
        with torch.no_grad():
            for name, tensor in state.items():
                host = self._host(name, tensor)
                np.copyto(host.numpy(), weights[name], casting="unsafe")
                if host is not tensor:
                    tensor.copy_(host, non_blocking=True)
        check_finite("weights received", state)

    def read(self, model: nn.Module, expected: Mapping[str, torch.Size]) -> Weights:
        """The state of `model` as arrays of its dtypes, in its order.

        Raises
        ------
        ValueError
            If names or shapes are not those `expected`, or a value is not finite.
        """
        state = state_of(model)
        check_names("weights after training", expected, state)
        for name, shape in expected.items():
            if state[name].shape != shape:
                raise ValueError(_shape_problem("weights after training", name, shape, state[name].shape))
        check_finite("weights after training", state)
        hosts = {name: self._host(name, tensor) for name, tensor in state.items()}
        for name, tensor in state.items():
            if hosts[name] is not tensor:
                hosts[name].copy_(tensor, non_blocking=True)
        if any(tensor.is_cuda for tensor in state.values()):
            torch.cuda.synchronize()
        return {name: host.numpy().copy() for name, host in hosts.items()}

    def _host(self, name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_cuda:
            return tensor
        kept = self._pinned.get(name)
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._pinned[name] = kept
        return kept


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The `state_dict` of `model`, detached; ValueError if numpy cannot hold one of its entries."""
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(f"state_dict entry {name!r} is a {type(value).__name__}, expected a tensor")
        if value.dtype is torch.bfloat16 or value.is_quantized or value.layout is not torch.strided:
            raise ValueError(
                f"state_dict entry {name!r} is {value.dtype} ({value.layout}), which no array can hold; "
                "keep the weights in float32 and use autocast for lower precision"
            )
        state[name] = value.detach()
    return state


def arrays_of(model: nn.Module) -> dict[str, NDArray[Any]]:
    """The state of `model` as arrays of its dtypes, in its order."""
    return {name: tensor.cpu().numpy().copy() for name, tensor in state_of(model).items()}


def check_names(what: str, expected: Mapping[str, object], got: Mapping[str, object]) -> None:
    """Raise ValueError unless `got` has the very names of `expected`."""
    missing = [name for name in expected if name not in got]
    unknown = [name for name in got if name not in expected]
    if missing or unknown:
        parts = [
            f"{label} {_some(names)}" for label, names in (("no", missing), ("unexpected", unknown)) if names
        ]
        raise ValueError(f"{what} do not fit the model's state_dict: {', '.join(parts)}")


def check_finite(what: str, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError if a value of `state` is not finite; a GPU is waited for once."""
    floating = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    finite = [tensor.isfinite().all() for tensor in floating.values()]
    if not finite or bool(torch.stack(finite).all()):
        return
    bad = [name for name, fine in zip(floating, finite, strict=True) if not fine]
    raise ValueError(f"{what} are not finite: {_some(bad)}")


def _shape_problem(what: str, name: str, expected: object, got: object) -> str:
    return f"{what}: {name!r} has shape {list(got)}, expected {list(expected)}"  # type: ignore[call-overload]


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
