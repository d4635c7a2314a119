"""Flower's client, and its simulation: stock FedAvg on the Ray backend, an actor of one CPU for each core.

What makes it fast: no evaluation, data and module kept in the actor (this is a module that actors import, so what it
caches lasts), one thread an actor, the message API without conversions to numpy lists. Polling is as shipped.
Settings reach the actors by the environment, which Ray hands on.
"""

import json
import os
import time
from functools import lru_cache

import torch
from contender import answer, asked
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from local_training import Train, trainer
from models import NODES, RECORDS, initial, node_records, test_loss
from torch import Tensor, nn

_SETTING = "BENCH_SETTING"
client = ClientApp()


@lru_cache(maxsize=1)
def actor() -> tuple[nn.Module, Train, list[tuple[Tensor, Tensor]]]:
    """What an actor keeps: the module, its trainer, all nodes' records."""
    torch.set_num_threads(1)
    setting = json.loads(os.environ[_SETTING])
    model = initial(setting["model"])
    torch.seed()  # actors draw different noise
    return model, trainer(model, setting["privacy"], setting["learning_rate"]), node_records()


@client.train()
def train(message: Message, context: Context) -> Message:
    model, trained, shares = actor()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    trained(*shares[int(context.node_config["partition-id"])])
    metrics = MetricRecord({"num-examples": RECORDS})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)


class Timed(FedAvg):
    """FedAvg that notes when its rounds begin."""

    def __init__(self, cohort: int) -> None:
        super().__init__(
            fraction_train=cohort / NODES,
            fraction_evaluate=0.0,
            min_train_nodes=cohort,
            min_evaluate_nodes=0,
            min_available_nodes=NODES,
        )
        self.moments: list[float] = []

    def configure_train(self, *given: object, **more: object) -> object:
        self.moments.append(time.perf_counter())
        return super().configure_train(*given, **more)

    def aggregate_train(self, server_round: int, replies: object) -> object:
        replies = list(replies)
        errors = [reply.error for reply in replies if reply.has_error()]
        if errors:
            raise SystemExit(f"{len(errors)} clients failed: {errors[0]}")
        return super().aggregate_train(server_round, replies)


def main() -> None:
    torch.set_num_threads(1)
    given = asked()
    setting = {"model": given.model, "privacy": given.privacy, "learning_rate": given.learning_rate}
    os.environ[_SETTING] = json.dumps(setting)
    strategy, server, ended = Timed(given.cohort), ServerApp(), {}

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        begun = ArrayRecord(initial(given.model).state_dict())
        result = strategy.start(grid, begun, num_rounds=given.rounds)
        ended["moment"], ended["arrays"] = time.perf_counter(), result.arrays

    cores = len(os.sched_getaffinity(0))
    # Named by its module: an actor then imports it, instead of being sent a copy of its functions with every message.
    import flower_app

    run_simulation(
        server,
        flower_app.client,
        num_supernodes=NODES,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": cores}},
    )
    model = initial(given.model)
    model.load_state_dict(ended["arrays"].to_torch_state_dict())
    answer([*strategy.moments, ended["moment"]], test_loss(model))


if __name__ == "__main__":
    main()
