"""Workshop: what runs inside the process that trains: `python -m privet.client.workshop SOCKET PARENT`.

It is told what to serve (a submission and a data set, or a Flower app), says that it is ready, and answers one request
after the other until its socket ends. It checks the submission again by itself, draws its noise from the operating
system, and refuses a seed for a run that makes a claim. The first failure is its last answer: after an exception,
Opacus' hooks may hold half a batch and a GPU may be lost, so a new process is safer than a mended one.
"""

import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..privacy.budget.book import DeclaredDataset
from ..privacy.errors import PrivetError, UsageError
from ..privacy.submission import Submission
from .draw import Draw
from .node import Trainer
from .pipe import Packet, Pipe

_OUT_OF_THE_WAY = 200  # the socket's number: not one that a task's own files would have
_OUT_OF_MEMORY_SCORE = "800"  # of at most 1000: the system ends this process before the one that holds the ledger
_PR_SET_PDEATHSIG = 1

Handler = Callable[[Packet], Packet]


def main(arguments: Sequence[str]) -> int:
    """Serve the socket whose number is given, or describe tasks."""
    if arguments[0] == "--describe":
        _describe(arguments[1:])
        return 0
    descriptor, parent = (int(argument) for argument in arguments)
    pipe = Pipe(_own_socket(descriptor, parent))
    _be_expendable()
    _serve(pipe)
    return 0


def _serve(pipe: Pipe) -> None:
    handler: Handler = _opened
    while (packet := pipe.receive()) is not None:
        try:
            if handler is _opened:
                handler, reply = _begun(packet)
            else:
                reply = handler(packet)
        except Exception as error:
            traceback.print_exc()
            pipe.send(Packet({"failed": _told(error), "number": packet.head.get("number")}))
            return
        pipe.send(Packet({**reply.head, "number": packet.head.get("number")}, reply.arrays, reply.raw))


def _opened(packet: Packet) -> Packet:
    raise UsageError("nothing is served yet", "say first what to serve")


def _begun(packet: Packet) -> tuple[Handler, Packet]:
    """What the first packet asks to be served."""
    head = packet.head
    _limit_memory(head["memory_bytes"])
    match head["serve"]:
        case "task":
            return _task(head)
        case "app":
            from .flower_app import AppBench

            bench = AppBench.of(head)
            return lambda asked: Packet({}, raw=bench.handle(asked.raw)), Packet({"loaded_from": bench.loaded_from})
    raise UsageError(f"{head['serve']!r} cannot be served", "update privet")


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


def _told(error: Exception) -> dict[str, str]:
    if isinstance(error, PrivetError):
        return {"message": error.message, "remedy": error.remedy}
    return {"message": f"{type(error).__name__}: {error}", "remedy": "see the run's local log"}


def _own_socket(descriptor: int, parent: int) -> socket.socket:
    """The socket, under a number out of a task's way; with its end, or its parent's, this process ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY)
    os.close(descriptor)
    threading.Thread(target=_end_with_parent, args=(moved,), daemon=True).start()
    return socket.socket(fileno=moved)


def _end_with_parent(descriptor: int) -> None:
    """Also in the middle of training: no request would be read then."""
    poll = select.poll()
    poll.register(descriptor, 0)  # nothing but the hang-up
    poll.poll()
    os._exit(0)


def _be_expendable() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold records
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text(_OUT_OF_MEMORY_SCORE)


def _limit_memory(most_bytes: int | None) -> None:
    """Of private memory that can be written: address space is no measure where a GPU maps its own into it."""
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))


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
