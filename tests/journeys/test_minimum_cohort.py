"""Institutions that take part only with others: what their nodes sign, the server hands on, and each checks itself."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from privet.client.answers import Answers
from privet.client.app import client_app
from privet.client.cohort import Peers
from privet.client.draw import Draw
from privet.client.node import Node, Request
from privet.client.operators import Operators
from privet.client.policy import NodePolicy
from privet.client.settings import NodeSettings
from privet.client.tasks.protocol import Source
from privet.privacy.attendance import attend, encoded
from privet.privacy.budget.book import DeclaredDataset
from privet.privacy.budget.guard import Guard
from privet.privacy.budget.ledger import Entry, Ledger
from privet.privacy.channel import words
from privet.privacy.channel.identities import Role
from privet.privacy.channel.member import Member, Membership
from privet.privacy.errors import FederationError, Refusal, RefusedError
from privet.privacy.parameters import Array, Parameters
from privet.privacy.policy.policy_file import PolicyFile
from privet.privacy.submission import Submission
from privet.server.checkpoints import Checkpoints, State
from privet.server.federation import Federation
from privet.simulations.grid import LocalGrid
from signed_ledgers import DATASET, declared, key_of, read
from signers import NOW, Authority, Party

Make = Callable[..., Submission]
AUTHORITY = Authority("test")
OPERATOR = AUTHORITY.party("tester")
MODEL = {"weight": np.zeros(3, dtype=np.float32)}
THREE = """
@id("anything") permit (principal, action, resource);
@id("three")
forbid (principal, action in [Action::"train", Action::"evaluate"], resource)
unless { context.cohort.parties >= 3 };
// end of policy
"""


class StillTrainer:
    """Gives back what it got."""

    def initial(self) -> dict[str, Array]:
        return dict(MODEL)

    def train(self, parameters: Parameters, draw: Draw) -> dict[str, Array]:
        return dict(MODEL)

    def evaluate(self, parameters: Parameters, draw: Draw) -> dict[str, float]:
        return {"accuracy": 1.0}

    def done(self) -> dict[str, str]:
        return {}


class Institution:
    """A node with a ledger, a policy and a certificate, in a federation that has no network."""

    def __init__(self, folder: Path, name: str, peers: Sequence[Party] = (), policy: str = THREE) -> None:
        self.name = name
        self.path = folder / name / "ledger.sqlite"
        self.path.parent.mkdir()
        self.party = AUTHORITY.party(name, Role.NODE)
        self.settings = NodeSettings()
        (self.path.parent / "policy.cedar").write_text(policy)
        accounts = declared(
            Ledger.open(self.path, purpose="deployment", owner=name, key=key_of(self.path), clock=lambda: NOW)
        )
        membership = Membership("test", Role.NODE, name, "localhost:1", "localhost:2")
        member = Member(self.path.parent, membership, self.party.key, self.party.chain, AUTHORITY.root_pem)
        operators = Operators(AUTHORITY.root_pem, "test", dict)
        self.node = Node(
            name=name,
            source=Path("/data"),
            guard=Guard(accounts, DATASET, NodePolicy(PolicyFile(self.path.parent / "policy.cedar"), self._settings)),
            answers=Answers(self.path.parent / "answers"),
            workshop=_still,
            clock=lambda: NOW,
            operators=operators,
            company=Peers(member, lambda: self.settings.peers, operators.is_revoked),
        )

    def _settings(self) -> NodeSettings:
        return self.settings

    def pin(self, *others: "Institution") -> None:
        self.settings = NodeSettings(peers={other.name: other.party.key.fingerprint for other in others})

    @property
    def entries(self) -> list[Entry]:
        return read(self.path, "deployment", self.name)[3:]

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.entries if entry.kind != "policy"]

    def decisions(self, action: str) -> list[tuple[str, dict[str, Any]]]:
        """The verdict on each, and the facts that were entered with it."""
        found = [entry.content for entry in self.entries if entry.kind == "decision"]
        return [(one["verdict"], json.loads(one["facts"])) for one in found if one["action"] == action]


def _still(submission: Submission, dataset: DeclaredDataset, source: Source) -> StillTrainer:
    return StillTrainer()


@pytest.fixture
def three(tmp_path: Path) -> list[Institution]:
    return [Institution(tmp_path, name) for name in ("north", "south", "west")]


@pytest.fixture
def submission(make_submission: Make) -> Submission:
    evaluation = ("evaluation.every=2", "evaluation.noise-multiplier=9.0", 'evaluation.metrics=["accuracy"]')
    return make_submission(*evaluation, private=True)


def federation(submission: Submission, institutions: Sequence[Institution], folder: Path) -> State:
    by_id = {100 + place: one.node for place, one in enumerate(institutions)}
    contexts = {n: Context(1, n, {}, RecordDict(), {}) for n in by_id}
    grid = LocalGrid(client_app(lambda context: by_id[context.node_id]), contexts)
    checkpoints = Checkpoints(folder / "checkpoints", submission.hash)
    seal = OPERATOR.signs(submission)
    return Federation(submission, grid, checkpoints, lambda _: None, seal=seal).run()


def test_three_institutions_train_with_one_another(
    three: list[Institution], submission: Submission, tmp_path: Path
) -> None:
    north, south, west = three
    north.pin(south, west)
    assert federation(submission, three, tmp_path).round == 4
    rounds = north.decisions("train")
    assert [verdict for verdict, _ in rounds] == ["permitted"] * 4
    assert rounds[0][1]["context"]["cohort"] == {"told": 3, "parties": 3, "arePinned": True}
    assert south.decisions("train")[0][1]["context"]["cohort"] == {"told": 3, "parties": 3, "arePinned": False}
    assert [verdict for verdict, _ in west.decisions("evaluate")] == ["permitted"] * 2


def test_two_are_too_few_and_nothing_is_charged(
    three: list[Institution], submission: Submission, tmp_path: Path
) -> None:
    with pytest.raises(FederationError, match="policy-denied"):
        federation(submission, three[:2], tmp_path)
    for one in three[:2]:
        assert one.kinds() == ["decision", "refused"]
        [(verdict, facts)] = one.decisions("train")
        assert verdict == "denied"
        assert facts["context"]["cohort"] == {"told": 2, "parties": 2, "arePinned": False}
        assert facts["context"]["plan"]["run"] == "run-1"  # whole: no admission stands before it
        assert facts["context"]["account"]["epsilonAfter"] > 0  # as if it had been charged


def test_friends_of_the_coordinator_do_not_make_up_the_number(
    three: list[Institution], submission: Submission, tmp_path: Path
) -> None:
    """North has pinned two others, who are not there; whoever the coordinator certifies instead does not count."""
    north, south, west = three
    north.pin(south, west)
    friends = [Institution(tmp_path, f"friend-{n}") for n in range(4)]
    state = federation(submission, [north, *friends], tmp_path)
    assert "charge" not in north.kinds()
    assert north.decisions("train")[0][1]["context"]["cohort"] == {"told": 5, "parties": 1, "arePinned": True}
    assert state.history[0].answered == 4
    assert all("charge" in friend.kinds() for friend in friends)


def asked(submission: Submission, cohort: bytes, stage: str = "train", number: int = 1) -> Request:
    signed = OPERATOR.signs(submission)
    seal = (signed.signature, signed.certificates)
    return Request(stage, signed.submission, number, 1, MODEL, None, *seal, cohort)  # type: ignore[arg-type]


def told(submission: Submission, *institutions: Institution) -> bytes:
    return encoded(attend(submission, one.party.key, one.party.chain) for one in institutions)


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_first_request_of_either_kind_is_decided_before_the_charge(
    three: list[Institution], submission: Submission, stage: str
) -> None:
    north = three[0]
    for _ in range(2):  # asked again, it is denied again, and entered once a day
        with pytest.raises(RefusedError) as caught:
            north.node.answer(asked(submission, told(submission, north), stage))
        assert caught.value.code is Refusal.POLICY_DENIED
    assert north.kinds() == ["decision", "refused"]
    assert north.node.standing(submission).epsilon == 0


def test_run_that_was_denied_is_admitted_once_enough_take_part(
    three: list[Institution], submission: Submission
) -> None:
    north = three[0]
    with pytest.raises(RefusedError):
        north.node.answer(asked(submission, b""))
    north.node.answer(asked(submission, told(submission, *three)))
    kinds = ["decision", "refused", "decision", "operator", "charge", "decision", "begin", "decision", "answer"]
    assert north.kinds() == kinds
    [_, (verdict, facts)] = north.decisions("train")
    assert verdict == "permitted"
    assert set(facts["context"]) == {"attempt", "cohort", "round"}  # what the admission did not know


def test_later_round_with_too_few_is_denied_and_what_was_charged_stays(
    three: list[Institution], submission: Submission
) -> None:
    north = three[0]
    north.node.answer(asked(submission, told(submission, *three)))
    with pytest.raises(RefusedError) as caught:
        north.node.answer(asked(submission, told(submission, *three[:2]), number=2))
    assert caught.value.code is Refusal.POLICY_DENIED
    assert north.kinds().count("charge") == 1
    assert north.kinds().count("begin") == 1


def test_cohort_that_cannot_be_read_is_a_malformed_request(three: list[Institution], submission: Submission) -> None:
    north = three[0]
    for content in (b"\x00", b"\x01\xff", told(submission, *three) + b"more"):
        with pytest.raises(RefusedError) as caught:
            north.node.answer(asked(submission, content))
        assert caught.value.code is Refusal.MALFORMED_REQUEST
    assert "charge" not in north.kinds()


def test_node_attends_only_what_its_policy_admits(tmp_path: Path, submission: Submission) -> None:
    closed = Institution(
        tmp_path, "closed", policy='@id("nobody") forbid (principal, action, resource);\n// end of policy\n'
    )
    open_ = Institution(tmp_path, "open")
    assert words.SIGNATURE in described(open_, submission).content[words.CONFIG]
    assert described(closed, submission).has_error()


def described(institution: Institution, submission: Submission) -> Message:
    seal = OPERATOR.signs(submission)
    brought = {
        words.SUBMISSION: seal.submission,
        words.SIGNATURE: seal.signature,
        words.CERTIFICATES: seal.certificates,
    }
    config = ConfigRecord({**brought, words.ROUND: 0, words.ATTEMPT: 1})
    message = Message(RecordDict({words.CONFIG: config}), 7, words.DESCRIBE)
    grid = LocalGrid(client_app(lambda _: institution.node), {7: Context(1, 7, {}, RecordDict(), {})})
    [reply] = grid.send_and_receive([message])
    return reply
