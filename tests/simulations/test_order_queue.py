"""Orders that several processes take from one queue: each is taken once, and it is known by whom."""

import os
import resource
import signal
from collections.abc import Callable
from contextlib import closing

import pytest
from privet.simulations.crew import Crew
from privet.simulations.order_queue import OrderQueue


def taking(queue: OrderQueue, say: Callable[[int], object]) -> int:
    """A process that takes whatever comes; its number."""
    pid = os.fork()
    if pid == 0:
        try:
            for _ in queue.taken(say):
                pass
        finally:
            os._exit(0)
    return pid


def ended(pid: int) -> int:
    """How a process ended: 0, or less the signal that did it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_orders_are_taken_in_their_order_and_once() -> None:
    with closing(OrderQueue()) as queue:
        assert queue.is_empty
        assert all(queue.put(ticket, {}) for ticket in range(3))
        assert not queue.is_empty
        assert [queue.take() for _ in range(4)] == [0, 1, 2, None]


def test_nobody_takes_between_stop_and_go_on() -> None:
    said, says = os.pipe()
    with closing(OrderQueue()) as queue:
        assert queue.stop()
        pid = taking(queue, lambda ticket: os.write(says, b"."))
        assert queue.put(1, {})
        assert queue.take() == 1
        assert queue.put(2, {})
        queue.go_on()
        assert os.read(said, 1) == b"."
    assert ended(pid) == 0  # since who puts orders in is gone


def test_whoever_takes_is_waited_for_until_he_has_said_so() -> None:
    (begun, begins), (said, says) = os.pipe(), os.pipe()

    def say(ticket: int) -> None:
        os.write(begins, b".")
        os.read(said, 1)

    with closing(OrderQueue()) as queue:
        pid = taking(queue, say)
        assert queue.put(1, {})
        os.read(begun, 1)
        assert not queue.stop()
        os.write(says, b".")
        while not queue.stop():
            os.sched_yield()
        queue.go_on()
    assert ended(pid) == 0


def test_who_dies_before_he_says_what_he_has_taken_leaves_no_lock_behind() -> None:
    with closing(OrderQueue()) as queue:
        pid = taking(queue, lambda ticket: os.kill(os.getpid(), signal.SIGKILL))
        assert queue.put(1, {})
        assert ended(pid) == -signal.SIGKILL
        assert queue.stop()
        assert queue.take() is None  # it is gone with him: whoever put it in does so again


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this Python has no memfd_create")
def test_a_python_without_nameless_files_has_a_crew_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with Crew(lambda order: order, 2) as crew:
        assert crew.take(crew.give({"number": 1})) == {"number": 1}


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1200, reason="few descriptors are allowed")
def test_descriptors_may_be_many() -> None:
    """More than select(2) knows."""
    held = [os.dup(0) for _ in range(1100)]
    said, says = os.pipe()
    try:
        with closing(OrderQueue()) as queue:
            assert queue.is_empty
            pid = taking(queue, lambda ticket: os.write(says, b"."))
            assert queue.put(1, {})
            os.close(says)
            assert os.read(said, 1) == b"."
        assert ended(pid) == 0
    finally:
        for descriptor in held:
            os.close(descriptor)
