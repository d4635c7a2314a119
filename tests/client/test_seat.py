"""A seat serves one run, one request after the other; whatever fails becomes one code."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from channel import echo
from flwr.app import ConfigRecord, Message, RecordDict
from privet.client.link import Asked
from privet.client.seat import Seat
from privet.privacy.channel import words
from privet.privacy.channel.flower import empty_run, identify_process
from privet.privacy.errors import Refusal, RefusedError, TaskError

LONG = 20.0


@pytest.fixture(autouse=True)
def _process_has_a_run() -> None:
    """As a node's has: Flower makes no message without."""
    identify_process(empty_run(1))


class Clerk:
    """What a seat asks: answers as it is told to."""

    def __init__(self, reply: Callable[[Message], Message] = echo) -> None:
        self._reply = reply
        self.answered: list[int] = []
        self.prepared: list[int] = []
        self.is_closed = threading.Event()

    def answer(self, message: Message) -> Message:
        self.answered.append(number_of(message))
        return self._reply(message)

    def prepare(self, message: Message) -> None:
        self.prepared.append(number_of(message))

    def cancel(self, why: str) -> None:
        return

    def rest(self) -> bool:
        return True

    def close(self) -> None:
        self.is_closed.set()


class Replies:
    """The answers that have come."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._news = threading.Condition()

    def take(self, message: Message) -> None:
        with self._news:
            self.messages.append(message)
            self._news.notify_all()

    def wait(self, count: int) -> list[Message]:
        with self._news:
            assert self._news.wait_for(lambda: len(self.messages) >= count, LONG)
            return self.messages


def number_of(message: Message) -> int:
    number = message.content[words.CONFIG][words.ROUND]
    assert isinstance(number, int)
    return number


def asked(number: int, replies: Replies) -> Asked:
    content = RecordDict({words.CONFIG: ConfigRecord({words.ROUND: number})})
    return Asked(bytes([number]) * 16, "run-1", Message(content, 1, words.TRAIN), replies.take)


@contextmanager
def seat_of(open_served: Callable[[Message], Clerk], changed: Callable[[], None] = lambda: None) -> Iterator[Seat]:
    seat = Seat("run-1", open_served, changed)
    try:
        yield seat
    finally:
        seat.close(LONG)


def test_requests_are_served_in_order_and_the_clerk_is_let_go_in_the_end() -> None:
    clerk, replies, opened = Clerk(), Replies(), []
    with seat_of(lambda message: opened.append(message) or clerk) as seat:
        for number in (1, 2, 3):
            seat.put(asked(number, replies))
        replies.wait(3)
        assert not clerk.is_closed.is_set()
    assert clerk.answered == clerk.prepared == [1, 2, 3]
    assert len(opened) == 1
    assert clerk.is_closed.is_set()


def test_request_that_was_dropped_before_it_began_is_not_begun() -> None:
    may_go_on, replies = threading.Event(), Replies()

    def held(message: Message) -> Message:
        assert may_go_on.wait(LONG)
        return echo(message)

    clerk = Clerk(held)
    with seat_of(lambda _: clerk) as seat:
        for number in (1, 2, 3):
            seat.put(asked(number, replies))
        seat.drop(bytes([2]) * 16)
        assert not seat.is_idle
        may_go_on.set()
        replies.wait(2)
    assert clerk.answered == [1, 3]


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (RefusedError(Refusal.BUDGET_EXHAUSTED, "secret", "ask"), words.REFUSED, "budget-exhausted"),
        (TaskError("secret", "see"), words.APP_RAISED, "app-failed"),
        (RuntimeError("secret"), words.APP_RAISED, "app-failed"),
    ],
)
def test_whatever_fails_is_a_code_and_its_text_stays_in_the_local_log(
    error: Exception, code: int, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(message: Message) -> Message:
        raise error

    clerk, replies = Clerk(fail), Replies()
    with caplog.at_level(logging.WARNING, "privet.node"), seat_of(lambda _: clerk) as seat:
        seat.put(asked(1, replies))
        (reply,) = replies.wait(1)
        assert (reply.error.code, reply.error.reason) == (code, reason)
        assert seat.work.refused == ("budget-exhausted" if code == words.REFUSED else "")
    assert "secret" in caplog.text
    assert clerk.prepared == []


def test_seat_that_could_not_be_opened_is_opened_anew_for_the_next_request() -> None:
    clerk, replies, tries = Clerk(), Replies(), []

    def open_served(message: Message) -> Clerk:
        tries.append(message)
        if len(tries) == 1:
            raise RefusedError(Refusal.UNKNOWN_DATASET, "nothing here", "declare it")
        return clerk

    with seat_of(open_served) as seat:
        seat.put(asked(1, replies))
        seat.put(asked(2, replies))
        first, second = replies.wait(2)
    assert first.error.reason == "unknown-dataset"
    assert second.has_content()


def test_work_says_what_is_being_done() -> None:
    seen: list[tuple[bool, str, int]] = []
    replies = Replies()
    with seat_of(lambda _: Clerk(), lambda: seen.append((work.is_busy, work.what, work.answered))) as seat:
        work = seat.work
        seat.put(asked(7, replies))
        replies.wait(1)
    assert seen == [(True, "train round 7", 0), (False, "train round 7", 1)]
