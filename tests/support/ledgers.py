"""Ledgers for tests: written by the real guard, copied row by row, changed at will, written back without triggers."""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from open_policy import EVERYTHING
from privet.client.policy import NodePolicy
from privet.client.settings import NodeSettings
from privet.privacy.budget.accounts import AccountBook, AccountTerms
from privet.privacy.budget.admission import Charge
from privet.privacy.budget.book import DeclaredDataset
from privet.privacy.budget.decisions import Asker, Body, Case
from privet.privacy.budget.events import SampledGaussian
from privet.privacy.budget.guard import Attempt, Guard
from privet.privacy.budget.keys import SigningKey
from privet.privacy.budget.ledger import Entry, Ledger
from privet.privacy.budget.signer import Signer
from privet.privacy.budget.witness import Head, Witness
from privet.privacy.channel.identities import IdentityKey
from privet.privacy.errors import ChannelError, PrivetError, RefusedError
from privet.privacy.plan_app import AnySubmission
from privet.privacy.plan_file import parse_plan
from privet.privacy.policy.policy_file import PolicyFile
from privet.privacy.signed import PURPOSE, certificate_in
from privet.privacy.submission import Submission, resolve
from signers import Authority

Row = tuple[Any, ...]
START = datetime(2026, 3, 1, 9, tzinfo=UTC)
FEDERATION = Authority("f", START)
ALICE = IdentityKey.generate()  # the operator of every submission here
PLAN = """
[run]
name = "study"
task = "digits"
dataset = "{dataset}"
rounds = 3
spare-rounds = 1
[training]
local-steps = 2
learning-rate = 1.0
[privacy]
unit = "record"
noise-multiplier = {noise}
delta = 1e-5
clip-norm = 1.0
sampling-rate = 1.0
[evaluation]
every = 3
noise-multiplier = 30.0
"""
NO_CLAIM = """
[run]
name = "open"
task = "digits"
dataset = "{dataset}"
rounds = 3
[training]
learning-rate = 1.0
[privacy]
unit = "none"
sampling-rate = 1.0
"""


@dataclass
class Clock:
    """A second passes whenever it is looked at."""

    moment: datetime = START

    def __call__(self) -> datetime:
        self.moment += timedelta(seconds=1)
        return self.moment


