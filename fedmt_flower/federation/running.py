"""A configured federation: what its server does, and what its clients are."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedmt_flower.device.contract import Weights
from fedmt_flower.domain.history import FederationRound
from fedmt_flower.federation.arrays import to_record, to_weights
from fedmt_flower.federation.client import build_client_app
from fedmt_flower.federation.settings import Settings
from fedmt_flower.federation.sites import Site, site_of
from fedmt_flower.federation.strategies import build_fedmt

_log = logging.getLogger("flwr.fedmt")

_LOOK_EVERY_S = 0.2


def initial_models(settings: Settings) -> dict[str, Weights]:
    """The weights that every task begins with; TaskError if a model cannot be built."""
    # Imports torch, which the clients of a simulation would pay for too.
    from fedmt_flower.device.training.initial import initial_weights

    return {task.name: initial_weights(task, settings.federation.seed) for task in settings.tasks}


def federate(
    grid: Grid,
    settings: Settings,
    initial: Mapping[str, Weights],
    on_round: Callable[[FederationRound], None],
) -> dict[str, Weights]:
    """Run a federation on the nodes of `grid`; the final weights of every task.

    Raises
    ------
    FederationError
        If no site connects, no task was updated in any round, or the checkpoints cannot be gone on from.
    """
    federation = settings.federation
    names = [task.name for task in settings.tasks]
    strategy = build_fedmt(
        federation.strategies_of(names),
        rules=federation.rules_of(names),
        checkpoint=federation.checkpoint,
        seed=federation.seed,
    )
    _wait_for_sites(grid, federation.sites, federation.join_timeout_s)
    results = strategy.start(
        grid,
        {task: to_record(weights) for task, weights in initial.items()},
        num_rounds=federation.rounds,
        timeout=federation.timeout_s,
        on_round=on_round,
    )
    return {name: to_weights(result.arrays) for name, result in results.items()}


def client_of(settings: Settings) -> ClientApp:
    """The client app of every site of a federation."""
    return build_client_app(lambda context: configured_site(context, settings))


def configured_site(context: Context, settings: Settings) -> Site:
    """The site that a node is in the federation of `settings`."""
    return site_of(
        context,
        settings.tasks,
        allocation=settings.allocation,
        coordination=settings.coordination,
        device=settings.device,
        seed=settings.federation.seed,
    )


def _wait_for_sites(grid: Grid, wanted: int, timeout: float) -> None:
    """Wait for `wanted` nodes, at most `timeout` seconds: FedMT goes on with those that are there."""
    deadline = time.monotonic() + timeout
    while (found := len(list(grid.get_node_ids()))) < wanted:
        if time.monotonic() > deadline:
            _log.warning("%d of %d sites connected within %g s; the run begins", found, wanted, timeout)
            return
        time.sleep(_LOOK_EVERY_S)
