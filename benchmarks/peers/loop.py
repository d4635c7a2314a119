"""Plain torch, or Opacus: node after node, in one process or in several of one thread each.

Processes share the model and their sums in memory, so nothing is serialised but the numbers of the nodes.
"""

import multiprocessing
import time
from multiprocessing.connection import Connection

import torch
from contender import answer, asked
from local_training import Train, trainer
from models import NODES, SEED, initial, node_records, test_loss
from torch import Tensor, nn

Shares = list[tuple[Tensor, Tensor]]


def pieces(values: Tensor, model: nn.Module) -> list[Tensor]:
    """One vector seen as the model's parameters."""
    parts = values.split([parameter.numel() for parameter in model.parameters()])
    return [part.view_as(parameter) for part, parameter in zip(parts, model.parameters(), strict=True)]


class Worker:
    """Trains nodes from `start` and leaves the sum of their parameters in `total`."""

    def __init__(self, model: nn.Module, train: Train, shares: Shares, start: Tensor, total: Tensor) -> None:
        self._parameters = list(model.parameters())
        self._train, self._shares = train, shares
        self._start, self._sum, self._total = pieces(start, model), pieces(total, model), total

    def __call__(self, nodes: list[int]) -> None:
        self._total.zero_()
        for node in nodes:
            with torch.no_grad():
                for parameter, value in zip(self._parameters, self._start, strict=True):
                    parameter.copy_(value)
            self._train(*self._shares[node])
            with torch.no_grad():
                for total, parameter in zip(self._sum, self._parameters, strict=True):
                    total.add_(parameter)


def serve(pipe: Connection, worker: Worker, seed: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    while (nodes := pipe.recv()) is not None:
        worker(nodes)
        pipe.send(True)


def main() -> None:
    torch.set_num_threads(1)
    given = asked()
    model, shares = initial(given.model), node_records()
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone().share_memory_()
    totals = torch.zeros(given.processes, start.numel()).share_memory_()
    train = trainer(model, given.privacy, given.learning_rate)
    workers = [Worker(model, train, shares, start, total) for total in totals]
    fork = multiprocessing.get_context("fork")
    pipes = []
    for number, worker in enumerate(workers[1:], start=1):
        here, there = fork.Pipe()
        fork.Process(target=serve, args=(there, worker, SEED + number), daemon=True).start()
        pipes.append(here)
    moments = [time.perf_counter()]
    for _ in range(given.rounds):
        cohort = torch.randperm(NODES)[: given.cohort].tolist()
        for number, pipe in enumerate(pipes, start=1):
            pipe.send(cohort[number :: given.processes])
        workers[0](cohort[:: given.processes])
        for pipe in pipes:
            pipe.recv()
        torch.sum(totals, dim=0, out=start)
        start /= given.cohort
        moments.append(time.perf_counter())
    for pipe in pipes:
        pipe.send(None)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), pieces(start, model), strict=True):
            parameter.copy_(value)
    answer(moments, test_loss(initial_with(model, given.model)))


def initial_with(model: nn.Module, name: str) -> nn.Module:
    """A plain module with the same parameters: Opacus has hooked into this one."""
    plain = initial(name)
    plain.load_state_dict(model.state_dict())
    return plain


if __name__ == "__main__":
    main()
