"""The server's metrics and its health check, from a whole server on loopback with real certificates."""

import re
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from channel import EchoParty, Institution, Loop, echo, wait_for
from flwr.app import ConfigRecord, RecordDict
from parties import PASSPHRASE, Federation, free_ports, make_federation
from privet.privacy.channel import privet_pb2 as pb
from privet.privacy.channel.dial import dial
from privet.privacy.channel.services import callable_of
from privet.privacy.errors import ChannelError, FederationError
from privet.server.federation_home import FederationFacts, FederationHome
from privet.server.grid import GridTerms, GrpcGrid
from privet.server.health import check_serving
from privet.server.metrics import Ends, ServerMetrics, Tally
from privet.server.run_record import RunState
from privet.server.serving import Server, ServerOptions

ROOT = Path(__file__).parents[2]


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return make_federation(tmp_path / "coordinator")


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def server(federation: Federation, loop: Loop) -> Iterator[Server]:
    made = loop.run(_made(federation, metrics="0"))
    loop.run(made.start())
    yield made
    loop.run(made.stop())


async def _made(federation: Federation, metrics: str | None = None) -> Server:
    facts = federation.home.facts
    options = ServerOptions(facts.address, facts.enrolment_address, federation.home.database, metrics=metrics)
    return Server(federation.home, options)


async def _made_at(home: FederationHome, options: ServerOptions) -> Server:
    return Server(home, options)


def scraped(server: Server) -> dict[str, float]:
    """Every sample of the page, by name and labels."""
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=20) as page:
        lines = page.read().decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


def test_page_of_a_server_that_nobody_has_met(server: Server, federation: Federation) -> None:
    found = scraped(server)
    for name in ("connected_nodes", "paused_nodes", "sent_bytes_total", "answers_total", "room_used_bytes"):
        assert found[f"privet_server_{name}"] == 0
    assert found["privet_server_database_up"] == 1
    assert {name for name in found if name.startswith("privet_server_runs")} == {
        f'privet_server_runs{{state="{state}"}}' for state in RunState
    }
    ends = {name: found[f'privet_server_certificate_expiry_timestamp_seconds{{certificate="{name}"}}']
            for name in ("server", "issuer", "root")}  # fmt: skip
    assert ends["issuer"] == federation.home.issuing().not_after.timestamp()
    assert ends["server"] < ends["issuer"] < ends["root"]
    assert not [name for name in found if not name.startswith("privet_")]


def test_nodes_answers_and_bytes_are_counted(server: Server, federation: Federation, tmp_path: Path) -> None:
    party = EchoParty(echo)
    node = Institution(federation.member("st-marys", tmp_path / "st-marys"), party)
    try:
        party.wait_until("connected")
        wait_for(lambda: scraped(server)["privet_server_connected_nodes"] == 1, "connected")
        before = scraped(server)
        grid = GrpcGrid(server.hub, GridTerms("run-1", lambda views: (list(views), {}), 0))
        (node_id,) = grid.get_node_ids()
        text = RecordDict({"config": ConfigRecord({"text": "x" * 5000})})
        asked = grid.create_message(text, "query.anything", node_id, "1")
        (reply,) = grid.send_and_receive([asked], timeout=20)
        assert reply.has_content()
        after = scraped(server)
        assert after["privet_server_answers_total"] == before["privet_server_answers_total"] + 1
        for name in ("privet_server_sent_bytes_total", "privet_server_received_bytes_total"):
            assert 5000 < after[name] - before[name] < 10_000
        party.is_paused = True
        node.link.tell_presence()
        wait_for(lambda: scraped(server)["privet_server_paused_nodes"] == 1, "paused")
    finally:
        node.stop()
    wait_for(lambda: scraped(server)["privet_server_connected_nodes"] == 0, "disconnected")


def test_refused_calls_are_counted_by_method(server: Server, federation: Federation, tmp_path: Path) -> None:
    node = federation.member("st-marys", tmp_path / "st-marys")
    with dial(node) as channel:
        for _ in range(2):
            with pytest.raises(grpc.RpcError):
                callable_of(channel, "Control", "ListNodes")(pb.Nothing(), timeout=20)
    found = scraped(server)
    assert found['privet_server_refused_calls_total{method="/privet.v1.Control/ListNodes"}'] == 2
    assert sum("refused_calls" in name for name in found) == 1


class Broken:
    """A book whose database is gone."""

    def counts(self) -> dict[RunState, int]:
        raise FederationError("the server's database failed", "see that it runs")


def test_page_says_that_the_database_is_gone(server: Server, federation: Federation) -> None:
    moment = federation.clock()
    page = ServerMetrics(server.hub, Tally(), Broken(), Ends(lambda: moment, moment, moment))
    found = {sample.name: sample.value for metric in page.collect() for sample in metric.samples}
    assert found["privet_server_database_up"] == 0
    assert "privet_server_runs" not in found


def test_docs_list_every_metric_of_the_server(server: Server) -> None:
    names = {re.sub(r"\{.*", "", name) for name in scraped(server)} | {"privet_server_refused_calls_total"}
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(privet_(?:server_|build)\w*)", page, re.M)) == names


def test_server_without_the_option_has_no_page(federation: Federation, loop: Loop) -> None:
    made = loop.run(_made(federation))
    loop.run(made.start())
    try:
        assert made.metrics_address == ""
        assert type(made.hub).__name__ == "Hub"
    finally:
        loop.run(made.stop())


def test_healthcheck_sees_a_server_and_its_end(federation: Federation, loop: Loop) -> None:
    facts = federation.home.facts
    with pytest.raises(ChannelError, match="does not serve"):
        check_serving(federation.home, facts.enrolment_address)
    made = loop.run(_made(federation))
    loop.run(made.start())
    assert check_serving(federation.home, facts.enrolment_address) == (
        f"{facts.enrolment_address} serves federation hearts"
    )
    loop.run(made.stop())
    with pytest.raises(ChannelError, match="does not serve"):
        check_serving(federation.home, facts.enrolment_address)


def test_healthcheck_asks_by_loopback_for_a_name_that_is_elsewhere(loop: Loop, tmp_path: Path) -> None:
    """In a container: it listens on every interface, under a name that only the institutions can reach."""
    main, enrolment = free_ports(2)
    facts = FederationFacts("hearts", f"fl.example.org:{main}", f"fl.example.org:{enrolment}", "")
    home = FederationHome.create(tmp_path, facts, datetime.now(UTC), PASSPHRASE, cost=16)
    made = loop.run(_made_at(home, ServerOptions(f"[::]:{main}", f"[::]:{enrolment}", home.database)))
    loop.run(made.start())
    assert check_serving(home, f"[::]:{enrolment}") == f"localhost:{enrolment} serves federation hearts"
    loop.run(made.stop())


def test_healthcheck_does_not_believe_another_federations_server(
    server: Server, federation: Federation, tmp_path: Path
) -> None:
    other = make_federation(tmp_path / "other", "lungs")
    with pytest.raises(ChannelError, match=r"does not serve.*(?i:certificate|handshake)"):
        check_serving(other.home, federation.home.facts.enrolment_address)


def test_second_server_at_one_port_is_refused(server: Server, federation: Federation, loop: Loop) -> None:
    """gRPC shares ports by default: every other connection would go astray."""
    second = loop.run(_made(federation))
    with pytest.raises(ChannelError, match="cannot be listened on"):
        loop.run(second.start())
