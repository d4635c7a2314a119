"""The node's side of its stream: what is kept, what is sent again, and what both ends say when it cannot be."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from channel import EchoParty, Institution, Server, arrays_of, echo, serving, wait_for
from flwr.app import ConfigRecord, Message, RecordDict
from privet.client.link import Asked
from privet.privacy.channel import words
from privet.server.fit import fit_for_task
from privet.server.grid import GridTerms, GrpcGrid

LONG = 20.0
Join = Callable[..., Institution]


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def join(server: Server, tmp_path: Path) -> Iterator[Join]:
    with ExitStack() as stack:

        def join(party: EchoParty, name: str = "st-marys", **options: object) -> Institution:
            node = Institution(server.authority.member(tmp_path, name, server.address), party, **options)
            stack.callback(node.stop)
            return node

        yield join


class Held(EchoParty):
    """Answers when it is told to."""

    def __init__(self) -> None:
        super().__init__(echo)

    def take(self, asked: Asked) -> None:
        self.asked.append(asked)

    def answer(self, place: int = -1) -> None:
        self.asked[place].answer(echo(self.asked[place].message))


def ask(server: Server, content: RecordDict, timeout: float = LONG) -> Iterator[Message]:
    grid = GrpcGrid(server.hub, GridTerms("run-1", fit_for_task("digits", "1", lambda version: None), 2**30))
    grid.wait_for_nodes(1)
    (node,) = grid.get_node_ids()
    return grid.send_and_receive([grid.create_message(content, words.EVALUATE, node, "1")], timeout=timeout)


def config(value: object) -> RecordDict:
    return RecordDict({"config": ConfigRecord({"x": value})})  # type: ignore[dict-item]


@pytest.mark.parametrize("minutes", [10, -10])
def test_clock_ten_minutes_off_is_told_at_both_ends(
    server: Server, join: Join, caplog: pytest.LogCaptureFixture, minutes: int
) -> None:
    party = EchoParty(echo)
    said = f"the clock of st-marys differs from the server's by {60 * minutes} s; allowed are 300 s"
    with caplog.at_level(logging.WARNING):
        join(party, clock=lambda: time.time() + 60 * minutes)
        why = party.wait_until("refused")
        assert said in why
        assert "set both clocks by NTP" in why
        wait_for(
            lambda: {"privet.server", "privet.node"} <= {r.name for r in caplog.records if said in r.message}, "both"
        )


def test_answer_that_the_channel_does_not_carry_is_a_failure_and_others_pass(server: Server, join: Join) -> None:
    """Or it would be tried, and would end the stream, again and again."""
    party = EchoParty(lambda message: Message(config(2**70), reply_to=message))
    join(party)
    reply = next(ask(server, config(1)))
    assert (reply.error.code, reply.error.reason) == (words.APP_RAISED, words.APP_FAILED)
    party._reply = echo
    assert next(ask(server, config(2))).content == config(2)
    assert [state for state, _ in party.states].count("connected") == 1


@pytest.mark.parametrize("content", [config(1), arrays_of(100_000)], ids=["inline", "granted"])
def test_answer_is_kept_while_there_is_no_connection_and_sent_on_the_next(
    server: Server, join: Join, content: RecordDict
) -> None:
    party = Held()
    node = join(party)
    answers = ask(server, content)
    wait_for(lambda: bool(party.asked), "the request")
    server.stop()
    party.wait_until("disconnected")
    party.answer()
    server.start()
    assert next(answers).content == content
    assert len(party.asked) == 1, "it was carried out twice"
    wait_for(lambda: node.link.is_idle, "the answer was taken")


def test_request_that_comes_again_is_not_carried_out_again_while_it_is_worked_on(server: Server, join: Join) -> None:
    party = Held()
    join(party)
    answers = ask(server, config(1))
    wait_for(lambda: bool(party.asked), "the request")
    server.stop()
    party.wait_until("disconnected")
    server.start()
    wait_for(lambda: [state for state, _ in party.states].count("connected") == 2, "it is back")
    party.answer()
    assert next(answers).content == config(1)
    assert len(party.asked) == 1


def test_request_that_could_not_be_taken_ends_no_connection_and_keeps_no_node_waiting(
    server: Server, join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Held):
        def take(self, asked: Asked) -> None:
            super().take(asked)
            if len(self.asked) == 1:
                raise RuntimeError("no thread can be started")

    party = Failing()
    node = join(party)
    ask(server, config(1))
    wait_for(lambda: "a request could not be taken" in caplog.text, "it is logged")
    assert node.link.is_idle
    answers = ask(server, config(2))
    wait_for(lambda: len(party.asked) == 2, "the second request")
    party.answer()
    assert config(2) in [reply.content for reply in answers]
    assert [state for state, _ in party.states] == ["connected"]


def test_answer_that_nobody_waits_for_is_not_kept(server: Server, join: Join) -> None:
    """A server that was restarted knows nothing of it: a small one too, or a graceful end would wait for it."""
    party = Held()
    node = join(party)
    assert list(ask(server, config(1), timeout=0.2)) == []
    wait_for(lambda: bool(party.dropped), "nobody waits")
    party.answer()
    assert node.link.is_idle
    ask(server, config(2))
    wait_for(lambda: len(party.asked) == 2, "the second request")
    server.hub._asks.clear()  # as in a server that has been restarted
    party.answer()
    wait_for(lambda: node.link.is_idle, "it was told to keep nothing")


def test_what_is_offered_is_told_when_it_changes(server: Server, join: Join) -> None:
    party = EchoParty(echo)
    node = join(party)
    party.wait_until("connected")
    party.is_paused = True
    node.link.tell_presence()
    wait_for(lambda: [view.is_paused for view in server.hub.nodes()] == [True], "the server knows")


def test_connection_that_serves_nothing_is_not_opened_five_times_a_second(server: Server, join: Join) -> None:
    """A node that is refused waits longer each time."""
    party = EchoParty(echo)
    join(party, clock=lambda: 0.0)
    party.wait_until("refused")
    threading.Event().wait(2.0)
    assert 2 <= len([state for state, _ in party.states if state == "refused"]) <= 6


def test_stop_ends_a_link_that_waits_for_its_next_try(server: Server, tmp_path: Path) -> None:
    member = server.authority.member(tmp_path, "st-marys", "127.0.0.1:1")
    party = EchoParty(echo)
    node = Institution(member, party)
    party.wait_until("disconnected")
    begin = time.monotonic()
    node.stop()
    assert time.monotonic() - begin < 5


def test_stop_ends_a_link_that_waits_for_its_welcome(server: Server, tmp_path: Path) -> None:
    """Its call is cancelled then, which gRPC tells as if somebody had cancelled the task."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"localhost:{silent.getsockname()[1]}"
        node = Institution(server.authority.member(tmp_path, "st-marys", address), EchoParty(echo))
        silent.settimeout(20)
        connection, _ = silent.accept()
        with connection:
            node.stop()


def test_revoked_keys_reach_the_node(server: Server, join: Join) -> None:
    party = EchoParty(echo)
    join(party)
    party.wait_until("connected")
    server.roll.deny("ab" * 32)
    wait_for(lambda: party.denied == {"ab" * 32}, "the node knows")
