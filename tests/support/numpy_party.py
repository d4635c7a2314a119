"""A node that trains with numpy, behind a real link: the real Node, with ledger, guard and kept answers; no torch."""

import json
import threading
import zlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from channel import Authority, EchoParty, echo
from flwr.app import Context, Message, RecordDict
from privet.client.answers import Answers
from privet.client.app import client_app
from privet.client.draw import Draw
from privet.client.link import Asked
from privet.client.node import Node
from privet.client.operators import Operators
from privet.client.seat import Seat
from privet.client.teller import Teller
from privet.privacy.budget.accounts import AccountBook
from privet.privacy.channel.identities import Identity, IdentityKey, Role
from privet.privacy.parameters import Array, Parameters
from privet.privacy.signed import SignedSubmission, sign
from privet.privacy.submission import Submission
from signed_ledgers import declared, guard_of, opened, read

SHAPE = (300, 400)  # 480 kB: an answer that waits for its grant


class Steps:
    """A Trainer that adds what round and name say. `before`: called when training begins."""

    def __init__(self, before: Callable[[Draw], None]) -> None:
        self._before = before

    def initial(self) -> dict[str, Array]:
        return {"w": np.zeros(SHAPE, np.float32)}

    def train(self, parameters: Parameters, draw: Draw) -> dict[str, Array]:
        self._before(draw)
        seed = zlib.crc32(repr((draw.seed, draw.labels)).encode())
        return {"w": parameters["w"] + np.random.default_rng(seed).standard_normal(SHAPE, np.float32)}

    def evaluate(self, parameters: Parameters, draw: Draw) -> dict[str, float]:
        return {}

    def done(self) -> Mapping[str, str]:
        return {}


class NumpyParty(EchoParty):
    """See link.Party. Its ledger is a simulation's, so that a test may read it under the name of its owner."""

    def __init__(self, name: str, folder: Path, authority: Authority, before: Callable[[Draw], None] | None = None):
        super().__init__(echo, {"synthetic": "1"})
        self.name = name
        self.ledger = folder / f"{name}.sqlite"
        self.operators = Operators(authority.root.pem, authority.federation, dict)
        self._answers = folder / "answers" / name
        self._before = before or (lambda draw: None)
        self._seats: dict[str, Seat] = {}
        if not self.ledger.exists():
            declared(opened(self.ledger, owner=name)).ledger.close()
        self._teller = Teller(name, lambda: AccountBook(opened(self.ledger, owner=name)))

    def take(self, asked: Asked) -> None:
        self.asked.append(asked)
        if asked.run_id not in self._seats:
            self._seats[asked.run_id] = Seat(asked.run_id, lambda _: _Served(self._node()), lambda: None)
        self._seats[asked.run_id].put(asked)

    def welcomed(self, countersigned: str) -> None:
        super().welcomed(countersigned)
        self._teller.hear(countersigned)

    def stamped(self, message: Message) -> Message:
        return self._teller.stamp(message)

    def deny(self, keys: frozenset[str]) -> None:
        super().deny(keys)
        self.operators.deny(keys)

    def close(self) -> None:
        for seat in self._seats.values():
            seat.close(20)
        self._teller.close()

    def begun(self) -> list[tuple[str, str]]:
        """Round and attempt of each training that began, in order."""
        bodies = [json.loads(e.body) for e in read(self.ledger, owner=self.name) if e.kind == "begin"]
        return [(body["round"], body["attempt"]) for body in bodies if body["stage"] == "train"]

    def _node(self) -> Node:
        return Node(
            name=self.name,
            source=self.ledger,
            guard=guard_of(opened(self.ledger, owner=self.name)),
            answers=Answers(self._answers),
            workshop=lambda *_: Steps(self._before),
            operators=self.operators,
        )


class _Served:
    """A node behind Flower's ClientApp, as a seat asks it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._app = client_app(lambda _: node)

    def answer(self, message: Message) -> Message:
        return self._app(message, Context(1, 1, {}, RecordDict(), {}))

    def prepare(self, message: Message) -> None:
        return

    def close(self) -> None:
        self._node.close()


class Gatekeeper:
    """Holds a party's training at one round until it is opened."""

    def __init__(self, at_round: int) -> None:
        self._at_round = at_round
        self.is_reached, self._is_open = threading.Event(), threading.Event()

    def __call__(self, draw: Draw) -> None:
        if self._at_round in draw.labels:
            self.is_reached.set()
            assert self._is_open.wait(60)

    def open(self) -> None:
        self._is_open.set()


def signed_by(authority: Authority, submission: Submission, key: IdentityKey | None = None) -> SignedSubmission:
    """The submission, signed by an operator of the federation under the name that it gives."""
    key = key or IdentityKey.generate()
    identity = Identity(authority.federation, Role.OPERATOR, submission.body.operator)
    return sign(submission, key, authority.issuer.issue(identity, key.csr(), datetime.now(UTC)))
