"""The Grid that an unmodified Flower app is given, and what it logs: over a RunGrid in this process."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator

import pytest
from fake_nodes import FakeNode
from flwr.app import ConfigRecord, Error, Message, RecordDict
from privet.privacy.channel import words
from privet.privacy.channel.flower import RunNotRunningException
from privet.privacy.errors import UsageError
from privet.server.app_grid import AppGrid
from privet.server.app_log import LONGEST_LINE, AppLog
from run_grids import LocalRunGrid

LOGGER = "flwr.of-this-test"


class Asked:
    """An app's grid over three fake nodes, of which some give no answer."""

    def __init__(self, fault: Callable[[Message, Message], Message | None] | None = None) -> None:
        self.now = 0.0
        self.noted: list[tuple[int, str]] = []
        self.under = LocalRunGrid([FakeNode("north"), FakeNode("south"), FakeNode("west")], fault=fault)
        self.grid = AppGrid(self.under, lambda node, why: self.noted.append((node, why.text)), lambda: self.now)

    def message(self, node: int, ttl: float = 60.0, **records: ConfigRecord) -> Message:
        made = Message(RecordDict(dict(records)), node, "query.none", ttl=ttl)
        made.metadata.created_at = 0.0
        return made


def silent_south(request: Message, reply: Message) -> Message | None:
    return None if request.metadata.dst_node_id == 101 else reply


def test_answers_are_a_list_and_errors_are_noted() -> None:
    """The fake nodes know no such message, and say so."""
    asked = Asked()
    replies = asked.grid.send_and_receive(asked.message(node) for node in asked.grid.get_node_ids())
    assert [reply.metadata.src_node_id for reply in replies] == [100, 101, 102]
    assert len(replies) == len(list(replies)) == 3
    assert [node for node, _ in asked.noted] == [100, 101, 102]


@pytest.mark.parametrize(("ttl", "codes"), [(60.0, []), (9.0, [(4, "no-answer")]), (10.0, [(4, "no-answer")])])
def test_message_without_answer_is_an_error_once_it_has_expired(ttl: float, codes: list[tuple[int, str]]) -> None:
    asked = Asked(silent_south)
    asked.now = 10.0
    replies = asked.grid.send_and_receive([asked.message(101, ttl)], timeout=0)
    assert [(reply.error.code, reply.error.reason) for reply in replies] == codes
    [pushed] = asked.grid.push_messages([asked.message(101, ttl)])
    pulled = asked.grid.pull_messages(one for one in [pushed])
    assert [(one.error.code, one.metadata.reply_to_message_id) for one in pulled] == [
        (code, pushed) for code, _ in codes
    ]
    assert asked.grid.pull_messages([pushed]) == []
    assert asked.noted == [(101, "no-answer")] * (2 * len(codes))


class PatientGrid(LocalRunGrid):
    """Notes how long it is to wait."""

    waited: float | None = None

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        self.waited = timeout
        yield from super().send_and_receive(messages, timeout=timeout)


@pytest.mark.parametrize(("timeout", "seconds"), [(None, 9.0), (5.0, 5.0), (100.0, 9.0)])
def test_nobody_waits_longer_than_the_last_message_lives(timeout: float | None, seconds: float) -> None:
    asked, under = Asked(), PatientGrid([FakeNode("north"), FakeNode("south")])
    grid = AppGrid(under, lambda node, code: None, lambda: asked.now)
    grid.send_and_receive([asked.message(100, 3.0), asked.message(101, 9.0)], timeout=timeout)
    assert under.waited == seconds


def test_refusal_is_noted_with_what_the_institution_discloses() -> None:
    def refuse(request: Message, reply: Message) -> Message:
        return Message(Error(words.REFUSED, "approval-pending: needs-steward"), reply_to=request)

    asked = Asked(refuse)
    asked.grid.send_and_receive([asked.message(100)])
    assert asked.noted == [(100, "approval-pending: needs-steward")]


def test_answer_that_was_pulled_does_not_expire() -> None:
    asked = Asked()
    pushed = asked.grid.push_messages([asked.message(100, 5.0)])
    assert len(asked.grid.pull_messages(pushed)) == 1
    asked.now = 10.0
    assert asked.grid.pull_messages(pushed) == []


def test_message_pushed_twice_is_two_messages() -> None:
    """An app that asks one node after the other with one Message."""
    asked = Asked(silent_south)
    message = asked.message(101, 5.0)
    first = asked.grid.push_messages([message])
    message.metadata.dst_node_id = 100
    second = asked.grid.push_messages([message])
    asked.now = 10.0
    replies = asked.grid.pull_messages([*first, *second])
    assert {reply.metadata.reply_to_message_id: reply.metadata.src_node_id for reply in replies} == {
        first[0]: 101,
        second[0]: 100,
    }


def test_record_with_the_channels_name_is_refused_by_name() -> None:
    asked = Asked()
    for ask in (asked.grid.send_and_receive, asked.grid.push_messages):
        with pytest.raises(UsageError, match="a record named 'privet'"):
            ask([asked.message(100, privet=ConfigRecord())])


def test_run_that_is_stopped_ends_an_app_that_catches_everything() -> None:
    asked = Asked()
    asked.under.stop()

    def app() -> None:
        while True:
            try:
                asked.grid.send_and_receive([asked.message(100)])
            except Exception:
                continue

    with pytest.raises(RunNotRunningException):
        app()


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    made = logging.getLogger(LOGGER)
    made.setLevel(logging.WARNING)
    yield made
    assert not made.filters
    assert made.level == logging.WARNING


def test_lines_of_an_apps_own_thread_are_told_and_pass_as_before(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    app_log, first, second = AppLog(LOGGER), list[str](), list[str]()
    done = threading.Barrier(2)

    def other() -> None:
        with app_log.told(second.append):
            done.wait(10)
            logger.info("of the other\x1b[31m\n\nrun")
            done.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    with app_log.told(first.append):
        done.wait(10)
        logger.info("round %d", 1)
        logger.warning("x" * 1000)
        done.wait(10)
        thread.join(10)
        logger.info("alone")
    logger.info("after")
    assert first == ["round 1", "x" * LONGEST_LINE, "alone"]
    assert second == ["of the other [31m", "run"]
    assert [record.getMessage() for record in caplog.records] == ["x" * 1000]
