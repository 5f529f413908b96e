"""A server's round on made-up replies, as the benchmark of the server runs it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from fedmt_flower.federation import turn
from fedmt_flower.federation.rehearsal import rehearse
from fedmt_flower.federation.spool import Spool

MODELS = {
    "R18": {"w": np.linspace(-1, 1, 4096, dtype=np.float32), "n": np.array(3)},
    "S2": {"w": np.ones((5, 7), np.float32)},
}


@pytest.mark.parametrize(("replies", "in_memory"), [(1, 1 << 20), (7, 1 << 20), (7, 40_000), (7, 0)])
def test_both_servers_come_to_the_same_models(
    replies: int, in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "Spool", partial(Spool, limit=in_memory))
    fedmt, fedavg = (rehearse(server, replies, MODELS) for server in ("fedmt", "fedavg"))
    assert fedmt.digests == fedavg.digests
    assert set(fedmt.digests) == set(MODELS)
    for cost in (fedmt, fedavg):
        assert 0 < cost.cpu_s < 60
        assert cost.seconds > 0
