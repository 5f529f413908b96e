"""A training's state in a buffer and a layout."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import msgspec
import pytest
import torch

from fedmt_flower.device.ipc.state import Held, Layout, Packing, checksum, empty_buffer, unpacked

STATE = {
    "optimizer": {
        "state": {0: {"momentum_buffer": torch.randn(3, 5), "step": torch.tensor(7.0)}, 12: {}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "foreach": None, "params": [0, 12]}],
    },
    "odd": [torch.randn(7).to(torch.bfloat16), torch.tensor([True, False, True]), torch.empty(0, 3)],
    "strided": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)[:, 1:],
    "integers": torch.arange(3),
    True: "yes",
    "limits": (math.inf, -0.0, 1e-320, 2**63 - 1, -(2**40)),
}  # fmt: skip


def there(state: object) -> Any:
    """`state` after its way: its layout through JSON, its tensors through a copied buffer."""
    packing = Packing(state)
    buffer = empty_buffer(packing.size, "cpu")
    packing.into(buffer)
    layout = msgspec.json.decode(msgspec.json.encode(packing.layout), type=Layout)
    return unpacked(layout, buffer.clone())


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        dense = torch.empty_like(right)
        alike = (left.dtype, left.stride()) == (right.dtype, dense.stride())
        return alike and torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and all(map(same, left, right))
    return type(left) is type(right) and repr(left) == repr(right)


def test_a_state_arrives_as_it_left() -> None:
    arrived = there(STATE)
    assert same(arrived, STATE)
    arrived["integers"] += 1
    assert same(there(OrderedDict(STATE)), STATE)


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": [1, {2, 3}]}, r"state\['a'\]\[1\] is a set"),
        ({"a": {1.5: 0}}, r"state\['a'\] has the key 1.5"),
        ([torch.zeros(2, 2).to_sparse()], r"state\[0\] is a tensor of float32 \(torch.sparse_coo\)"),
        ([torch.zeros(2, dtype=torch.complex64)], r"state\[0\] is a tensor of complex64"),
    ],
)
def test_what_cannot_travel_is_named(state: object, where: str) -> None:
    with pytest.raises(TypeError, match=where):
        Packing(state)


def test_a_changed_byte_changes_the_checksum() -> None:
    buffer = empty_buffer(100, "cpu")
    before = checksum(buffer)
    buffer[70] = 1
    assert checksum(buffer) != before


def test_a_layout_that_leaves_its_buffer_is_refused() -> None:
    packing = Packing([torch.zeros(100)])
    with pytest.raises(ValueError, match="ends at byte 400, its buffer has 32"):
        unpacked(packing.layout, empty_buffer(32, "cpu"))
    wide = Held("float32", (2, 2), (3, 1), 0, host=True)
    with pytest.raises(ValueError, match=r"strides \(3, 1\), which leave gaps"):
        unpacked(wide, empty_buffer(32, "cpu"))


def test_a_channels_last_state_stays_so() -> None:
    weights = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    assert there([weights])[0].is_contiguous(memory_format=torch.channels_last)
