"""One node's stream at the server: what an honest node gets, and what everybody else does."""

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from channel import Loop, Server, arrays_of, serving, wait_for
from flwr.app import ConfigRecord, Message, RecordDict
from privet.privacy.channel import privet_pb2 as pb
from privet.privacy.channel import words
from privet.privacy.channel.frames import CHUNK_BYTES, INLINE_BYTES
from privet.privacy.channel.payload import chunk_frame
from privet.server.grid import GridTerms, GrpcGrid
from privet.server.link import HubOptions
from raw_node import LONG, RawNode

STALL = 1.5
ROOM = 4 * 2**20
SMALL, LARGE = arrays_of(10), arrays_of(INLINE_BYTES)  # a MiB: four bytes a value
Connect = Callable[..., RawNode]
Ask = Callable[..., Iterator[Message]]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(options=HubOptions(grace=0.1, room=ROOM)) as server:
        yield server


@pytest.fixture(scope="module")
def hasty(server: Server) -> Iterator[Server]:
    """One that cuts off soon who is granted room and sends nothing."""
    with serving(server.authority, options=HubOptions(room=ROOM, stall=STALL)) as hasty:
        yield hasty


@pytest.fixture
def connect(server: Server, tmp_path: Path) -> Iterator[Connect]:
    """Opens a stream as a new member, or as one that is given."""
    loop = Loop()
    with ExitStack() as stack:
        stack.callback(loop.close)

        def connect(name: str = "st-marys", to: Server = server) -> RawNode:
            node = RawNode(to, server.authority.member(tmp_path, name, to.address), loop)
            stack.callback(node.close)
            return node

        yield connect
    wait_for(lambda: not server.hub.nodes(), "all have gone")


@pytest.fixture
def ask() -> Iterator[Ask]:
    """Asks a node; what comes back is the iterator of its answer, or of what is read `within` seconds."""
    with ExitStack() as stack:

        def ask(
            node: RawNode, content: RecordDict = SMALL, run: str = "run-1", within: float = LONG
        ) -> Iterator[Message]:
            grid = GrpcGrid(node.server.hub, GridTerms(run, lambda nodes: (list(nodes), {}), 4 * 2**30))
            stack.callback(grid.close)
            return grid.send_and_receive(
                [grid.create_message(content, words.EVALUATE, node.node_id, "1")], timeout=within
            )

        yield ask


# ---- hello ----


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"protocol": 2}, "speaks protocol 2"),
        ({"protocol": 0}, "speaks protocol 0"),
        ({"instance": b"short"}, "does not say which process it is"),
        ({"version": "x" * 201}, "a version of 201 characters"),
        ({"python": "x" * 201}, "a version of 201 characters"),
        ({"clock": float("nan")}, "the clock of st-marys differs"),
        ({"clock": 0.0}, "the clock of st-marys differs"),
        ({"presence": pb.Presence(apps=["a\nb"])}, "offers what cannot be read"),
        ({"presence": pb.Presence(apps=["a" * 201])}, "offers what cannot be read"),
        ({"presence": pb.Presence(revision="r" * 201)}, "offers what cannot be read"),
        ({"presence": pb.Presence(revision="\x1b[2J")}, "offers what cannot be read"),
        ({"presence": pb.Presence(apps=["a"] * 2001)}, "offers what cannot be read"),
        ({"presence": pb.Presence(tasks=[pb.TaskOffer(name="t", version="\x1b[31m")])}, "offers what cannot be read"),
    ],
)
def test_hello_that_cannot_be_is_refused_with_the_reason(
    connect: Connect, server: Server, changes: dict[str, object], said: str
) -> None:
    error = connect().hello(**changes).ended()
    assert said in error.details
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert server.hub.nodes() == []