@dataclass
class Institution:
    """An institution with a ledger of its own. A deployment's has a policy; a simulation's where one is written."""

    folder: Path
    owner: str = "institution"
    purpose: Any = "deployment"
    key: SigningKey = field(default_factory=SigningKey.generate)
    clock: Clock = field(default_factory=Clock)
    settings: NodeSettings = field(default_factory=NodeSettings)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "ledger.sqlite"
        self.witness_path = self.folder / "witness.jsonl"
        self.ledger = Ledger.open(self.path, purpose=self.purpose, owner=self.owner, key=self.key, clock=self.clock)
        self.accounts = AccountBook(self.ledger)
        self.server_key = SigningKey.generate()
        self._witnessed = 0
        self.policy: NodePolicy | None = None
        if self.purpose == "deployment":
            self.write_policy(EVERYTHING)

    def write_policy(self, text: str) -> None:
        """What the institution's policy says from now on."""
        path = self.folder / "policy.cedar"
        path.write_text(text)
        self.policy = NodePolicy(PolicyFile(path), lambda: self.settings)

    def guard(self, dataset: str) -> Guard:
        """The guard of a data set, which asks the policy."""
        return Guard(self.accounts, dataset, self.policy)

    def open(self, name: str = "ward", epsilon: str = "10", size: int = 1000, **terms: Any) -> None:
        self.accounts.open_account(name, AccountTerms("record", Decimal(epsilon), Decimal("1e-4"), **terms))
        self.accounts.add_dataset(DeclaredDataset(name, "digits", f"/data/{name}.csv", size, name))

    def submission(self, run: str, noise: float = 12.0, dataset: str = "ward", text: str = PLAN) -> Submission:
        plan = parse_plan(text.format(noise=noise, dataset=dataset), "test")
        return resolve(plan, federation="f", run_id=run, operator="alice", now=self.clock.moment)

    def admit(self, submission: Submission) -> bool:
        signer = self.signer(submission.canonical) if self.purpose == "deployment" else None
        try:
            self.guard(submission.plan.dataset).admit(submission, self.clock.moment, signer)
        except RefusedError:
            return False
        return True

    def signer(self, content: bytes) -> Signer:
        """Alice, who signed these bytes, with a certificate that was valid then."""
        chain = FEDERATION.party("alice", key=ALICE, at=self.clock.moment).chain
        is_pinned = "alice" in self.settings.operators
        return Signer(
            operator="alice",
            key_fingerprint=ALICE.fingerprint,
            signature=ALICE.sign(PURPOSE, content),
            certificates=chain,
            trust="pinned" if is_pinned else "coordinator",
            checked=self.clock.moment,
            certified=certificate_in(chain).not_before,
        )

    def train(self, submission: Submission, round_: int, stage: Any = "train") -> None:
        guard = self.guard(submission.plan.dataset)
        attempt = Attempt(stage, round_, 1, f"{round_}" * 64)
        guard.begin(submission, attempt)
        guard.answered(submission, attempt, "b" * 64, done(submission, stage))

    def begin(self, submission: Submission, round_: int) -> None:
        self.guard(submission.plan.dataset).begin(submission, Attempt("train", round_, 1, "a" * 64))

    def witness(self, name: str | None = None) -> None:
        """The server countersigns the head, and the ledger keeps that."""
        name = name or self.owner
        entry = self.ledger.head()
        assert entry is not None
        server = Witness(self.witness_path, name, self.server_key)
        charges = [
            {column: getattr(charge, column) for column in Entry.__slots__}
            for charge in self.ledger.entries(after=self._witnessed)
            if charge.kind == "charge"
        ]
        countersigned = server.countersign(Head.of(name, entry, self.key), charges)
        self._witnessed = entry.sequence
        Guard(self.accounts, "ward").keep_witnessed(countersigned)

    def forge(self, kind: str, body: dict[str, Any]) -> int:
        """An entry that no guard wrote: chained and signed all the same. Gives its number.

        Before a charge stand the permission and the operator who signed for it, as they should; before a request or an
        answer its permission.
        """
        if kind == "charge" and self.purpose == "deployment":
            signed = self.operator_body(body["run"], body["submission"], body["plan"].encode())
            self.permit_charge(body, signed)
            self.ledger.append("operator", signed)
        if kind in ("begin", "answer"):
            self.permit_attempt(kind, body)
        return self.ledger.append(kind, body).sequence

    def permit_charge(self, body: dict[str, Any], signed: dict[str, str]) -> None:
        """The permission of a forged charge, on facts that are the forged charge's."""
        for kind, content in self.charge_permission(body, signed):
            self.ledger.append(kind, content)

    def charge_permission(self, body: dict[str, Any], signed: dict[str, str]) -> Sequence[tuple[str, Body]]:
        """The entries of it."""
        book = self.accounts.catch_up()
        charge = Charge(*(Decimal(body[name]) for name in ("epsilon", "delta", "divergence")), ())
        size, account = int(body["declared_size"]), book.accounts.get(body["account"], book.accounts["ward"])
        dataset = book.datasets.get(body["dataset"]) or DeclaredDataset(body["dataset"], "digits", "/", size, "ward")
        asker = Asker(signed["operator"], signed["key_fingerprint"], _certified(signed))
        submission = self._submission_in(body)
        case = Case(submission, "admit", asker, self.clock.moment, book, dataset, account, charge)
        return self._entered(case, {"run": body["run"], "submission": body["submission"]})

    def permit_app(self, submission: AnySubmission, signed: dict[str, str]) -> None:
        """The permission of a forged app's run."""
        asker = Asker(signed["operator"], signed["key_fingerprint"], _certified(signed))
        case = Case(submission, "runApp", asker, self.clock.moment, self.accounts.catch_up())
        for kind, content in self._entered(case, {"run": signed["run"], "submission": signed["submission"]}):
            self.ledger.append(kind, content)

    def permit_attempt(self, kind: str, body: dict[str, Any]) -> None:
        """The permission of a forged request or answer, of a run that was charged."""
        book = self.accounts.catch_up()
        run = book.runs.get(body["run"])
        if run is None or self.policy is None:
            return
        charges = [entry for entry in self.ledger.entries() if entry.kind == "charge"]
        (charged, *_) = [entry.content for entry in charges if entry.content["run"] == run.run]
        actions = {"train": ("train", "releaseUpdate"), "evaluate": ("evaluate", "releaseMetric")}
        action: Any = actions[body["stage"]][kind == "answer"]
        known = book.signer_of(run.run, run.submission)
        asker = Asker("alice", known.key_fingerprint if known else "")
        dataset, account = book.datasets[run.dataset], book.accounts[run.account]
        where = {"round": int(body["round"]), "attempt": int(body["attempt"])}
        submission = self._submission_in(charged)
        case = Case(submission, action, asker, self.clock.moment, book, dataset, account, **where)
        for kind_, content in self._entered(case, {}):
            self.ledger.append(kind_, content)

    def _entered(self, case: Case, changed: dict[str, str]) -> Sequence[tuple[str, Body]]:
        assert self.policy is not None
        return [
            (kind, dict(content) | (changed if kind == "decision" else {}))
            for kind, content in self.policy(case).entries()
        ]

    def _submission_in(self, body: dict[str, Any]) -> Submission:
        try:
            return Submission.from_bytes(body["plan"].encode())
        except PrivetError:  # the forgery is that it cannot be read
            return self.submission(body["run"])

    def operator_body(self, run: str, digest: str, content: bytes) -> dict[str, str]:
        """What an honest node would write of Alice."""
        told = self.signer(content)
        return {
            "run": run,
            "submission": digest,
            "operator": told.operator,
            "key_fingerprint": told.key_fingerprint,
            "signature": told.signature.hex(),
            "certificates": told.certificates.decode(),
            "trust": told.trust,
            "checked": self.clock.moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }

    def rows(self) -> list[Row]:
        return rows_of(self.path)


