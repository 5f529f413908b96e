"""hospital: the server."""

import torch
from cells.task import Net as Cells
from digits.task import Net as Digits
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, FedAvgM

from fedmt_flower import FedMT

# Flower ServerApp
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation."""
    # Load global model
    arrays = {"digits": ArrayRecord(Digits().state_dict()), "cells": ArrayRecord(Cells().state_dict())}

    # Initialize FedAvg strategy
    strategy = FedMT({"digits": FedAvg(), "cells": FedAvgM(server_momentum=0.3)})

    # Start strategy, run FedAvg for `num_rounds`
    results = strategy.start(
        grid=grid,
        initial_arrays=arrays,
        train_config={name: ConfigRecord({"lr": context.run_config[f"{name}-lr"]}) for name in arrays},
        num_rounds=context.run_config["num-server-rounds"],
    )

    # Save final model to disk
    for name, result in results.items():
        torch.save(result.arrays.to_torch_state_dict(), f"{name}.pt")
