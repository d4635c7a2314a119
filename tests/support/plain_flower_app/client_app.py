"""plain-flower-app: the ClientApp."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from plain_flower_app.task import load_data
from plain_flower_app.task import test as test_fn
from plain_flower_app.task import train as train_fn

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the model on local data."""
    model = msg.content["arrays"].to_numpy_ndarrays()

    partition_id = context.node_config["partition-id"]
    num_partitions = context.node_config["num-partitions"]
    inputs, targets, _, _ = load_data(partition_id, num_partitions)

    train_loss = train_fn(model, inputs, targets, context.run_config["local-epochs"], msg.content["config"]["lr"])

    # Keep the history of losses in the context, which lives as long as the run
    if "history" not in context.state:
        context.state["history"] = MetricRecord({"losses": []})
    losses = [*context.state["history"]["losses"], train_loss]
    context.state["history"] = MetricRecord({"losses": losses})

    metrics = {
        "train_loss": train_loss,
        "first_loss": losses[0],
        "rounds_seen": len(losses),
        "num-examples": len(inputs),
    }
    content = RecordDict({"arrays": ArrayRecord(model), "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Evaluate the model on local data."""
    model = msg.content["arrays"].to_numpy_ndarrays()

    partition_id = context.node_config["partition-id"]
    num_partitions = context.node_config["num-partitions"]
    _, _, inputs, targets = load_data(partition_id, num_partitions)

    metrics = {"eval_loss": test_fn(model, inputs, targets), "num-examples": len(inputs)}
    content = RecordDict({"metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=msg)