def _certified(signed: dict[str, str]) -> datetime:
    try:
        return certificate_in(signed["certificates"].encode()).not_before
    except ChannelError:
        return START


def done(submission: Submission, stage: str = "train") -> dict[str, str]:
    """What an honest trainer says."""
    made = {"task": "digits", "task_version": "1", "code": "c" * 64, "versions": '{"torch":"2.9.0"}'}
    plan = submission.plan
    if stage == "evaluate":
        assert plan.evaluation is not None
        return made | {"steps": "1", "sampling_rate": "1.0", "noise_multiplier": repr(plan.evaluation.noise_multiplier)}
    made |= {"steps": str(plan.training.local_steps), "sampling_rate": repr(plan.privacy.sampling_rate)}
    if submission.claim is not None:
        made |= {"noise_multiplier": repr(submission.claim.noise_multiplier), "clip_norm": repr(plan.privacy.clip_norm)}
    return made


def rich_institution(folder: Path) -> Institution:
    """Every kind of entry that happens in an honest life."""
    house = Institution(folder)
    house.open()
    house.open("clinic", filter="renyi", typical=(SampledGaussian(12.0, 1.0, 8),))
    house.open("attic", allows_none=True)
    first, second = house.submission("run-1"), house.submission("run-2", dataset="clinic")
    assert house.admit(first)
    assert house.admit(second)
    for round_ in (1, 2, 3):
        house.train(first, round_)
        house.witness("hospital-a")
    house.train(first, 3, "evaluate")
    house.train(second, 1)
    assert not house.admit(house.submission("too-much", noise=0.5))
    house.accounts.raise_account("ward", Decimal(15), "ethics vote 2026-114")
    assert house.admit(house.submission("never-began"))
    assert house.admit(house.submission("open", dataset="attic", text=NO_CLAIM))
    house.clock.moment += timedelta(days=40)
    third = house.submission("run-3", noise=20.0)
    assert house.admit(third)  # and gives back what expired
    house.begin(third, 1)
    house.accounts.remove_dataset("clinic")
    house.accounts.close_account("clinic", "the study ended")
    house.witness("hospital-a")
    return house


def rows_of(path: Path) -> list[Row]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute("SELECT * FROM entries ORDER BY sequence").fetchall()
    finally:
        connection.close()


def written(path: Path, rows: Iterable[Row]) -> Path:
    """A file of these rows: a ledger's columns, without keys, types or triggers, as an attacker can write it."""
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE entries (sequence, time, kind, body, previous, hash, signature)")
    connection.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()
    return path


def resigned(rows: Iterable[Row], key: SigningKey, change: Callable[[Entry], Entry] = lambda entry: entry) -> list[Row]:
    """The whole chain anew, hashed and signed by another key."""
    made: list[Row] = []
    previous = "0" * 64
    for number, row in enumerate(rows, start=1):
        entry = change(Entry(*row))
        entry = Entry(number, entry.time, entry.kind, entry.body, previous, "", "")
        digest = entry.expected_hash()
        signature = key.sign("ledger-entry", bytes.fromhex(digest))
        made.append((number, entry.time, entry.kind, entry.body, previous, digest, signature))
        previous = digest
    return made
