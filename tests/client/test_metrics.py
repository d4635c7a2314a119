"""A node's metrics and its health check: what is counted between link and party, and what files say of a node."""

import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from channel import EchoParty, Loop
from flwr.app import Error, Message, RecordDict
from parties import Federation, make_federation
from privet.__main__ import run
from privet.client.health import STALE_SECONDS, check_connected, lock_of
from privet.client.link import Asked
from privet.client.metrics import CountedParty, NodeMetrics, Tally
from privet.client.party import NodeParty
from privet.privacy.alone import only_one
from privet.privacy.channel import words
from privet.privacy.channel.flower import empty_run, identify_process, run_number
from privet.privacy.channel.member import Member
from privet.privacy.errors import ChannelError, Refusal
from privet.privacy.home import Home
from privet.server.serving import Server, ServerOptions

ROOT = Path(__file__).parents[2]
STATUS = {"state": "connected", "since": "2026-11-22T12:00:00Z", "pid": 7, "why": ""}


@pytest.fixture
def request_() -> Message:
    """A request of a run."""
    identify_process(empty_run(run_number("run-1")))
    return Message(RecordDict(), 2, "query.anything")


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return make_federation(tmp_path / "coordinator")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "st-marys")


@pytest.fixture
def member(federation: Federation, home: Home) -> Member:
    return federation.member("st-marys", home.root)


@pytest.fixture
def party(home: Home, member: Member) -> Iterator[NodeParty]:
    made = NodeParty(home, member, None)
    yield made
    made.close(0.0)


def samples(page: NodeMetrics) -> dict[str, float]:
    return {
        sample.name + "".join(f"[{value}]" for value in sample.labels.values()): sample.value
        for metric in page.collect()
        for sample in metric.samples
    }


def answered(request: Message, reply: Message) -> Tally:
    """What is counted of a request that a party answers so."""
    tally, got = Tally(), []
    CountedParty(EchoParty(lambda _: reply), tally).take(Asked(b"1", "run-1", request, got.append))
    assert got == [reply]
    return tally


def test_requests_and_answers_are_counted_on_their_way(request_: Message) -> None:
    tally = answered(request_, Message(RecordDict(), reply_to=request_))
    assert (tally.requests, tally.answers, dict(tally.refused)) == (1, 1, {})


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Error(words.REFUSED, Refusal.PAUSED.value), "paused"),
        (Error(words.REFUSED, "policy-denied: epsilon-at-most-2"), "policy-denied"),
        (Error(words.REFUSED, "a text of a task, on a record"), "app-failed"),
        (Error(2, "paused"), "app-failed"),
        (Error(words.REFUSED), "app-failed"),
    ],
)
def test_refusals_are_counted_by_codes_of_the_closed_list(request_: Message, error: Error, code: str) -> None:
    tally = answered(request_, Message(error, reply_to=request_))
    assert (tally.answers, dict(tally.refused)) == (1, {code: 1})


def test_contact_ends_with_the_connection() -> None:
    tally = Tally()
    party = EchoParty(lambda message: message)
    counted = CountedParty(party, tally)
    counted.told("disconnected", "no route")
    assert (tally.is_connected, tally.contact) == (False, None)
    counted.told("connected")
    first = tally.contact
    assert tally.is_connected
    counted.told("disconnected", "the server stops")
    last = tally.contact
    counted.told("disconnected", "no route")
    assert first is not None
    assert last is not None
    assert first <= last == tally.contact
    assert not tally.is_connected
    assert [state for state, _ in party.states] == ["disconnected", "connected", "disconnected", "disconnected"]


def test_everything_else_reaches_the_party(request_: Message) -> None:
    party = EchoParty(lambda message: message)
    counted = CountedParty(party, Tally())
    counted.welcomed("head")
    counted.deny(frozenset({"key"}))
    counted.drop(b"1")
    assert (party.countersigned, party.denied, party.dropped) == (["head"], {"key"}, [b"1"])
    assert counted.presence() == party.presence()
    assert counted.stamped(request_) is request_


def test_page_of_a_node_names_what_the_docs_list(home: Home, member: Member, party: NodeParty) -> None:
    home.create_book(None).ledger.close()
    tally = Tally(requests=3, answers=2, is_connected=True)
    tally.refused["paused"] += 1
    found = samples(NodeMetrics(home, member, party, tally))
    assert found["privet_node_connected"] == 1
    assert found["privet_node_certificate_expiry_timestamp_seconds"] == member.certificate.not_after.timestamp()
    assert found["privet_node_ledger_entries"] == 1
    assert (found["privet_node_requests_total"], found["privet_node_answers_total"]) == (3, 2)
    assert found["privet_node_refusals_total[paused]"] == 1
    assert found["privet_node_disk_free_bytes"] > 0
    names = {re.sub(r"\[.*", "", name) for name in found}
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(privet_(?:node_|build)\w*)", page, re.M)) == names | {"privet_node_processes"}


