"""A run over a bad network, with certificates that end and members that are revoked: it ends with the right model."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from channel import Authority, Institution, Server, wait_for
from numpy_party import Gatekeeper, NumpyParty, signed_by
from privet.client.draw import Draw
from privet.privacy.budget.keys import SigningKey
from privet.privacy.channel.authority import BACKDATED
from privet.privacy.channel.frames import GRPC_OPTIONS
from privet.privacy.channel.identities import IdentityKey
from privet.privacy.channel.member import Member
from privet.privacy.errors import FederationError
from privet.privacy.parameters import hash_of
from privet.privacy.submission import Submission
from privet.server.checkpoints import Checkpoints, State
from privet.server.events import Happening, Missed
from privet.server.federation import Federation
from privet.server.fit import fit_for_task
from privet.server.grid import GridTerms, GrpcGrid
from privet.server.link import HubOptions
from privet.server.witnesses import Witnesses
from proxy import Proxy

NAMES = ("charite", "st-marys")
ROUNDS = 5
UPDATE = 480_000  # bytes of a model, each way
# A silent network is noticed within a second, where a deployment takes half a minute.
QUICK = {
    "grpc.keepalive_time_ms": 400,
    "grpc.keepalive_timeout_ms": 400,
    "grpc.http2.ping_timeout_ms": 400,
    "grpc.http2.min_ping_interval_without_data_ms": 300,
}
LONG = 60.0
GRACE = 20.0
Make = Callable[..., Submission]


@dataclass
class Network:
    """A server, a proxy before it, and nodes that know the proxy alone."""

    folder: Path
    authority: Authority
    server: Server
    proxy: Proxy
    stack: ExitStack
    parties: dict[str, NumpyParty] = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=dict)
    happened: list[Happening] = field(default_factory=list)

    def join(
        self,
        name: str,
        before: Callable[[Draw], None] | None = None,
        lifetime: timedelta = timedelta(hours=24),
        freshen: Callable[[Member], None] = lambda member: None,
    ) -> NumpyParty:
        """A node that connects through the proxy."""
        member = self.authority.member(self.folder, name, f"127.0.0.1:{self.proxy.port}", lifetime=lifetime)
        party = NumpyParty(name, self.folder, self.authority, before)
        node = Institution(member, party, freshen=freshen, options=tuple((dict(GRPC_OPTIONS) | QUICK).items()))
        self.stack.callback(party.close)
        self.stack.callback(node.stop)
        self.parties[name], self.members[name] = party, member
        return party

    def run(
        self,
        submission: Submission,
        watch: Callable[[State], None] = lambda state: None,
        key: IdentityKey | None = None,
    ) -> State:
        """Carry out a run as the server does; `watch` is called after every round."""
        fit = fit_for_task("synthetic", None, lambda version: None)
        grid = GrpcGrid(self.server.hub, GridTerms(submission.run_id, fit, 2**30))
        grid.wait_for_nodes(len(self.parties))
        checkpoints = Checkpoints(self.folder / "checkpoints", submission.hash)
        seal = signed_by(self.authority, submission, key)
        federation = Federation(
            submission, grid, checkpoints, watch, None, LONG, seal=seal, name_of=grid.name_of, tell=self.happened.append
        )
        try:
            return federation.run()
        finally:
            grid.close()

    def assert_each_round_began_once(self) -> None:
        for party in self.parties.values():
            assert party.begun() == [(str(number), "1") for number in range(1, ROUNDS + 1)]


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    authority = Authority("test")
    with ExitStack() as stack:
        witnesses = Witnesses(tmp_path / "witness", SigningKey.load_or_create(tmp_path / "witness-key.pem"))
        server = Server(authority, witnesses, HubOptions(grace=GRACE))
        stack.callback(server.close)
        proxy = Proxy(server.port)
        stack.callback(proxy.close)
        with ExitStack() as nodes:
            yield Network(tmp_path, authority, server, proxy, nodes)


@pytest.fixture
def submission(make_submission: Make) -> Submission:
    return make_submission(f"run.rounds={ROUNDS}", "aggregation.min-nodes=2", now=datetime.now(UTC))


@pytest.fixture(scope="module")
def right_model(tmp_path_factory: pytest.TempPathFactory, make_submission: Make) -> str:
    """Of the same run where nothing goes wrong."""
    folder = tmp_path_factory.mktemp("right")
    authority = Authority("test")
    with ExitStack() as stack:
        server = Server(authority)
        stack.callback(server.close)
        with ExitStack() as nodes:
            proxy = Proxy(server.port)
            stack.callback(proxy.close)
            network = Network(folder, authority, server, proxy, nodes)
            for name in NAMES:
                network.join(name)
            asked = make_submission(f"run.rounds={ROUNDS}", "aggregation.min-nodes=2", now=datetime.now(UTC))
            return hash_of(network.run(asked).model)


Fault = Callable[[Proxy], threading.Event | None]
FAULTS: dict[str, Fault] = {
    "cut while an update is sent": lambda proxy: proxy.cut_after("up", UPDATE // 2),
    "cut while a model is sent": lambda proxy: proxy.cut_after("down", UPDATE // 2),
    "truncated update": lambda proxy: proxy.truncate_after("up", UPDATE // 2),
    "truncated model": lambda proxy: proxy.truncate_after("down", UPDATE // 2),
    "bit flipped in an update": lambda proxy: proxy.corrupt_after("up", UPDATE // 2),
    "bit flipped in a model": lambda proxy: proxy.corrupt_after("down", UPDATE // 2),
    "silence while an update is sent": lambda proxy: proxy.silence_after("up", UPDATE // 2),
    "silence while a model is sent": lambda proxy: proxy.silence_after("down", UPDATE // 2),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_run_over_a_network_that_fails_ends_with_the_right_model(
    fault: str, network: Network, submission: Submission, right_model: str
) -> None:
    """No round is lost, and none is trained twice: what was cut is sent again."""
    for name in NAMES:
        network.join(name)
    struck: list[threading.Event | None] = []
    state = network.run(
        submission, lambda state: struck.append(FAULTS[fault](network.proxy)) if state.round == 2 else None
    )
    assert [event.is_set() for event in struck if event] == [True]
    assert network.proxy.accepted > len(NAMES), "the connection was not opened again"
    assert hash_of(state.model) == right_model
    network.assert_each_round_began_once()


def test_run_over_a_slow_network_ends_with_the_right_model(
    network: Network, submission: Submission, right_model: str
) -> None:
    for name in NAMES:
        network.join(name)
    network.proxy.delay = 0.005
    assert hash_of(network.run(submission).model) == right_model
    assert network.proxy.accepted == len(NAMES)


def test_run_waits_for_a_network_that_is_cut_and_healed(
    network: Network, submission: Submission, right_model: str
) -> None:
    for name in NAMES:
        network.join(name)

    def watch(state: State) -> None:
        if state.round == 2:
            network.proxy.cut()
            threading.Thread(target=heal, daemon=True).start()

    def heal() -> None:
        seen = network.proxy.accepted
        wait_for(lambda: network.proxy.accepted >= seen + 4, "the nodes have tried again, in vain")
        network.proxy.heal()

    assert hash_of(network.run(submission, watch).model) == right_model
    network.assert_each_round_began_once()


def test_run_over_many_cuts_at_any_byte_ends_with_the_right_model(
    network: Network, submission: Submission, right_model: str
) -> None:
    for name in NAMES:
        network.join(name)
    rng = random.Random(3)

    def watch(state: State) -> None:
        for _ in range(3):
            direction = "up" if rng.random() < 0.5 else "down"
            rng.choice([network.proxy.cut_after, network.proxy.truncate_after, network.proxy.corrupt_after])(
                direction, rng.randrange(2 * UPDATE)
            )

    assert hash_of(network.run(submission, watch).model) == right_model
    network.assert_each_round_began_once()
    assert network.proxy.accepted >= len(NAMES) + ROUNDS


# ---- certificates ----


def renewed(network: Network, lifetime: timedelta) -> Callable[[Member], None]:
    """Gives a member its next certificate, as the server would."""

    def freshen(member: Member) -> None:
        now = datetime.now(UTC)
        if member.is_renewal_due(now) or member.is_expired(now):
            member.keep_chain(network.authority.issuer.issue(member.identity, member.key.csr(), now, lifetime), now)

    return freshen


def test_certificates_are_renewed_at_both_ends_while_a_run_goes_on(
    network: Network, submission: Submission, right_model: str
) -> None:
    gate = Gatekeeper(3)
    network.join("st-marys")
    lifetime = BACKDATED / 2 + timedelta(seconds=3)  # so that two thirds of its life are over in two seconds
    network.join("charite", gate, lifetime, renewed(network, lifetime))
    first = network.members["charite"].certificate.serial
    expires = {view.name: view.certificate_expires for view in network.server.hub.nodes()}

    def go_on() -> None:
        assert gate.is_reached.wait(LONG)
        network.server.present(network.authority.presented())
        wait_for(lambda: network.members["charite"].certificate.serial != first, "the renewal")
        wait_for(lambda: shown() > expires["charite"], "the connection with the new certificate")
        gate.open()

    def shown() -> datetime:
        return {view.name: view.certificate_expires for view in network.server.hub.nodes()}.get(
            "charite", expires["charite"]
        )

    thread = threading.Thread(target=go_on, daemon=True)
    network.proxy.accepted = 0
    wait_for(lambda: len(network.server.hub.nodes()) == 2, "both nodes")
    expires |= {view.name: view.certificate_expires for view in network.server.hub.nodes()}
    thread.start()
    assert hash_of(network.run(submission).model) == right_model
    thread.join(LONG)
    assert network.proxy.accepted >= 1
    network.assert_each_round_began_once()


def test_certificate_that_expires_during_a_run_ends_the_stream_and_the_node_comes_back(
    network: Network, submission: Submission, right_model: str
) -> None:
    """As where the enrolment port could not be reached for a while: no renewal until after the end."""
    may_renew = threading.Event()

    def freshen(member: Member) -> None:
        if may_renew.is_set():
            renewed(network, timedelta(hours=24))(member)

    gate = Gatekeeper(3)
    network.join("st-marys")
    party = network.join("charite", gate, timedelta(seconds=3), freshen)

    def go_on() -> None:
        why = party.wait_until("refused", LONG)
        reasons.append((why, datetime.now(UTC) - network.members["charite"].certificate.not_after))
        may_renew.set()
        gate.open()

    reasons: list[tuple[str, timedelta]] = []
    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    assert hash_of(network.run(submission).model) == right_model
    thread.join(LONG)
    ((why, late),) = reasons
    assert "certificate has expired" in why
    assert late < timedelta(seconds=1)
    network.assert_each_round_began_once()


# ---- revocation ----


def test_node_revoked_during_a_round_loses_its_stream_within_a_second(network: Network, make_submission: Make) -> None:
    """And the run goes on without it at once: nobody waits for its return."""
    asked = make_submission(f"run.rounds={ROUNDS}", "aggregation.min-nodes=2", now=datetime.now(UTC))
    gate = Gatekeeper(3)
    for name in NAMES:
        network.join(name)
    revoked = network.join("karolinska", gate)
    took: list[float] = []
    begun: list[float] = []

    def revoke() -> None:
        assert gate.is_reached.wait(LONG)
        begin = time.monotonic()
        begun.append(begin)
        network.server.roll.deny(network.members["karolinska"].key.fingerprint)
        why = revoked.wait_until("refused", LONG)
        took.append(time.monotonic() - begin)
        assert "karolinska was revoked" in why

    thread = threading.Thread(target=revoke, daemon=True)
    thread.start()
    state = network.run(asked)
    gate.open()
    thread.join(LONG)
    assert state.round == ROUNDS
    assert Missed(3, "karolinska", "disconnected") in network.happened
    assert time.monotonic() - begun[0] < GRACE, "a round has waited for one that was revoked"
    assert {view.name for view in network.server.hub.nodes()} == set(NAMES)
    assert took[0] < 1.0


def test_operator_revoked_between_rounds_is_listened_to_no_more(network: Network, submission: Submission) -> None:
    key = IdentityKey.generate()
    for name in NAMES:
        network.join(name)

    def watch(state: State) -> None:
        if state.round == 2:
            network.server.roll.deny(key.fingerprint)
            wait_for(lambda: all(key.fingerprint in p.denied for p in network.parties.values()), "the nodes know")

    with pytest.raises(FederationError, match="operator-revoked"):
        network.run(submission, watch, key)
    for party in network.parties.values():
        assert len(party.begun()) == 2
