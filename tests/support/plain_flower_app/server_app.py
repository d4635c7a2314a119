"""plain-flower-app: the ServerApp."""

import json
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from plain_flower_app.task import get_initial_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Main entry point for the ServerApp."""
    num_rounds = context.run_config["num-server-rounds"]
    lr = context.run_config["lr"]

    arrays = ArrayRecord(get_initial_model())
    strategy = FedAvg(fraction_evaluate=context.run_config["fraction-evaluate"])

    result = strategy.start(
        grid=grid,
        initial_arrays=arrays,
        train_config=ConfigRecord({"lr": lr}),
        evaluate_config=ConfigRecord({"purpose": "validation"}),
        num_rounds=num_rounds,
    )

    # Save the final model and the metrics to disk
    np.savez(context.run_config["model-file"], *result.arrays.to_numpy_ndarrays())
    metrics = {
        "train": {number: dict(record) for number, record in result.train_metrics_clientapp.items()},
        "evaluate": {number: dict(record) for number, record in result.evaluate_metrics_clientapp.items()},
    }
    Path(context.run_config["metrics-file"]).write_text(json.dumps(metrics), encoding="utf-8")