def test_node_without_a_ledger_has_a_page_all_the_same(home: Home, member: Member, party: NodeParty) -> None:
    found = samples(NodeMetrics(home, member, party, Tally()))
    assert "privet_node_ledger_entries" not in found
    assert "privet_node_last_contact_timestamp_seconds" not in found
    assert found["privet_node_connected"] == 0


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the kernel does not say who started whom")
def test_processes_are_those_that_this_one_started(home: Home, member: Member, party: NodeParty) -> None:
    def count() -> float:
        return samples(NodeMetrics(home, member, party, Tally()))["privet_node_processes"]

    before = count()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE):
        assert count() == before + 1
    assert count() == before


# ---- health ----


def told(home: Home, **changes: object) -> None:
    home.root.mkdir(parents=True, exist_ok=True)
    home.status.write_text(json.dumps({**STATUS, **changes}))


def test_healthcheck_of_a_connected_node(home: Home) -> None:
    told(home)
    with only_one(lock_of(home), "", ""):
        assert check_connected(home) == "connected since 2026-11-22T12:00:00Z (process 7)"


@pytest.mark.parametrize("state", ["connecting", "disconnected", "refused", "stopped", None])
def test_healthcheck_of_a_node_that_is_not_connected(home: Home, state: str | None) -> None:
    told(home, state=state, why="no route")
    with only_one(lock_of(home), "", ""), pytest.raises(ChannelError, match=f"{state}: no route"):
        check_connected(home)


def test_healthcheck_where_no_node_runs_whatever_its_file_says(home: Home) -> None:
    told(home)
    with pytest.raises(ChannelError, match="no node runs"):
        check_connected(home)


def test_healthcheck_of_a_node_that_hangs(home: Home) -> None:
    told(home)
    written = home.status.stat().st_mtime
    with only_one(lock_of(home), "", ""):
        assert check_connected(home, written + STALE_SECONDS)
        with pytest.raises(ChannelError, match="has said nothing for 91 s"):
            check_connected(home, written + STALE_SECONDS + 1)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff" * 100, b'{"state": ' + b"[" * 100_000])
def test_healthcheck_of_a_damaged_status(home: Home, content: bytes) -> None:
    told(home)
    home.status.write_bytes(content)
    with only_one(lock_of(home), "", ""), pytest.raises(ChannelError, match="has not said yet"):
        check_connected(home)


def test_healthcheck_command_needs_no_identity(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRIVET_HOME", str(home.root))
    assert run(["node", "--healthcheck"]) == 1
    assert re.fullmatch(r"error: no node runs in .*\ntry: privet node\n", capsys.readouterr().err)


def test_running_node_tells_systemd_its_page_and_its_health(federation: Federation, home: Home, member: Member) -> None:
    """A whole node against a whole server: ready, connected, healthy, its page, and the word that it stops."""
    loop = Loop()
    server = loop.run(_server(federation))
    loop.run(server.start())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(home.root / "notify"))
        manager.settimeout(60)
        environment = os.environ | {"PRIVET_HOME": str(home.root), "NOTIFY_SOCKET": str(home.root / "notify")}
        node = subprocess.Popen(
            [sys.executable, "-m", "privet", "node", "--metrics", "0", "--log-json"],
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert manager.recv(1000) == b"READY=1"
            while manager.recv(1000) != b"STATUS=connected":
                pass
            assert check_connected(home).endswith(f"(process {node.pid})")
            assert node.stderr is not None
            address = json.loads(node.stderr.readline())["message"].removeprefix("metrics at ")
            with urllib.request.urlopen(address, timeout=20) as page:
                assert "privet_node_connected 1.0" in page.read().decode()
            node.terminate()
            while manager.recv(1000) != b"STOPPING=1":
                pass
            assert node.wait(60) == 0
        finally:
            node.kill()
            node.wait()
            if node.stderr is not None:
                node.stderr.close()
    with pytest.raises(ChannelError, match="no node runs"):
        check_connected(home)
    loop.run(server.stop())
    loop.close()


async def _server(federation: Federation) -> Server:
    facts = federation.home.facts
    return Server(federation.home, ServerOptions(facts.address, facts.enrolment_address, federation.home.database))
