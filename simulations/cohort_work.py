"""CohortWork: what the processes of a simulation do for groups of nodes, and what comes of it for each node.

The engine hands back a sum where the strategy is a weighted mean: updates stay in their rows, are added up there with
the very roundings of the server's running average, and so the sum is the same to the last bit.
"""

import logging
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..client.answers import Answer
from ..client.draw import Draw
from ..client.node import Begun, Carried
from ..client.participant import Participant
from ..client.pristine import Pristine
from ..client.randomness import drawn
from ..client.tasks.protocol import Partition, Records
from ..client.training import TrainableModel, held_out_scores, made_of
from ..client.update_clipping import clip_updates
from ..privacy.channel.words import WITHIN
from ..privacy.parameters import Parameters, is_same
from ..privacy.submission import Submission
from ..server.aggregation import PLAIN_BELOW, ROUNDING
from .cohort.batches import Member
from .cohort.chain import Chain
from .cohort.evaluation import evaluate
from .cohort.model import CohortModel
from .cohort.passes import Precision
from .cohort.stacked import StackedLayer
from .cohort.trainer import CohortTrainer
from .crew import Result
from .order_queue import Order
from .shelf import Shelf
from .variates import Variates
from .views import executed_by
from .world import World

# Values times rows from which a sum is worth sharing out; what of them one pass takes, so that it stays in the caches.
_WORTH_SHARING = 2**18
_ROWS_AT_ONCE, _TERMS_AT_ONCE = 32, 2**16
_REASON_LENGTH = 500  # characters of what a task raised, for the local log

log = logging.getLogger("privet.node")


