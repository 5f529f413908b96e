"""The Flower app of the package, which `flwr run` starts.

The run configuration's key ``fedmt`` carries overrides as `fedmt sim` takes them, in one string:
``flwr run . --run-config 'fedmt="federation.rounds=5 allocation=temporal"'``.
"""

from __future__ import annotations

import logging

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedmt_flower.federation.client import build_client_app
from fedmt_flower.federation.compose import compose
from fedmt_flower.federation.record import Outcome
from fedmt_flower.federation.recorder import Recorder
from fedmt_flower.federation.running import configured_site, federate, initial_models
from fedmt_flower.federation.settings import Settings

_log = logging.getLogger("flwr.fedmt")

_OVERRIDES = "fedmt"


def _settings(context: Context) -> Settings:
    return compose(str(context.run_config.get(_OVERRIDES, "")))


server = ServerApp()


@server.main()
def _main(grid: Grid, context: Context) -> None:
    settings = _settings(context)
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


client = build_client_app(lambda context: configured_site(context, _settings(context)))
