"""Flower's Grid over nodes' streams: what a run asks, what comes back, and what ends the waiting."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from channel import EchoParty, Institution, Server, arrays_of, echo, serving, wait_for
from flwr.app import ConfigRecord, Message, RecordDict
from privet.privacy.channel import words
from privet.privacy.errors import ChannelError, InterruptedRunError
from privet.server.fit import fit_for_task
from privet.server.grid import GridTerms, GrpcGrid
from privet.server.link import HubOptions

LONG = 20.0
SMALL = RecordDict({"config": ConfigRecord({"x": 1})})
Join = Callable[..., Institution]


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(options=HubOptions(grace=0.3)) as server:
        yield server


@pytest.fixture
def join(server: Server, tmp_path: Path) -> Iterator[Join]:
    with ExitStack() as stack:

        def join(
            name: str, reply: Callable[[Message], Message] = echo, version: str = "1", **more: object
        ) -> Institution:
            party = more.pop("party", None) or EchoParty(reply, {"digits": version})
            node = Institution(server.authority.member(tmp_path, name, server.address), party, **more)
            stack.callback(node.stop)
            wait_for(lambda: name in [view.name for view in server.hub.nodes()], f"{name} is there")
            return node

        yield join


def grid_of(server: Server, run: str = "run-1", kept: str | None = None) -> GrpcGrid:
    return GrpcGrid(server.hub, GridTerms(run, fit_for_task("digits", kept, lambda version: None), 2**30))


def asks(grid: GrpcGrid, content: RecordDict = SMALL) -> list[Message]:
    return [grid.create_message(content, words.EVALUATE, node, "1") for node in grid.get_node_ids()]


class Silent(EchoParty):
    """Never answers."""

    def __init__(self) -> None:
        super().__init__(echo)

    def take(self, asked: object) -> None:
        self.asked.append(asked)  # type: ignore[arg-type]


def test_answers_are_handed_on_as_they_arrive(server: Server, join: Join) -> None:
    may_answer = threading.Event()

    def later(message: Message) -> Message:
        assert may_answer.wait(LONG)
        return echo(message)

    join("slow", later)
    join("quick")
    grid = grid_of(server)
    answers = grid.send_and_receive(asks(grid), timeout=LONG)
    first = next(answers)
    assert grid.name_of(first.metadata.src_node_id) == "quick"
    may_answer.set()
    assert grid.name_of(next(answers).metadata.src_node_id) == "slow"
    assert next(answers, None) is None


def test_what_comes_after_the_timeout_is_not_waited_for(server: Server, join: Join) -> None:
    party = Silent()
    join("slow", party=party)
    grid = grid_of(server)
    begin = time.monotonic()
    assert list(grid.send_and_receive(asks(grid), timeout=0.2)) == []
    assert time.monotonic() - begin < LONG / 2
    wait_for(lambda: party.dropped == [asked.id for asked in party.asked], "the node knows that nobody waits")


def test_node_that_goes_away_is_given_up_after_the_grace(server: Server, join: Join) -> None:
    node = join("gone", party=Silent())
    grid = grid_of(server)
    answers = grid.send_and_receive(asks(grid), timeout=LONG)
    wait_for(lambda: bool(node.party.asked), "the request is there")
    node.stop()
    reply = next(answers)
    assert (reply.error.code, reply.error.reason) == (words.LOST, words.DISCONNECTED)


def test_node_that_has_been_away_for_longer_than_the_grace_keeps_nobody_waiting(server: Server, join: Join) -> None:
    server.hub.options = HubOptions(grace=2.0)
    node = join("gone")
    grid = grid_of(server)
    messages = asks(grid)
    node.stop()
    wait_for(lambda: server.hub.nodes() == [], "it is gone")
    assert next(grid.send_and_receive(messages, timeout=LONG)).error.code == words.LOST  # the grace is over now
    begin = time.monotonic()
    assert next(grid.send_and_receive(messages, timeout=LONG)).error.code == words.LOST
    assert time.monotonic() - begin < 1.0


def test_node_that_comes_back_within_the_grace_is_asked_again(server: Server, join: Join, tmp_path: Path) -> None:
    server.hub.options = HubOptions(grace=LONG)
    silent = join("back", party=Silent())
    grid = grid_of(server)
    answers = grid.send_and_receive(asks(grid), timeout=LONG)
    wait_for(lambda: bool(silent.party.asked), "the request is there")
    silent.stop()
    wait_for(lambda: server.hub.nodes() == [], "it is gone")
    again = Institution(silent.member, EchoParty(echo, {"digits": "1"}))
    try:
        assert next(answers).content == SMALL
    finally:
        again.stop()


def test_grid_waits_for_nodes_that_fit(server: Server, join: Join) -> None:
    grid = grid_of(server, kept="1")
    waiting = threading.Thread(target=grid.wait_for_nodes, args=(2,), daemon=True)
    waiting.start()
    join("a")
    join("other", version="2")
    waiting.join(0.1)
    assert waiting.is_alive()
    join("b")
    waiting.join(LONG)
    assert not waiting.is_alive()
    assert [grid.name_of(node) for node in grid.get_node_ids()] == ["a", "b"]
    assert grid.notes() == {"other": "has task digits 2, the run 1"}


@pytest.mark.parametrize("count", [0, 1], ids=["none connected", "one connected"])
def test_run_that_waits_for_nodes_can_be_stopped(server: Server, join: Join, count: int) -> None:
    for place in range(count):
        join(f"node-{place}")
    grid, ended = grid_of(server), threading.Event()

    def wait() -> None:
        with pytest.raises(InterruptedRunError):
            grid.wait_for_nodes(2)
        ended.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(0.1)
    grid.stop()
    assert ended.wait(LONG)


def changes(grid: GrpcGrid) -> tuple[threading.Thread, Callable[[], bool]]:
    """A thread that waits for other revisions than those of now, and whether it still does."""
    seen = grid.revisions()

    def wait() -> None:
        with suppress(InterruptedRunError):
            grid.wait_for_revisions(seen, LONG)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()

    def is_waiting() -> bool:
        waiting.join(0.1)
        return waiting.is_alive()

    return waiting, is_waiting


def test_waiting_for_a_changed_mind_ends_when_a_node_tells_another_revision(server: Server, join: Join) -> None:
    party, grid = EchoParty(echo), grid_of(server)
    node = join("a", party=party)
    waiting, is_waiting = changes(grid)
    party.tasks = {**party.tasks, "more": "1"}  # another offer is no other mind
    node.link.tell_presence()
    assert is_waiting()
    party.revision = "another"
    node.link.tell_presence()
    waiting.join(LONG)
    assert not waiting.is_alive()
    assert list(grid.revisions().values()) == ["another"]


def test_waiting_for_a_changed_mind_ends_when_a_node_comes_or_resumes(server: Server, join: Join) -> None:
    party, grid = EchoParty(echo), grid_of(server)
    party.is_paused = True
    node = join("a", party=party)
    waiting, is_waiting = changes(grid)
    assert is_waiting()
    party.is_paused = False
    node.link.tell_presence()
    waiting.join(LONG)
    assert not waiting.is_alive()
    waiting, _ = changes(grid)
    join("b")
    waiting.join(LONG)
    assert not waiting.is_alive()


def test_node_that_is_revoked_has_left_and_ends_the_waiting(server: Server, join: Join) -> None:
    node = join("a")
    join("b")
    grid = grid_of(server)
    first, second = grid.get_node_ids()
    waiting, is_waiting = changes(grid)
    assert is_waiting()
    assert not grid.has_left(first)
    server.roll.deny(node.member.key.fingerprint)
    waiting.join(LONG)
    assert not waiting.is_alive()
    assert grid.has_left(first)
    assert not grid.has_left(second)
    assert not grid.has_left(999)


def test_waiting_for_a_changed_mind_ends_in_time_and_when_stopped(server: Server, join: Join) -> None:
    join("a")
    grid = grid_of(server)
    grid.wait_for_revisions(grid.revisions(), 0.05)
    waiting, is_waiting = changes(grid)
    assert is_waiting()
    grid.stop()
    with pytest.raises(InterruptedRunError):
        grid.wait_for_revisions({}, LONG)
    waiting.join(LONG)
    assert not waiting.is_alive()


def test_rest_is_as_long_as_it_is_asked_for_and_ends_when_stopped(server: Server) -> None:
    grid, began = grid_of(server), time.monotonic()
    grid.rest(0.1)
    assert time.monotonic() - began >= 0.1
    threading.Timer(0.05, grid.stop).start()
    with pytest.raises(InterruptedRunError):
        grid.rest(LONG)
    assert time.monotonic() - began < LONG


def test_run_that_waits_for_answers_can_be_stopped(server: Server, join: Join) -> None:
    party = Silent()
    join("silent", party=party)
    grid = grid_of(server)
    answers = grid.send_and_receive(asks(grid), timeout=None)
    threading.Timer(0.1, grid.stop).start()
    with pytest.raises(InterruptedRunError):
        next(answers)
    message = Message(SMALL, 2, words.EVALUATE)
    for ask in (grid.send_and_receive, grid.push_messages):
        with pytest.raises(InterruptedRunError):
            ask([message])
    for look in (lambda: grid.pull_messages([]), grid.get_node_ids):
        with pytest.raises(InterruptedRunError):
            look()
    wait_for(lambda: len(party.dropped) == 1, "the node knows that nobody waits")


def test_pushed_messages_are_pulled_once_each(server: Server, join: Join) -> None:
    join("a")
    join("b")
    grid = grid_of(server)
    ids = list(grid.push_messages(asks(grid)))
    assert len(set(ids)) == 2
    pulled: list[Message] = []

    def has_all() -> bool:
        pulled.extend(grid.pull_messages([*ids, "unknown"]))
        return len(pulled) == 2

    wait_for(has_all, "both answers")
    assert {message.metadata.reply_to_message_id for message in pulled} == set(ids)
    assert list(grid.pull_messages(ids)) == []


def test_close_lets_go_of_what_was_asked_and_never_read(server: Server, join: Join) -> None:
    """Also of an iterator that was never begun: or it would be asked again at every reconnect."""
    party = Silent()
    join("silent", party=party)
    grid = grid_of(server)
    grid.push_messages(asks(grid))
    grid.send_and_receive(asks(grid))
    wait_for(lambda: len(party.asked) == 2, "both requests")
    grid.close()
    wait_for(lambda: len(party.dropped) == 2, "the node knows that nobody waits")


def test_bytes_are_counted_both_ways(server: Server, join: Join) -> None:
    join("a")
    grid, model = grid_of(server), arrays_of(500_000)
    assert next(grid.send_and_receive(asks(grid, model), timeout=LONG)).content == model
    sent, received = grid.traffic()
    assert 2_000_000 < sent < 2_001_000
    assert 2_000_000 < received < 2_001_000


def test_runs_beside_one_another_get_their_own_answers(server: Server, join: Join) -> None:
    join("a")
    grids = [grid_of(server, f"run-{number}") for number in range(4)]
    answers = [
        grid.send_and_receive(asks(grid, RecordDict({"config": ConfigRecord({"run": place})})), timeout=LONG)
        for place, grid in enumerate(grids)
    ]
    for place, grid in reversed(list(enumerate(grids))):
        message = next(answers[place])
        assert message.content["config"]["run"] == place
        assert message.metadata.run_id == grid.run.run_id


def test_node_that_does_not_read_keeps_no_place_from_others(server: Server, join: Join) -> None:
    """Four large messages are on their way at once; a fifth does not wait for ever for four that stand still."""
    server.hub.options = HubOptions(grace=0.3, place=0.2)
    stuck = [join(f"stuck-{number}", party=Stuck()) for number in range(4)]
    model = arrays_of(8 * 2**20)
    grids = []
    for node in stuck:
        grid = grid_of(server, f"to-{node.member.identity.name}")
        (message,) = (m for m in asks(grid, model) if grid.name_of(m.metadata.dst_node_id) == node.member.identity.name)
        grids.append((grid, grid.send_and_receive([message], timeout=LONG)))
        node.loop.loop.call_soon_threadsafe(STOPPED.wait, LONG)  # its loop stands still: nothing is read
    try:
        join("honest")
        grid = grid_of(server)
        (message,) = (m for m in asks(grid, model) if grid.name_of(m.metadata.dst_node_id) == "honest")
        assert next(grid.send_and_receive([message], timeout=LONG)).content == model
    finally:
        STOPPED.set()
        for grid, _ in grids:
            grid.close()


STOPPED = threading.Event()


class Stuck(Silent):
    """One whose loop a test stops."""


def test_message_that_the_channel_does_not_carry_is_the_runs_error(server: Server, join: Join) -> None:
    join("a")
    grid = grid_of(server)
    with pytest.raises(ChannelError):
        grid.send_and_receive(asks(grid, RecordDict({"config": ConfigRecord({"x": 2**70})})))


def test_answers_that_nobody_read_are_let_go_after_the_server_has_stopped(tmp_path: Path) -> None:
    """A run's thread may drop what it was reading when the server is gone: nothing is left to say it to."""
    with serving() as server:
        first = Institution(server.authority.member(tmp_path, "a", server.address), EchoParty(echo, {"digits": "1"}))
        second = Institution(server.authority.member(tmp_path, "b", server.address), EchoParty(echo, {"digits": "1"}))
        wait_for(lambda: len(server.hub.nodes()) == 2, "both are there")
        grid = grid_of(server)
        answers = grid.send_and_receive(asks(grid))
        assert next(answers).content is not None
        first.stop()
        second.stop()
    answers.close()  # type: ignore[attr-defined]
    assert list(answers) == []
