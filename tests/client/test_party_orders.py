"""What a node's party does with orders, with a server's word on the ledger, and with a description while it is busy."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from institution import PLAN
from open_policy import EVERYTHING, permit_everything
from parties import Federation, make_federation
from privet.client.link import Asked
from privet.client.party import MOST_SEATS, NodeParty
from privet.client.state import Orders
from privet.privacy.budget.accounts import AccountBook
from privet.privacy.budget.approvals import say
from privet.privacy.budget.book import DeclaredDataset
from privet.privacy.budget.ledger import Entry
from privet.privacy.budget.witness import Head, Witness, head_text
from privet.privacy.channel import words
from privet.privacy.channel.flower import SERVER_NODE_ID, run_number
from privet.privacy.channel.identities import IdentityKey, Role
from privet.privacy.errors import Refusal
from privet.privacy.home import Home
from privet.privacy.plan_file import parse_plan
from privet.privacy.signed import SignedSubmission, sign
from privet.privacy.submission import resolve
from signed_ledgers import ACCOUNT, WIDE

LONG = 20.0
NODE = 12345


class Question:
    """A request, and the answer that somebody waits for. `held`: the seat that answers is held up until `release`."""

    def __init__(self, kind: str, run_id: str = "run-1", signed: SignedSubmission | None = None, held: bool = False):
        content = RecordDict()
        if signed is not None:
            told = {"submission": signed.submission, "signature": signed.signature, "certificates": signed.certificates}
            content = RecordDict({words.CONFIG: ConfigRecord({**told, words.ROUND: 0, words.ATTEMPT: 0})})
        metadata = Metadata(run_number(run_id), "ab" * 16, SERVER_NODE_ID, NODE, "", "1", 1e9, 60.0, kind)
        self.asked = Asked(kind.encode(), run_id, Message(content=content, metadata=metadata), self._answer)
        self._is_answered, self._is_released = threading.Event(), threading.Event()
        self._reply: Message | None = None
        if not held:
            self.release()

    def release(self) -> None:
        self._is_released.set()

    def _answer(self, reply: Message) -> None:
        self._reply = reply
        self._is_answered.set()
        self._is_released.wait(LONG)

    @property
    def reply(self) -> Message:
        assert self._is_answered.wait(LONG), "nobody answers"
        assert self._reply is not None
        return self._reply

    @property
    def refusal(self) -> str | None:
        return self.reply.error.reason if self.reply.has_error() else None


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return make_federation(tmp_path / "coordinator")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "st-marys")


@pytest.fixture
def book(home: Home) -> Iterator[AccountBook]:
    accounts = home.create_book(None)
    accounts.open_with_dataset(WIDE, DeclaredDataset("ward7", "elsewhere", "/data", 120, ACCOUNT))
    yield accounts
    accounts.ledger.close()


@pytest.fixture
def party(federation: Federation, home: Home, book: AccountBook) -> Iterator[NodeParty]:
    permit_everything(home.root)
    made = NodeParty(home, federation.member("st-marys", home.root), None)
    yield made
    made.close(0.0)


@pytest.fixture
def signed(federation: Federation, tmp_path: Path) -> SignedSubmission:
    """An operator's submission of run-1, for a task that is not installed here: describing needs none."""
    key, now = IdentityKey.generate(), datetime.now(UTC).replace(microsecond=0)
    chain = federation.registrar.join(federation.token("alice", Role.OPERATOR).secret, key.csr())
    plan = parse_plan(PLAN.replace('"digits"', '"elsewhere"'), "plan.toml")
    made = resolve(
        plan, federation=federation.name, run_id="run-1", operator="alice", now=now, validity=timedelta(days=1)
    )
    return sign(made, key, chain)


def put(party: NodeParty, question: Question) -> Question:
    party.take(question.asked)
    return question


def witnessed(home: Home, book: AccountBook, folder: Path, change: int = 0) -> str:
    """What a server has countersigned: the ledger's head, or one that is so many entries further."""
    newest = book.ledger.head()
    assert newest is not None
    entry: Entry = replace(newest, sequence=newest.sequence + change, hash="f" * 64) if change else newest
    key = home.signing_key(None)
    witness = Witness(folder / f"{change}.jsonl", "st-marys", home.signing_key(None))
    return head_text(witness.countersign(Head.of("st-marys", entry, key), []))


def test_description_is_answered_while_a_request_of_the_run_is_worked_on(
    party: NodeParty, signed: SignedSubmission
) -> None:
    busy = put(party, Question("train", held=True))
    assert busy.refusal == Refusal.MALFORMED_REQUEST
    described = put(party, Question(words.DESCRIBE, signed=signed))
    config = described.reply.content[words.CONFIG]
    assert (config[words.NAME], config[words.DECLARED_SIZE]) == ("st-marys", 120)
    busy.release()