@pytest.mark.parametrize(
    "frame",
    [
        pb.Frame(presence=pb.Presence()),
        pb.Frame(header=pb.Header()),
        pb.Frame(welcome=pb.Welcome()),
        chunk_frame([memoryview(b"x")]),
        b"rubbish",
        b"",
    ],
    ids=["presence", "header", "welcome", "chunk", "rubbish", "nothing"],
)
def test_stream_that_does_not_begin_with_a_hello_is_ended(connect: Connect, server: Server, frame: pb.Frame) -> None:
    node = connect()
    node.send(frame)
    assert node.ended().code is grpc.StatusCode.INVALID_ARGUMENT
    assert server.hub.nodes() == []


def test_clock_ten_minutes_off_is_told_in_seconds(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    import time

    with caplog.at_level(logging.WARNING, "privet.server"):
        error = connect().hello(clock=time.time() + 600).ended()
        assert "differs from the server's by 600 s; allowed are 300 s; set both clocks by NTP" in error.details
        wait_for(lambda: "differs from the server's by 600 s" in caplog.text, "the server's log says so too")


def test_node_is_shown_with_what_it_said_and_by_the_name_in_its_certificate(connect: Connect, server: Server) -> None:
    presence = pb.Presence(tasks=[pb.TaskOffer(name="digits", version="3")], apps=["hello"], revision="a1")
    node = connect("charite").welcomed(version="9.9", presence=presence)
    (view,) = server.hub.nodes()
    assert (view.name, view.version, view.tasks, view.apps) == ("charite", "9.9", {"digits": "3"}, ("hello",))
    assert view.revision == "a1"
    node.send(pb.Frame(presence=pb.Presence(is_paused=True)))
    wait_for(lambda: server.hub.nodes()[0].is_paused, "the new presence")
    node.send(pb.Frame(presence=pb.Presence(apps=["\n"])))
    assert "offers what cannot be read" in node.ended().details


def test_second_process_with_one_identity_is_refused_and_the_first_goes_on(connect: Connect, ask: Ask) -> None:
    first = connect().welcomed()
    error = connect().hello().ended()
    assert "two processes have one identity" in error.details
    assert error.code is grpc.StatusCode.ALREADY_EXISTS
    answers = ask(first)
    header, _ = first.asked()
    first.answer(header, SMALL)
    assert next(answers).has_content()


def test_second_stream_of_the_same_process_takes_the_firsts_place(connect: Connect, ask: Ask) -> None:
    first = connect().welcomed()
    answers = ask(first)
    first.asked()
    second = connect()
    second.instance = first.instance
    second.welcomed()
    assert "opened another stream" in first.ended().details
    header, _ = second.asked()  # what was not answered is asked again
    second.answer(header, SMALL)
    assert next(answers).has_content()


# ---- answers ----


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["inline", "granted"])
def test_answer_arrives_whole_and_is_acknowledged(
    connect: Connect, ask: Ask, server: Server, content: RecordDict
) -> None:
    node = connect().welcomed()
    answers = ask(node, content)
    header, message = node.asked()
    assert message.content == content
    node.answer(header, content)
    assert next(answers).content == content
    assert node.expect("taken").message_id == header.message_id
    assert server.hub.nodes()[0].answered == 1
    assert next(answers, None) is None


def test_replayed_answer_is_dropped_and_logged(
    connect: Connect, ask: Ask, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    node = connect().welcomed()
    answers = ask(node)
    header, _ = node.asked()
    sent = node.answer(header, SMALL)
    next(answers)
    node.expect("taken")
    with caplog.at_level(logging.INFO, "privet.server"):
        node.send(sent.header_frame)
        node.send_body(sent)
        assert node.expect("dropped").message_id == header.message_id
    assert "an answer in run 'run-1' that nobody waits for" in caplog.text
    assert server.hub.nodes()[0].answered == 1
    assert_goes_on(ask, node)


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["inline", "granted"])
def test_late_answer_is_dropped_and_the_node_need_not_keep_it(connect: Connect, ask: Ask, content: RecordDict) -> None:
    node = connect().welcomed()
    assert list(ask(node, SMALL, within=0.05)) == []
    header, _ = node.asked()
    assert node.expect("dropped").message_id == header.message_id
    late = node.answer_to(header, content)
    node.send(late.header_frame)
    assert node.expect("dropped").message_id == header.message_id
    if late.is_inline:
        node.send_body(late)
    assert_goes_on(ask, node)


