"""Between a model's state and the arrays that cross the engine's boundary."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmt_flower.device.contract import Weights
from fedmt_flower.device.ipc.packed import Packed, head, places, size_of


class WeightCourier:
    """Carries weights into a model and out of it, by way of pinned memory if it lives on a GPU.

    That is one buffer, made once and kept, since page-locking memory costs more than the copy. The weights
    lie packed in it, so that they leave the process as they are.
    """

    def __init__(self) -> None:
        self._staging: _Staging | None = None

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
        hosts = self._staged(state).tensors if _on_gpu(state) else state
        with torch.no_grad():
            for name, tensor in state.items():
                np.copyto(hosts[name].numpy(), weights[name], casting="unsafe")
                if hosts[name] is not tensor:
                    tensor.copy_(hosts[name], non_blocking=True)
        check_finite("weights received", state)

    def read(self, model: nn.Module, expected: Mapping[str, torch.Size]) -> Weights:
        """The state of `model` as arrays of its dtypes, in its order.

        They are the model's own, or those of the pinned buffer: whoever trains or loads next changes them.

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
        if not _on_gpu(state):
            return {name: tensor.numpy() for name, tensor in state.items()}
        staging = self._staged(state)
        for name, tensor in state.items():
            staging.tensors[name].copy_(tensor, non_blocking=True)
        torch.cuda.synchronize()
        return staging.weights

    def _staged(self, state: Mapping[str, Tensor]) -> _Staging:
        if self._staging is None or not self._staging.fits(state):
            self._staging = None  # before the next is made: there need not be two
            self._staging = _Staging(state)
        return self._staging


class _Staging:
    """A pinned buffer in which a state lies packed: read as arrays, written as tensors."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        dtypes = {name: torch.empty(0, dtype=tensor.dtype).numpy().dtype for name, tensor in state.items()}
        specs = [(name, dtypes[name], tuple(tensor.shape)) for name, tensor in state.items()]
        start = head(specs)
        buffer = torch.zeros(size_of(specs), dtype=torch.uint8, pin_memory=True)
        buffer.numpy()[: len(start)] = np.frombuffer(start, np.uint8)
        self.weights = Packed(buffer.numpy().data)
        # Views of the one tensor, which tells torch's allocator of each copy to or from it.
        self.tensors = {
            place.name: buffer[place.offset : place.offset + self.weights[place.name].nbytes]
            .view(state[place.name].dtype)
            .view(place.shape)
            for place in places(self.weights.data)
        }

    def fits(self, state: Mapping[str, Tensor]) -> bool:
        """Whether it was made for tensors of the same names, dtypes and shapes, in the same order."""
        return _specs(state) == _specs(self.tensors)


def _specs(state: Mapping[str, Tensor]) -> list[tuple[str, torch.dtype, torch.Size]]:
    return [(name, tensor.dtype, tensor.shape) for name, tensor in state.items()]


def _on_gpu(state: Mapping[str, Tensor]) -> bool:
    return any(tensor.is_cuda for tensor in state.values())


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The `state_dict` of `model`, detached; ValueError if numpy cannot hold one of its entries."""
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(f"state_dict entry {name!r} is a {type(value).__name__}, expected a tensor")
        if value.layout is not torch.strided or not _is_in_numpy(value.dtype):
            raise ValueError(
                f"state_dict entry {name!r} is {value.dtype} ({value.layout}), which no array can hold; "
                "keep the weights in float32 and use autocast for lower precision"
            )
        state[name] = value.detach()
    return state


@functools.cache
def _is_in_numpy(dtype: torch.dtype) -> bool:
    try:
        torch.empty(0, dtype=dtype).numpy()
    except TypeError:
        return False
    return True


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
    """Raise ValueError if a value of `state` is not finite; a GPU is waited for once for each dtype."""
    floating = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    # No sum of absolute values is finite if one of them is not; the sums of all tensors take a few launches
    # on a GPU, where looking at each of 500 takes thousands. One of large values overflows, though.
    if not floating or all(bool(total.isfinite()) for total in _magnitudes(floating.values())):
        return
    bad = [name for name, tensor in floating.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise ValueError(f"{what} are not finite: {_some(bad)}")


def _magnitudes(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """The sum of all absolute values, by device and dtype."""
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        alike[tensor.device, tensor.dtype].append(tensor)
    for group in alike.values():
        yield torch.stack(torch._foreach_norm(group, 1)).sum(dtype=torch.float64)


def _shape_problem(what: str, name: str, expected: object, got: object) -> str:
    return f"{what}: {name!r} has shape {list(got)}, expected {list(expected)}"  # type: ignore[call-overload]


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
