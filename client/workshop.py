"""Workshop: what runs inside the process that trains: `python -m privet.client.workshop SOCKET PARENT`.

It is told what to serve: a submission and a data set, or a Flower app. It checks the submission again by itself, draws
its noise from the operating system, and refuses a seed for a run that makes a claim.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..privacy.budget.book import DeclaredDataset
from ..privacy.errors import PrivetError, UsageError
from ..privacy.submission import Submission
from .draw import Draw
from .inside import Handler, serve
from .node import Trainer
from .pipe import Packet


def main(arguments: Sequence[str]) -> int:
    """Serve the socket whose number is given, or describe tasks."""
    if arguments[0] == "--describe":
        _describe(arguments[1:])
        return 0
    descriptor, parent = (int(argument) for argument in arguments)
    serve(descriptor, parent, _opened)
    return 0


def _opened(head: Mapping[str, Any]) -> tuple[Handler, Packet]:
    match head["serve"]:
        case "task":
            return _task(head)
        case "app":
            return _app(head)
    raise UsageError(f"{head['serve']!r} cannot be served", "update privet")


def _app(head: Mapping[str, Any]) -> tuple[Handler, Packet]:
    from .flower_app import AppBench

    bench = AppBench.of(head)
    return bench.handle, Packet({"loaded_from": bench.loaded_from})


def _task(head: Mapping[str, Any]) -> tuple[Handler, Packet]:
    """Load task and model, probe them on synthetic records, and wait. No record is read before the first request."""
    import torch

    from .bench import Bench
    from .device import device_of
    from .tasks.registry import load_task

    torch.set_num_threads(head["threads"])
    submission = Submission.from_bytes(head["submission"].encode())
    dataset = DeclaredDataset(**head["dataset"])
    device = device_of(head["device"])
    trainer = Bench(load_task(dataset.task), device).trainer(submission, dataset, Path(head["source"]))
    print(f"run {submission.run_id}: task {dataset.task} on {device}", file=sys.stderr)
    return lambda asked: _trained(trainer, submission, asked), Packet({"device": str(device)}, trainer.initial())


def _trained(trainer: Trainer, submission: Submission, asked: Packet) -> Packet:
    draw = Draw(asked.head["seed"], tuple(asked.head["labels"]))
    if draw.is_seeded and submission.claim is not None:
        raise ValueError("a private run draws from the operating system")
    if asked.head["ask"] == "train":
        arrays = trainer.train(asked.arrays, draw)
        return Packet({"done": dict(trainer.done())}, arrays)
    if asked.head["ask"] == "evaluate":
        sums = trainer.evaluate(asked.arrays, draw)
        return Packet({"sums": sums, "done": dict(trainer.done())})
    raise ValueError(f"{asked.head['ask']!r} is not asked of a trainer")


def _describe(names: Sequence[str]) -> None:
    """Print the tasks' versions as JSON, or null for one that does not load; nothing else reaches the output."""
    output = os.dup(1)
    os.dup2(2, 1)
    from .tasks.registry import load_task

    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = load_task(name).version
        except PrivetError as error:
            print(error.message, file=sys.stderr)
            versions[name] = None
    with os.fdopen(output, "w", encoding="utf-8") as file:
        json.dump(versions, file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