def test_answer_to_what_another_node_was_asked_is_dropped(connect: Connect, ask: Ask) -> None:
    thief, owner = connect("thief").welcomed(), connect("owner").welcomed()
    answers = ask(owner)
    header, _ = owner.asked()
    stolen = thief.answer_to(header, SMALL)
    thief.send(stolen.header_frame)
    thief.send_body(stolen)
    assert thief.expect("dropped").message_id == header.message_id
    owner.answer(header, RecordDict({"config": ConfigRecord({"from": "owner"})}))
    assert next(answers).content["config"]["from"] == "owner"
    assert_goes_on(ask, thief)


def test_answer_in_another_run_is_dropped(connect: Connect, ask: Ask) -> None:
    node = connect().welcomed()
    answers = ask(node)
    header, _ = node.asked()
    other = node.answer_to(header, SMALL, run_id="run-2")
    node.send(other.header_frame)
    node.send_body(other)
    node.expect("dropped")
    node.answer(header, SMALL)
    assert next(answers).has_content()


def test_arrays_above_what_was_asked_are_refused_before_they_come(connect: Connect, ask: Ask) -> None:
    node = connect().welcomed()
    ask(node, SMALL)  # the slack on a model of 40 bytes is a MiB
    header, _ = node.asked()
    node.send(node.answer_to(header, arrays_of(2**19)).header_frame)
    assert "bytes of arrays, asked for are" in node.ended().details


# ---- frames out of order ----


def header_to(node: RawNode, header: pb.Header, size: int) -> pb.Frame:
    """An announcement of so many bytes of records, with nothing behind it."""
    outgoing = node.answer_to(header, SMALL)
    announced = pb.Header.FromString(outgoing.header.SerializeToString())
    announced.records_bytes, announced.payload_bytes = size, 0
    return pb.Frame(header=announced)


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (["header", "header"], "a message within a message"),
        (["chunk"], "a chunk that nobody granted"),
        (["end"], "ended a message that it had not begun"),
        (["header", "end"], "bytes are missing"),
        (["unknown", "chunk", "chunk"], "sent more than it announced"),
        (["welcome"], "a frame of kind welcome"),
        (["grant"], "a frame of kind grant"),
        (["hello"], "a frame of kind hello"),
        (["taken"], "a frame of kind taken"),
        (["dropped"], "a frame of kind dropped"),
        (["denied"], "a frame of kind denied"),
        (["rubbish"], "a frame"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_frames_out_of_order_end_the_stream_with_a_reason(
    connect: Connect, ask: Ask, frames: list[str], said: str
) -> None:
    node = connect().welcomed()
    ask(node)
    header, _ = node.asked()
    for kind in frames:
        node.send(frame_of(kind, node, header))
    assert said in node.ended().details


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (["large", "chunk"], "a chunk that nobody granted"),
        (["large", "end"], "ended a message that it had not begun"),
        (["large", "header"], "a message within a message"),
    ],
)
def test_body_that_comes_before_its_grant_ends_the_stream(
    connect: Connect, ask: Ask, frames: list[str], said: str
) -> None:
    hold, node = connect("hold").welcomed(), connect().welcomed()
    ask(hold, RecordDict())
    held = node_that_holds_all_room(hold)  # so that nothing is granted to anybody else
    ask(node)
    header, _ = node.asked()
    for kind in frames:
        node.send(frame_of(kind, node, header))
    assert said in node.ended().details
    held()