def test_description_beside_a_busy_seat_is_checked_as_any(party: NodeParty, signed: SignedSubmission) -> None:
    busy = put(party, Question("train", held=True))
    assert busy.refusal
    assert put(party, Question(words.DESCRIBE)).refusal == Refusal.MALFORMED_REQUEST
    unsigned = replace(signed, signature=b"\0" * len(signed.signature))
    assert put(party, Question(words.DESCRIBE, signed=unsigned)).refusal not in (None, words.APP_FAILED)
    busy.release()


@pytest.mark.parametrize(
    ("orders", "code"),
    [(Orders(withdrawn=("run-1",)), Refusal.WITHDRAWN), (Orders(is_paused=True), Refusal.PAUSED)],
)
def test_orders_hold_for_a_request_that_waited(party: NodeParty, home: Home, orders: Orders, code: Refusal) -> None:
    busy, waiting = put(party, Question("train", held=True)), put(party, Question("evaluate"))
    assert busy.refusal == Refusal.MALFORMED_REQUEST
    orders.write(home.orders)
    party.look()
    busy.release()
    assert waiting.refusal == code


def test_node_that_stops_takes_nothing_up_whatever_its_orders_say(party: NodeParty) -> None:
    busy, waiting = put(party, Question("train", held=True)), put(party, Question("evaluate"))
    assert busy.refusal
    party.is_stopping = True
    assert party.look()
    assert party.presence().is_paused
    assert put(party, Question("train", "run-2")).refusal == Refusal.PAUSED
    busy.release()
    assert waiting.refusal == Refusal.PAUSED
    assert not party.orders.is_paused


@pytest.mark.parametrize("text", ["", "{}", "no head", "[" * 100])
def test_attack_text_that_is_no_head_clears_nothing_and_freezes_no_orders(
    party: NodeParty, home: Home, book: AccountBook, tmp_path: Path, text: str
) -> None:
    party.welcomed(text)
    assert not party.is_behind
    party.welcomed(witnessed(home, book, tmp_path, change=5))
    assert party.is_behind
    party.welcomed(text)
    Orders(withdrawn=("run-7",)).write(home.orders)
    party.look()
    assert party.is_behind
    assert party.orders.withdrawn == ("run-7",)
    assert put(party, Question("train")).refusal == Refusal.LEDGER_BEHIND


def test_attack_head_that_the_ledger_has_hides_none_that_it_lacks(
    party: NodeParty, home: Home, book: AccountBook, tmp_path: Path
) -> None:
    held = witnessed(home, book, tmp_path)
    party.welcomed(held)
    assert not party.is_behind
    party.welcomed(witnessed(home, book, tmp_path, change=5))
    party.welcomed(held)
    assert party.is_behind


def test_too_many_runs_are_told_to_come_later(party: NodeParty) -> None:
    for number in range(MOST_SEATS):
        assert put(party, Question("train", f"run-{number}")).refusal == Refusal.MALFORMED_REQUEST
    assert put(party, Question("train", "one-more")).refusal == Refusal.PAUSED


STEWARD = """
@id("needs-steward") @approval("data-steward")
forbid (principal, action in Action::"participate", resource)
unless { context.approvals.contains("data-steward") };
"""


def test_presence_is_another_whenever_a_refusal_may_have_become_a_permission(
    party: NodeParty, home: Home, book: AccountBook, signed: SignedSubmission
) -> None:
    """So that the server asks again. It is a random word: the server learns nothing of the policy by it."""
    seen = {party.presence().revision}
    assert not party.look(), "nothing has changed"

    def is_another() -> bool:
        changed, revision = party.look(), party.presence().revision
        is_new = revision not in seen
        seen.add(revision)
        return changed and is_new

    home.policy.write_text(STEWARD + EVERYTHING)
    assert is_another()
    assert put(party, Question(words.DESCRIBE, signed=signed)).refusal == "approval-pending: needs-steward"
    assert not is_another(), "that somebody is asked changes no decision"
    assert [(one.run, roles) for one, roles in party.pending] == [("run-1", ("data-steward",))]
    say(book, "run-1", "data-steward", "approved", "agreed")
    assert is_another()
    assert party.pending == ()
    assert put(party, Question(words.DESCRIBE, signed=signed)).refusal is None
    home.settings.write_text(f'[operators]\nalice = "{"a" * 64}"\n')
    assert is_another()
    home.policy.write_text(EVERYTHING)
    assert is_another()
    home.policy.write_text("permit (")
    assert not is_another(), "what is no policy replaces none"


@pytest.mark.parametrize(("disclose", "told"), [("full", ": no rule permits it"), ("rule", ""), ("none", "")])
def test_policy_that_is_none_permits_nothing_and_its_path_stays_here(
    party: NodeParty, home: Home, signed: SignedSubmission, disclose: str, told: str
) -> None:
    home.settings.write_text(f'[policy]\ndisclose = "{disclose}"\n')
    home.policy.unlink()
    party.look()
    assert put(party, Question(words.DESCRIBE, signed=signed)).refusal == f"policy-denied{told}"
