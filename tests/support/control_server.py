"""The service Control on a real server with real certificates, over runs whose nodes are fakes in this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from parties import make_federation
from privet.privacy.channel.control_client import ControlClient
from privet.privacy.channel.dial import dial
from privet.privacy.channel.identities import Role
from privet.privacy.channel.member import Member
from privet.privacy.policy.policy_file import PolicyFile
from privet.privacy.signed import verified
from privet.server.control import Control, control_handler
from privet.server.database import open_database
from privet.server.decision_log import DecisionLog
from privet.server.enrolment import membership_handlers
from privet.server.gate import Gate, peer
from privet.server.policy import HeldRules, ServerPolicy
from privet.server.projects import Projects
from privet.server.questions import Questions
from privet.server.runs import Runs
from run_grids import PATIENCE, runs_in


class Office:
    """A coordinator's server. `runs` and `control` are the real ones; members come with `member`."""

    def __init__(self, folder: Path, service: type[Control] = Control, **changes: Any) -> None:
        self.folder = folder
        self.federation = make_federation(folder / "coordinator")
        root, name = self.federation.home.root, self.federation.name
        self.runs: Runs = runs_in(
            folder / "server", check=lambda signed: verified(signed, root, name, datetime.now(UTC)), **changes
        )
        home, members = self.federation.home, self.federation.members
        self.projects = Projects(open_database(f"sqlite:///{folder / 'server' / 'server.sqlite'}"))
        questions = Questions(name, self.runs.book, members, self.projects)
        policy = ServerPolicy(HeldRules(PolicyFile(home.policy)), questions, DecisionLog(home.decisions))
        self.federation.gates = (Gate(members, policy),)
        self.control = service(self.runs, self, self, peer, policy.watching)
        self.witness = folder / "witness.jsonl"

    def nodes(self) -> list[dict[str, Any]]:
        return [{"name": "st-marys", "is_connected": True}]

    def witness_file(self, node: str) -> Path | None:
        return self.witness if node == "st-marys" else None

    def member(self, name: str, role: Role = Role.OPERATOR) -> Member:
        return self.federation.member(name, self.folder / name, role)

    def client(self, member: Member) -> ControlClient:
        return ControlClient(lambda: dial(member), member.address)


@contextmanager
def serving(office: Office) -> Iterator[Office]:
    federation = office.federation
    handlers = membership_handlers(federation.registrar, federation.clock), control_handler(office.control)
    federation.main_handlers = handlers
    with federation.serving():
        yield office
    office.runs.close()
    for run in office.runs.book.records():
        assert office.runs.wait(run.run_id, PATIENCE)