def frame_of(kind: str, node: RawNode, header: pb.Header) -> pb.Frame | bytes:
    """A frame of an answer to the request with this header, whose records have 40 bytes."""
    frames: dict[str, pb.Frame | bytes] = {
        "header": header_to(node, header, 40),
        "large": header_to(node, header, INLINE_BYTES + 1),
        "unknown": header_to(node, pb.Header(message_id=b"?" * 16, run_id="run-1"), 40),
        "chunk": chunk_frame([memoryview(b"x" * 40)]),
        "end": pb.Frame(end=pb.End(sha256=hashlib.sha256().digest())),
        "welcome": pb.Frame(welcome=pb.Welcome()),
        "grant": pb.Frame(grant=pb.Grant()),
        "hello": pb.Frame(hello=pb.Hello()),
        "taken": pb.Frame(taken=pb.Taken()),
        "dropped": pb.Frame(dropped=pb.Dropped()),
        "denied": pb.Frame(denied=pb.Denied()),
        "rubbish": b"\xff\xff\xff",
    }
    return frames[kind]


def node_that_holds_all_room(node: RawNode) -> Callable[[], None]:
    """Announces as much as the room has and is granted it; what is given goes away."""
    header, _ = node.asked()
    outgoing = node.answer_to(header, RecordDict({"config": ConfigRecord({"x": b"x" * (ROOM - 1000)})}))
    announced = pb.Header.FromString(outgoing.header.SerializeToString())
    announced.records_bytes, announced.payload_bytes = ROOM, 0
    node.send(pb.Frame(header=announced))
    node.expect("grant")
    return node.close


def test_member_that_is_revoked_between_the_gate_and_its_hello_does_not_enter(connect: Connect, hasty: Server) -> None:
    """It opened its stream as a member; the deny-list learned better before it said who it is."""
    node, friend = connect("thief", hasty), connect("friend", hasty).welcomed()
    hasty.roll.deny(node.key_fingerprint)
    assert node.key_fingerprint in friend.expect_denied()
    error = node.hello().ended()
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
    assert "thief was revoked" in error.details
    assert [view.name for view in hasty.hub.nodes()] == ["friend"]


def test_description_brings_no_arrays(connect: Connect, server: Server) -> None:
    """Who says who it is needs a hundred bytes; one that announces a model instead loses its stream."""
    node = connect().welcomed()
    grid = GrpcGrid(server.hub, GridTerms("run-1", lambda nodes: (list(nodes), {}), 4 * 2**30))
    waiting = grid.send_and_receive([grid.create_message(SMALL, words.DESCRIBE, node.node_id, "1")], timeout=LONG)
    header, _ = node.asked()
    node.send(node.answer_to(header, arrays_of(2**20)).header_frame)
    assert "bytes of arrays, asked for are" in node.ended().details
    del waiting
    grid.close()


# ---- room ----