class CohortWork:
    """Carries out groups of nodes that have begun. In any process: what it needs and gives lies in shared memory.

    The first process writes the round's parameters down (`load`), and makes orders and answers of what nodes have
    begun; whoever is called with an order trains the group, into rows of the shelf.
    """

    def __init__(
        self,
        model: CohortModel,
        trainable: TrainableModel,
        submission: Submission,
        world: World,
        shelf: Shelf,
        variates: Variates | None = None,
        precision: Precision = "float32",
    ) -> None:
        self._model = model
        self._trainable = trainable
        self._submission = submission
        self._world = world
        self._shelf = shelf
        self._variates = variates
        self._trainer = CohortTrainer(model, submission, precision=precision)
        self._pristine: Pristine | None = None
        if submission.plan.privacy.is_central:  # whatever a module of the task's keeps, it is no other node's
            self._pristine = Pristine(model.stacked, with_attributes=_is_the_tasks)
        self._made_of = made_of(world.task)
        self._rows = torch.from_numpy(shelf.rows)
        self._parameters = torch.from_numpy(_shared(np.float32, model.size))
        self._sum = torch.from_numpy(_shared(np.float64, model.size))
        self._added_rows, self._added_shares = (_shared(kind, len(shelf.rows)) for kind in (np.int64, np.float64))
        self._terms = torch.empty(_TERMS_AT_ONCE, dtype=torch.float64)
        self._early: torch.Tensor | None = None
        self._looked = torch.from_numpy(_shared(np.float32, model.size))
        self._loaded: Parameters | None = None
        self._records_of = _RecordsOf(world, model.device)

    def load(self, parameters: Parameters) -> None:
        """The parameters that the next orders are about. Nobody may be at an order of others."""
        if self._loaded is None or not is_same(parameters, self._loaded):
            self._parameters.copy_(self._model.joined(parameters))
            self._loaded = parameters

    def expect(self, round_number: int, count: int) -> None:
        """So many nodes are to be asked: raise CheckpointError where there is no room, before any of them begins."""
        self._shelf.expect(round_number, count)

    def order(self, begun: Sequence[tuple[Participant, Begun]]) -> Order | None:
        """What is to be done for these nodes; None where they are not asked the same, or there is no room."""
        first = begun[0][1]
        if self._loaded is None or not is_same(first.request.parameters, self._loaded):
            return None
        if not all(_is_alike(part, first) for _, part in begun) or first.submission.hash != self._submission.hash:
            return None
        members = [
            {"node": node.name, "size": node.dataset.declared_size, "seed": part.draw.seed, "labels": part.draw.labels}
            for node, part in begun
        ]
        order: Order = {"do": first.request.stage, "members": members}
        if first.request.stage == "train":
            order["clip_norm"] = first.request.clip_norm
            try:
                order["rows"] = [self._shelf.place(first.attempt.round) for _ in begun]
            except MemoryError:
                return None
        return order

    def __call__(self, order: Order) -> Result:
        """Carry it out; where the task fails, say so: alone, some may not fail."""
        if order["do"] == "add":
            self._add(order)
            return {}
        try:
            if order["do"] == "look":
                return self._looked_at(order)
            members = [self._records_of.member(**member) for member in order["members"]]
            if order["do"] == "evaluate":
                evaluated = evaluate(self._model, self._model.views(self._parameters), members)
                return {"done": dict(evaluated[0].done), "sums": [one.sums for one in evaluated]}
            names = [member["node"] for member in order["members"]]
            corrections = self._variates.corrections(names).to(self._model.device) if self._variates else None
            start = self._parameters.to(self._model.device)
            place = self._in_place(order["rows"])
            trained, done = self._trained(start, members, corrections, place)
            result: Result = {"done": done}
            if order["clip_norm"] is not None:  # whole updates are clipped, where whole nodes are hidden
                result["within"] = clip_updates(start, trained, order["clip_norm"]).tolist()
            values = trained.cpu()
            if trained is not place:
                for row, value in zip(order["rows"], values, strict=True):
                    self._rows[row] = value
            if self._variates is not None:
                self._variates.note(names, self._parameters.numpy(), values.numpy())
            is_kept = order["clip_norm"] is None  # by its hash an answer is found again, where one is kept
            result["hashes"] = [self._shelf.hash_of(row) if is_kept else "" for row in order["rows"]]
            least, largest = map(float, values.aminmax())  # of what is no number, neither is one
            result["plain"] = max(largest, -least) < PLAIN_BELOW  # else each is handed over, and judged there
            return result
        except Exception as error:
            return {"failed": f"{type(error).__name__}: {error}"[:_REASON_LENGTH]}

    def _looked_at(self, order: Order) -> Result:
        scores = held_out_scores(self._trainable, self._model.views(self._looked), self._world.held_out)
        epsilon = executed_by(self._submission, order["attempts"], order["round"])
        return {"scores": dict(scores), "epsilon": None if epsilon is None else str(epsilon)}

    def _in_place(self, rows: Sequence[int]) -> torch.Tensor | None:
        """Rows in which nodes can be trained where their updates are to stay: those of a CPU, side by side.

        What is half done there when the task fails is no answer: nothing names it, and an answer is found by its hash.
        """
        first, end = rows[0], rows[0] + len(rows)
        is_fit = list(rows) == list(range(first, end)) and self._model.device.type == "cpu"
        return self._rows[first:end] if is_fit else None

    def _trained(
        self,
        start: torch.Tensor,
        members: Sequence[Member],
        corrections: torch.Tensor | None,
        place: torch.Tensor | None,
    ) -> tuple[torch.Tensor, dict[str, str]]:
        """The trained parameters [N, d] of nodes together; where whole nodes are hidden, of each alone in a model that
        was put back before: an update must not depend on who trains beside it (server/central.py, rule 2).
        """
        if self._pristine is None:
            together = self._trainer.train_together(start, members, place, corrections)
            return together.values, dict(together.done)
        rows, done = [], dict[str, str]()
        for member in members:
            self._pristine.restore()
            update = self._trainer.train_together(start, [member])
            rows.append(update.values)
            done = dict(update.done)
        return torch.cat(rows), done

    def carried(self, order: Order, result: Result) -> list[Carried] | None:
        """What each node of an order gave; None where the task failed for them together."""
        if "failed" in result:
            names = ", ".join(member["node"] for member in order["members"])
            log.warning("the task failed for %s together: %s", names, result["failed"])
            return None
        done = {**result["done"], **self._made_of}
        if order["do"] == "evaluate":
            return [Carried(Answer(sums=sums), done) for sums in result["sums"]]
        placed = zip(order["rows"], result["hashes"], strict=True)
        answers: list[Answer] = [self._shelf.answer(row, digest) for row, digest in placed]
        if "within" in result:
            told = zip(answers, result["within"], strict=True)
            answers = [replace(answer, sums={WITHIN: float(within)}) for answer, within in told]
        return [Carried(answer, done) for answer in answers]

    def look_order(self, model: Parameters, attempts: int | None, round_number: int) -> Order:
        """Of a model that need not be the next orders' one, the scores on what is held out; and see `executed_by`. One
        at a time.
        """
        self._looked.copy_(self._model.joined(model))
        return {"do": "look", "attempts": attempts, "round": round_number}

    def update_in(self, row: int) -> Parameters:
        """The update in a row, where it lies."""
        return self._shelf.answer(row, "").parameters

    def sum_orders(self, rows: Sequence[int], shares: Sequence[float], processes: int) -> list[Order]:
        """How the sum of rows, each times its share, is computed: a part of the model for each process. One sum at a
        time.
        """
        parts = processes if len(rows) * self._model.size >= _WORTH_SHARING else 1
        ends = [self._model.size * part // parts for part in range(parts + 1)]
        self._added_rows[: len(rows)], self._added_shares[: len(rows)] = rows, shares
        return [{"do": "add", "count": len(rows), "from": start, "to": end} for start, end in pairwise(ends)]

    def add_now(self, rows: Sequence[int], shares: Sequence[float]) -> None:
        """Add rows, each times its share, in this process: for when it would wait. See `taken_sum`."""
        if self._early is None:
            self._early = torch.zeros(self._model.size, dtype=torch.float64)
        self._add_rows(self._early, rows, shares, 0, self._model.size)

    def taken_sum(self, is_ordered: bool) -> dict[str, NDArray[np.float64]]:
        """By name, flat: what was added at once, and what the last orders of `sum_orders` have, if there were any."""
        early, self._early = self._early, None
        total = self._sum if early is None else early.add_(self._sum) if is_ordered else early
        values = total.numpy()
        return {slot.name: values[slot.start : slot.end] for slot in self._model.slots}

    def _add(self, order: Order) -> None:
        start, end, count = order["from"], order["to"], order["count"]
        self._sum[start:end] = 0.0  # here, since an order may be carried out twice
        rows, shares = (array[:count].tolist() for array in (self._added_rows, self._added_shares))
        self._add_rows(self._sum, rows, shares, start, end)

    def _add_rows(
        self, total: torch.Tensor, rows: Sequence[int], shares: Sequence[float], first: int, last: int
    ) -> None:
        """As aggregation.RunningAverage.add: terms are rounded to multiples of a quantum, so that no order counts.

        All values are below PLAIN_BELOW: so every sum on the way is exact.
        """
        for start, of_rows in _runs(rows, shares):
            block = self._rows[start : start + len(of_rows)]
            share = torch.tensor(of_rows, dtype=torch.float64).unsqueeze(1)
            count = len(self._terms) // len(of_rows)
            terms = self._terms[: count * len(of_rows)].view(len(of_rows), count)
            for place in range(first, last, count):
                end = min(place + count, last)
                some = terms[:, : end - place].copy_(block[:, place:end])
                total[place:end] += some.mul_(share).add_(ROUNDING).sub_(ROUNDING).sum(dim=0)


class _RecordsOf:
    """The nodes' records, each node's loaded when it has begun for the first time in this process, and not before."""

    def __init__(self, world: World, device: torch.device) -> None:
        self._world = world
        self._device = device
        self._shared: Records | None = None  # the world's, on the device
        self._held: dict[str, tuple[Records, torch.Tensor | None]] = {}

    def member(self, node: str, size: int, seed: int | None, labels: Sequence[str | int]) -> Member:
        """A node that declares `size` records, with what it draws from."""
        if node not in self._held:
            self._held[node] = self._loaded(self._world.shares[node])
        records, indices = self._held[node]
        return Member(records, size, partial(drawn, Draw(seed, tuple(labels))), indices)

    def _loaded(self, share: Partition) -> tuple[Records, torch.Tensor | None]:
        """The world's own records with the share's places in them; or what the task makes of the share."""
        loaded, plain = self._world.task.load(share), share.load()
        if not (torch.equal(loaded.inputs, plain.inputs) and torch.equal(loaded.targets, plain.targets)):
            return loaded.to(self._device), None
        if self._shared is None:
            self._shared = share.records.to(self._device)
        return self._shared, share.indices


def _shared(kind: type[np.generic], count: int) -> NDArray[Any]:
    """Zeros that forked processes share."""
    return np.frombuffer(mmap.mmap(-1, count * np.dtype(kind).itemsize), kind)


def _is_the_tasks(module: nn.Module) -> bool:
    return not (isinstance(module, StackedLayer | Chain) or type(module).__module__.startswith("torch.nn."))


def _runs(rows: Sequence[int], shares: Sequence[float]) -> Iterator[tuple[int, list[float]]]:
    """Rows that follow one another: the first of them, and the share of each; not too many at once."""
    start, found = 0, list[float]()
    for row, share in sorted(zip(rows, shares, strict=True)):
        if found and (row != start + len(found) or len(found) == _ROWS_AT_ONCE):
            yield start, found
            found = []
        start = start if found else row
        found.append(share)
    if found:
        yield start, found


def _is_alike(one: Begun, other: Begun) -> bool:
    same = one.request.stage == other.request.stage and one.submission.hash == other.submission.hash
    return same and is_same(one.request.parameters, other.request.parameters)
