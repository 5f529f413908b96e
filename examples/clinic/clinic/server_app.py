"""clinic: the server."""

from cells.task import Net as Cells
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, FedAvgM
from wine.task import Net as Wine

from fedmt_flower import FedMT

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation."""
    arrays = {"wine": ArrayRecord(Wine().state_dict()), "cells": ArrayRecord(Cells().state_dict())}
    strategy = FedMT({"wine": FedAvg(), "cells": FedAvgM(server_momentum=0.3)})
    strategy.start(
        grid=grid,
        initial_arrays=arrays,
        train_config={name: ConfigRecord({"lr": context.run_config[f"{name}-lr"]}) for name in arrays},
        num_rounds=context.run_config["num-server-rounds"],
    )