def test_node_that_announces_much_and_sends_nothing_is_cut_off_after_the_stall_limit(
    connect: Connect, ask: Ask, hasty: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """It takes all room with it until then, and no longer: the others wait so long and go on."""
    greedy, honest = connect("greedy", hasty).welcomed(), connect("honest", hasty).welcomed()
    waiting = ask(greedy, RecordDict())
    answers = ask(honest, RecordDict())
    announced, _ = greedy.asked()
    frame = header_to(greedy, announced, 0)
    frame.header.records_bytes, frame.header.payload_bytes = 1000, 4 * 2**30 - 1000
    greedy.send(frame)
    greedy.expect("grant")
    header, _ = honest.asked()
    with caplog.at_level(logging.WARNING, "privet.server"):
        honest.answer(header, LARGE)  # the grant comes when the other has lost its room
        assert next(answers).content == LARGE
    del waiting
    assert "have not come for too long" in greedy.ended().details
    assert "node greedy: its stream ends" in caplog.text


def test_node_that_is_slow_but_keeps_sending_is_not_cut_off(connect: Connect, ask: Ask, hasty: Server) -> None:
    content = arrays_of(CHUNK_BYTES // 2)  # two chunks, and one of records
    node = connect(to=hasty).welcomed()
    answers = ask(node, content)
    header, _ = node.asked()
    outgoing = node.answer_to(header, content)
    node.send(outgoing.header_frame)
    node.expect("grant")
    for frame in outgoing.body_frames():
        with pytest.raises(TimeoutError):
            node.read(timeout=STALL / 2.5)
        node.send(frame)
    assert next(answers).has_content()


def test_answer_that_nobody_waits_for_any_more_gives_its_room_back_at_once(connect: Connect, ask: Ask) -> None:
    """A node that is granted room and dawdles until the deadline holds up nobody after it."""
    slow, honest = connect("slow").welcomed(), connect("honest").welcomed()
    answers = ask(slow, RecordDict(), within=0.2)
    header, _ = slow.asked()
    content = arrays_of(2 * CHUNK_BYTES)  # 8 MiB, all of the room
    outgoing = slow.answer_to(header, content)
    slow.send(outgoing.header_frame)
    slow.expect("grant")
    frames = list(outgoing.body_frames())
    slow.send(frames[0])
    assert list(answers) == []
    assert slow.expect("dropped").message_id == header.message_id
    others = ask(honest, LARGE)
    header, _ = honest.asked()
    honest.answer(header, LARGE)
    assert next(others).content == LARGE
    for frame in frames[1:]:  # thrown away as it comes
        slow.send(frame)
    assert_goes_on(ask, slow)


def test_answer_that_waits_for_room_and_is_given_up_takes_none(connect: Connect, ask: Ask) -> None:
    first, second, third = (connect(name).welcomed() for name in ("first", "second", "third"))
    answers = ask(first, LARGE)
    hold = node_that_holds_all_room(first)
    given_up = ask(second, LARGE, within=0.2)
    header, _ = second.asked()
    second.send(second.answer_to(header, LARGE).header_frame)
    assert list(given_up) == []
    assert second.expect("dropped").message_id == header.message_id
    others = ask(third, LARGE)
    header, _ = third.asked()
    hold()
    third.answer(header, LARGE)
    assert next(others).content == LARGE
    assert_goes_on(ask, second)
    del answers


def test_room_goes_to_answers_in_the_order_in_which_they_were_announced(connect: Connect, ask: Ask) -> None:
    first, *others = (connect(name).welcomed() for name in ("a", "b", "c", "d"))
    blocking = ask(first, LARGE)
    hold = node_that_holds_all_room(first)
    content = arrays_of(CHUNK_BYTES)  # as large as the room
    answers, outgoing = [], []
    for node in others:
        answers.append(ask(node, content))
        header, _ = node.asked()
        outgoing.append(node.answer_to(header, content))
        node.send(outgoing[-1].header_frame)
    hold()
    for place, node in enumerate(others):
        node.expect("grant")
        for later in others[place + 1 :]:
            with pytest.raises(TimeoutError):
                later.read(timeout=0.05)
        node.send_body(outgoing[place])
        assert next(answers[place]).has_content()
        answers[place].close()  # type: ignore[attr-defined]  # read on: its room is free
    del blocking


def test_answer_with_a_wrong_digest_is_none_and_its_room_is_free_again(connect: Connect, ask: Ask) -> None:
    liar, honest = connect("liar").welcomed(), connect("honest").welcomed()
    content = arrays_of(CHUNK_BYTES)  # as large as the room
    waiting = ask(liar, content)
    header, _ = liar.asked()
    outgoing = liar.answer_to(header, content)
    liar.send(outgoing.header_frame)
    liar.expect("grant")
    *chunks, _ = outgoing.body_frames()
    for chunk in chunks:
        liar.send(chunk)
    liar.send(pb.Frame(end=pb.End(sha256=hashlib.sha256().digest())))
    assert "SHA-256" in liar.ended().details
    answers = ask(honest, content)
    header, _ = honest.asked()
    honest.answer(header, content)
    assert next(answers).content == content
    del waiting


def assert_goes_on(ask: Ask, node: RawNode) -> None:
    """The stream is good for another request."""
    answers = ask(node, SMALL, "run-9")
    header, _ = node.asked()
    node.answer(header, SMALL)
    assert next(answers).content == SMALL
