"""The server: a strategy for each task, and the models that they begin with."""

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, FedProx

from fedmt_flower import FedMT
from tasks_app import tasks

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation."""
    strategy = FedMT({"wine": FedAvg(), "diabetes": FedProx(proximal_mu=0.01)})
    models = {"wine": tasks.wine_model(), "diabetes": tasks.diabetes_model()}
    strategy.start(
        grid=grid,
        initial_arrays={name: ArrayRecord(model.state_dict()) for name, model in models.items()},
        num_rounds=context.run_config["num-server-rounds"],
    )
