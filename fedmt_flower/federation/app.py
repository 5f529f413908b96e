"""The Flower app of the package, which `flwr run` starts.

The run configuration's key ``fedmt`` carries overrides as `fedmt sim` takes them, in one string:
``flwr run . --run-config 'fedmt="federation.rounds=5 allocation=temporal"'``.

Flower starts a process for every message, which imports this module: it loads no more than a message needs.
"""

from __future__ import annotations

import logging
from importlib.metadata import version

import msgspec
from flwr.app import ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp

from fedmt_flower.federation.client import build_client_app
from fedmt_flower.federation.running import configured_site, federate, initial_models
from fedmt_flower.federation.settings import Settings
from fedmt_flower.federation.sites import Site

_log = logging.getLogger("flwr.fedmt")

_OVERRIDES = "fedmt"
_COMPOSED = "fedmt-settings"


def composed(context: Context) -> Settings:
    """The settings of the app's run.

    A node keeps them in its context from the run's first message on: Hydra's import and its composition take
    0.5 s of a CPU, which every message would spend.
    """
    overrides = str(context.run_config.get(_OVERRIDES, ""))
    made_from = f"{version('fedmt_flower')} {overrides}"
    kept = context.state.config_records.get(_COMPOSED)
    if kept is not None and kept["from"] == made_from:
        return msgspec.json.decode(str(kept["json"]), type=Settings, dec_hook=lambda kind, value: kind(value))
    from fedmt_flower.federation.compose import compose

    settings = compose(overrides)
    text = msgspec.json.encode(settings, enc_hook=str).decode()
    context.state[_COMPOSED] = ConfigRecord({"from": made_from, "json": text})
    return settings


def _site(context: Context) -> Site:
    return configured_site(context, composed(context))


server = ServerApp()


@server.main()
def _main(grid: Grid, context: Context) -> None:
    from fedmt_flower.federation.record import Outcome
    from fedmt_flower.federation.recorder import Recorder

    settings = composed(context)
    recorder = Recorder(settings)
    _log.info("Results go to %s", recorder.folder.path.absolute())
    try:
        recorder.finish(federate(grid, settings, initial_models(settings), recorder.on_round))
    except Exception as error:
        recorder.give_up(Outcome.FAILED, str(error))
        raise
    except BaseException:
        recorder.give_up(Outcome.INTERRUPTED, "the server app was told to stop")
        raise


client = build_client_app(_site)
