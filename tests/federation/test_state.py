"""What strategies keep goes to JSON and arrays and comes back the same, or is refused by name."""

from __future__ import annotations

import json
import logging
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAdam, FedAvg
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmt_flower.federation.state import Frozen, StateError, freeze, thaw

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(max_size=20))
ARRAYS = hnp.arrays(
    st.one_of(hnp.floating_dtypes(), hnp.integer_dtypes(), hnp.boolean_dtypes(), hnp.complex_number_dtypes()),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
KEYS = st.one_of(st.text(), st.integers(), st.tuples(st.integers(), st.text()))
VALUES = st.recursive(
    SCALARS | ARRAYS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)


def there_and_back(value: object, like: object = None) -> Any:
    """By way of a file's text, as a checkpoint goes."""
    frozen = freeze(value)
    return thaw(Frozen(json.loads(json.dumps(frozen.node)), frozen.blobs), like)


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    return bool(one == other)


@given(VALUES)
def test_values_come_back_the_same(value: Any) -> None:
    assert same(there_and_back(value), value)
    assert freeze(value).digests() == freeze(there_and_back(value)).digests()


def test_an_array_keeps_its_order_in_memory_and_a_scalar_its_type() -> None:
    back = there_and_back({"f": np.asfortranarray(np.ones((2, 3))), "s": np.float32(0.1)})
    assert back["f"].flags.f_contiguous
    assert back["s"] == np.float32(0.1)
    assert type(back["s"]) is np.float32


def test_records_of_flower_come_back_with_their_bytes() -> None:
    array = Array(np.asfortranarray(np.ones((2, 3), np.float32)))
    records = (
        ArrayRecord({"b": array, "a": Array(np.array(2))}),
        MetricRecord({"loss": math.inf, "n": [1, 2]}),
        ConfigRecord({"key": b"secret", "lr": 0.1, "on": True}),
    )
    back = there_and_back(records)
    assert back == records
    assert list(back[0]) == ["b", "a"]
    assert back[0]["b"].data == array.data


def test_what_several_places_hold_is_stored_once() -> None:
    array = np.ones(1000)
    assert len(freeze({"a": array, "b": [array]}).blobs) == 1
    assert len(freeze([np.ones(2), np.ones(2)]).blobs) == 2


def test_generators_go_on_where_they_were() -> None:
    class Drawing(FedAvg):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.numpy, self.python = np.random.default_rng(seed), random.Random(seed)

    old, new = Drawing(1), Drawing(2)
    old.numpy.normal(size=3)
    old.python.random()
    assert there_and_back(old, new) is new
    assert new.numpy.normal() == old.numpy.normal()
    assert new.python.random() == old.python.random()


def test_a_strategy_within_a_strategy_is_filled_and_keeps_its_functions() -> None:
    def make() -> DifferentialPrivacyServerSideFixedClipping:
        return DifferentialPrivacyServerSideFixedClipping(FedAdam(eta=0.1), 0.1, 0.5, 3)

    old, new = make(), make()
    inner = new.strategy
    assert isinstance(inner, FedAdam)
    function = inner.train_metrics_aggr_fn
    old.strategy.m_t = {"w": np.ones(3)}  # type: ignore[attr-defined]
    there_and_back({"seg": old}, {"seg": new})
    assert new.strategy is inner
    assert inner.train_metrics_aggr_fn is function
    assert inner.m_t is not None
    np.testing.assert_array_equal(inner.m_t["w"], np.ones(3))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"best": {"ever": {1}}}, "best.ever is a set"),
        ({"models": [1, object()]}, r"models\[1\] is a object"),
        ({"w": np.array([object()])}, "w is an array of objects"),
    ],
)
def test_what_has_no_form_is_named(value: object, told: str) -> None:
    with pytest.raises(StateError, match=told):
        freeze(value)


def test_a_strategy_that_is_not_there_any_more_is_refused() -> None:
    with pytest.raises(StateError, match="a strategy has no counterpart here"):
        there_and_back({"seg": FedAvg()}, {})
    kept = logging.getLogger("x"), Path("y"), math.sqrt
    assert there_and_back(kept, kept) == kept
