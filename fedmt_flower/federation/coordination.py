"""The groups `batching`, `overlap` and `network` of a configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedmt_flower.domain.coordination import BatchRules, Coordination, NetworkRules, OverlapRules
from fedmt_flower.domain.network import Link
from fedmt_flower.errors import expected_one_of
from fedmt_flower.federation.reading import collect, read


@dataclass(frozen=True, slots=True, kw_only=True)
class _Network:
    """The group `network`, flat, so that each of the link's values is an override."""

    up_mbps: float | None = None
    down_mbps: float | None = None
    full_duplex: bool = True
    latency_s: float = 0.0
    force: bool = False


def read_coordination(
    batching: Mapping[str, Any],
    overlap: Mapping[str, Any],
    network: Mapping[str, Any],
    tasks: Iterable[str],
    problems: list[str],
) -> Coordination | None:
    """Make one value of the three groups; None, and `problems` grown, if anything is wrong with them.

    `tasks` are the names that a start order may have.
    """
    count, names = len(problems), list(tasks)
    batch_rules = read(BatchRules, batching, "batching", problems)
    overlap_rules = read(OverlapRules, overlap, "overlap", problems)
    flat = read(_Network, network, "network", problems)
    network_rules = _network_rules(flat, problems) if flat else None
    if overlap_rules:
        problems += [
            f"overlap.order: there is no task {task!r}; {expected_one_of(task, names)}"
            for task in overlap_rules.order
            if task not in names
        ]
    if len(problems) > count or not (batch_rules and overlap_rules and network_rules):
        return None
    return Coordination(batching=batch_rules, overlap=overlap_rules, network=network_rules)


def _network_rules(flat: _Network, problems: list[str]) -> NetworkRules | None:
    up, down = flat.up_mbps, flat.down_mbps
    if up is None and down is None:
        if flat.latency_s or not flat.full_duplex:
            problems.append("network: got a latency or half duplex but no rates; give up_mbps and down_mbps")
            return None
        return NetworkRules(force=flat.force)
    if up is None or down is None:
        problems.append(
            f"network: got up_mbps={up} and down_mbps={down}, expected both rates, or neither for no link"
        )
        return None
    link = collect(
        lambda: Link(up_mbps=up, down_mbps=down, full_duplex=flat.full_duplex, latency_s=flat.latency_s),
        "",
        problems,
    )
    return NetworkRules(link=link, force=flat.force) if link else None
