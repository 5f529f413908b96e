"""cells: the server."""

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvgM

from cells.task import Net

# Flower ServerApp
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation."""
    # Load global model
    arrays = ArrayRecord(Net().state_dict())

    # Initialize FedAvgM strategy
    strategy = FedAvgM(
        fraction_evaluate=context.run_config["fraction-evaluate"],
        server_momentum=0.3,
    )

    # Start strategy, run FedAvgM for `num_rounds`
    result = strategy.start(
        grid=grid,
        initial_arrays=arrays,
        train_config=ConfigRecord({"lr": context.run_config["learning-rate"]}),
        num_rounds=context.run_config["num-server-rounds"],
    )

    # Save final model to disk
    torch.save(result.arrays.to_torch_state_dict(), "final_model.pt")
