"""Flower clients that host several tasks; thin adapters over the engine of their device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Context, Message
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from numpy.typing import NDArray

from fedmt_flower.device.contract import Weights
from fedmt_flower.domain.allocation import Allocation, Policy
from fedmt_flower.domain.coordination import Coordination
from fedmt_flower.domain.device import DeviceSettings
from fedmt_flower.domain.round import Mode, RoundReport
from fedmt_flower.domain.task import Task, check_unique
from fedmt_flower.errors import ConfigError, FederationError
from fedmt_flower.federation import codec
from fedmt_flower.federation.package import UNNAMED_TASK, Share
from fedmt_flower.federation.sites import Site, SiteName, site_of

_SECURE_AGGREGATION = {"secagg_mod", "secaggplus_mod"}
_SHARING = Allocation(policy=Policy.SHARING)
_DEVICE = DeviceSettings()
_UNCOORDINATED = Coordination()


def client_app(
    *tasks: Task,
    allocation: Allocation = _SHARING,
    coordination: Coordination = _UNCOORDINATED,
    device: DeviceSettings = _DEVICE,
    site: SiteName = None,
    seed: int = 0,
    mods: Sequence[Mod] = (),
) -> ClientApp:
    """A ClientApp that hosts `tasks`.

    It serves `FedMT` and, if it hosts a single task, Flower's own strategies as well.

    Parameters
    ----------
    tasks
        The tasks. A node hosts those that its node configuration names (``tasks="seg,det"``), else all.
    allocation
        The policy that chooses their budgets.
    coordination
        How batch sizes, the start order and transfers are chosen.
    device
        The device that they share.
    site
        The site's name, or a function of the context. None takes it from the node configuration's
        ``site``, else from its ``partition-id``, else from the node's id.
    seed
        Seed of the run, 0 or more.
    mods
        Flower's mods around training. They see all tasks of the node in one record of each type.

    Raises
    ------
    ConfigError
        If the tasks' names clash, or a mod cannot work.
    """
    check_unique(tasks)

    def configure(context: Context) -> Site:
        return site_of(
            context,
            tasks,
            allocation=allocation,
            coordination=coordination,
            device=device,
            name=site,
            seed=seed,
        )

    return build_client_app(configure, mods=mods)


def build_client_app(configure: Callable[[Context], Site], *, mods: Sequence[Mod] = ()) -> ClientApp:
    """A ClientApp whose site and tasks are known only by its context; otherwise as `client_app`."""
    for mod in mods:
        if getattr(mod, "__name__", "") in _SECURE_AGGREGATION:
            raise ConfigError(
                "mods: secure aggregation hides each site's update, which FedMT has to split and to check; "
                "leave it out"
            )
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        # A mod reads the arrays one by one.
        hello = replace(configure(context).hello, unpacks=not mods)
        return Message(codec.encode_hello(hello), reply_to=message)

    @app.train(mods=list(mods))
    def train(message: Message, context: Context) -> Message:
        # Flower's mods want as many arrays back as they saw go in.
        return _answer(message, configure(context), Mode.TRAIN, complete=bool(mods))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return _answer(message, configure(context), Mode.EVALUATE)

    return app


def _answer(message: Message, site: Site, mode: Mode, *, complete: bool = False) -> Message:
    package = codec.decode_package(message.content)
    if package is None:
        number, share = _plain_share(message, site, mode)
        report, update = site.play_one(number, share)
        content = codec.encode_plain(report, site.tasks[0].name, update, like=message.content)
    else:
        number, shares = package
        report, weights = site.play(number, shares)
        if complete:
            received = {task: share.weights for task, share in shares.items() if share.weights is not None}
            weights = {task: weights.get(task, received[task]) for task in received}
        content = codec.encode_answer(report, weights, packed=codec.is_packed(message.content))
    return Message(content, reply_to=message)


def _plain_share(message: Message, site: Site, mode: Mode) -> tuple[int, Share]:
    """The round and the one task's share of a message that is no package."""
    if len(site.tasks) > 1:
        raise FederationError(
            f"site {site.name!r}: {UNNAMED_TASK}, but the site hosts {', '.join(site.hello.tasks)}; "
            "the server needs FedMT with a strategy for each"
        )
    weights, config = codec.decode_plain(message.content)
    number = config.get(codec.SERVER_ROUND, 0)
    return number if isinstance(number, int) else 0, Share(mode=mode, weights=weights, config=config)


class MultiTaskClient(NumPyClient):
    """A client for `client_fn` apps that hosts several tasks; the server needs `FedMT`.

    Return ``MultiTaskClient(context, task, …).to_client()`` from the `client_fn`.

    Parameters
    ----------
    context
        What Flower hands to the `client_fn`.
    tasks, allocation, coordination, device, site, seed
        See `client_app`.
    """

    def __init__(
        self,
        context: Context,
        *tasks: Task,
        allocation: Allocation = _SHARING,
        coordination: Coordination = _UNCOORDINATED,
        device: DeviceSettings = _DEVICE,
        site: SiteName = None,
        seed: int = 0,
    ) -> None:
        self._site = site_of(
            context,
            tasks,
            allocation=allocation,
            coordination=coordination,
            device=device,
            name=site,
            seed=seed,
        )

    def get_properties(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The site's name and tasks, as `FedMT` asks for them."""
        return codec.hello_properties(self._site.hello)

    def fit(
        self, parameters: list[NDArray[Any]], config: Mapping[str, Any]
    ) -> tuple[list[NDArray[Any]], int, dict[str, Any]]:
        """Play the round that `config` describes; a failed task is told in the metrics' report."""
        report, weights = self._play(parameters, config)
        arrays, metrics = codec.encode_legacy_answer(report, weights)
        return arrays, sum(report.task(task).train_examples for task in weights), metrics

    def evaluate(
        self, parameters: list[NDArray[Any]], config: Mapping[str, Any]
    ) -> tuple[float, int, dict[str, Any]]:
        """Evaluate the tasks that `config` names; the loss is their mean, by examples."""
        report, _ = self._play(parameters, config)
        examples = [task.evaluate_examples for task in report.tasks]
        losses = [task.evaluate_metrics.get("loss", 0.0) for task in report.tasks]
        loss = float(np.average(losses, weights=examples)) if any(examples) else 0.0
        _, metrics = codec.encode_legacy_answer(report, {})
        return loss, sum(examples), metrics

    def _play(
        self, parameters: list[NDArray[Any]], config: Mapping[str, Any]
    ) -> tuple[RoundReport, dict[str, Weights]]:
        package = codec.decode_legacy_package(parameters, config)
        if package is None:
            raise FederationError(
                f"site {self._site.name!r}: {UNNAMED_TASK}; the server of a MultiTaskClient needs FedMT"
            )
        return self._site.play(*package)
