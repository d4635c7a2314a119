"""A node's process: how it stands, as its home says, and how it ends. No data set is declared, so nothing trains."""

import signal
from collections.abc import Iterator

import pytest
from channel import wait_for
from deployment import Deployment, Party, Process, deployment


@pytest.fixture(scope="module")
def hearts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("hearts")) as hearts:
        yield hearts


@pytest.fixture(scope="module")
def server(hearts: Deployment) -> Process:
    return hearts.serve()


@pytest.fixture(scope="module")
def ward(hearts: Deployment, server: Process) -> Party:
    return hearts.institution("st-marys")


def state_of(ward: Party) -> str:
    return str(ward.told("node", "status").get("state"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_node_says_how_it_stands_and_ends_when_it_is_asked_to(ward: Party, number: int) -> None:
    node = ward.node()
    wait_for(lambda: state_of(ward) == "connected", "the status")
    told = ward.told("node", "status")
    assert (told["is_running"], told["pid"], told["tasks"]) == (True, node.pid, {})
    node.signal(number)
    assert node.wait() == 0
    told = ward.told("node", "status")
    assert (told["is_running"], told["state"]) == (False, "stopped")


def test_order_is_seen_by_the_node_that_runs_and_told_to_the_server(hearts: Deployment, ward: Party) -> None:
    node = ward.node()
    ward.privet("node", "pause")
    wait_for(lambda: hearts.coordinator.told("node", "list")[0]["is_paused"], "the server knows")
    ward.privet("node", "resume")
    wait_for(lambda: not hearts.coordinator.told("node", "list")[0]["is_paused"], "the server knows")
    assert node.stop() == 0


def test_damaged_orders_change_nothing_and_are_told(hearts: Deployment, ward: Party) -> None:
    ward.privet("node", "pause")
    node = ward.node()
    (ward.home / "node-orders.json").write_text("{")
    node.wait_for("node-orders.json: not what privet wrote")
    assert hearts.coordinator.told("node", "list")[0]["is_paused"]
    (ward.home / "node-orders.json").unlink()
    wait_for(lambda: not hearts.coordinator.told("node", "list")[0]["is_paused"], "the server knows")
    assert node.stop() == 0


def test_node_that_was_killed_leaves_no_lock_behind(ward: Party) -> None:
    node = ward.node()
    assert "a node runs here already" in ward.privet("node", code=2)
    node.kill()
    assert ward.told("node", "status")["is_running"] is False
    assert ward.node().stop() == 0


def test_server_that_stops_gracefully_is_waited_for(hearts: Deployment, server: Process, ward: Party) -> None:
    """The last test of this module: the server of the others ends."""
    node = ward.node()
    assert server.stop() == 0
    wait_for(lambda: state_of(ward) == "disconnected", "the status")
    seen = len(node.lines)
    again = hearts.serve()
    node.wait_for("connected to", after=seen)
    assert node.stop() == 0
    assert again.stop() == 0
