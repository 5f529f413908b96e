import pytest

from fedmt_flower.domain.network import Link, Volume
from fedmt_flower.errors import ConfigError


def test_a_transfer_holds_the_link_for_its_latency_and_its_bits() -> None:
    link = Link(up_mbps=100, down_mbps=400, latency_s=0.02)
    assert link.download_s(50_000_000) == pytest.approx(1.02)
    assert link.upload_s(50_000_000) == pytest.approx(4.02)


def test_a_link_says_what_it_is() -> None:
    assert str(Link(up_mbps=400, down_mbps=400)) == "400 Mbit/s each way"
    wifi = Link(up_mbps=150, down_mbps=200.5, full_duplex=False, latency_s=0.003)
    assert str(wifi) == "150 Mbit/s up and 200.5 down, one direction at a time, 3 ms latency"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"up_mbps": 0.0}, "network up: got 0 Mbit/s"),
        ({"down_mbps": float("inf")}, "network down: got inf Mbit/s"),
        ({"latency_s": -0.1}, "network latency: got -0.1 s"),
    ],
)
def test_a_link_that_cannot_be_is_refused_in_one_line(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Link(**{"up_mbps": 400.0, "down_mbps": 400.0} | wrong)


def test_a_volume_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="volume of seg: got 0 samples, expected at least 1"):
        Volume(task="seg", samples=0)
    with pytest.raises(ConfigError, match="expected 0 or more"):
        Volume(task="seg", samples=1, upload_bytes=-1)
