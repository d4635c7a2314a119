"""Ctrl-C in the middle of a step that must not be torn, as the system sends it to this very process."""

import signal
import threading
from collections.abc import Iterator

import pytest
from privet.simulations.undisturbed import often_undisturbed, undisturbed


@pytest.fixture(params=["one step", "one of many"])
def made_ready(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "one step":
        yield
    else:
        with often_undisturbed():
            yield


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("made_ready")
def test_ctrl_c_takes_effect_when_the_step_is_over() -> None:
    done = []

    def steps() -> None:
        with undisturbed():
            ctrl_c()
            ctrl_c()
            done.append("the step")
        done.append("what follows")

    with pytest.raises(KeyboardInterrupt):
        steps()
    assert done == ["the step"]
    with undisturbed():
        pass  # and once only


@pytest.mark.usefixtures("made_ready")
def test_ctrl_c_in_a_step_within_a_step_waits_for_the_outer_one() -> None:
    done = []

    def steps() -> None:
        with undisturbed():
            with undisturbed():
                ctrl_c()
            done.append("the outer step")

    with pytest.raises(KeyboardInterrupt):
        steps()
    assert done == ["the outer step"]


@pytest.mark.usefixtures("made_ready")
def test_step_that_fails_does_not_swallow_ctrl_c() -> None:
    def step() -> None:
        with undisturbed():
            ctrl_c()
            raise ValueError

    with pytest.raises(KeyboardInterrupt):
        step()
    with pytest.raises(ValueError, match="its own"), undisturbed():
        raise ValueError("its own")


def test_ctrl_c_between_steps_comes_as_ever() -> None:
    with often_undisturbed():
        with undisturbed():
            pass
        with pytest.raises(KeyboardInterrupt):
            ctrl_c()


def test_handler_is_what_it_was() -> None:
    before = signal.getsignal(signal.SIGINT)
    with often_undisturbed(), undisturbed():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_who_ignores_ctrl_c_goes_on_ignoring_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with often_undisturbed(), undisturbed():
            ctrl_c()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_is_let_be() -> None:
    failed: list[BaseException] = []

    def step() -> None:
        try:
            with undisturbed():
                pass
        except BaseException as error:
            failed.append(error)

    with often_undisturbed():
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
    assert failed == []


def test_what_is_left_in_another_thread_ends_there_without_an_error() -> None:
    """A generator in the middle of many steps, closed by whoever drops it."""
    before = signal.getsignal(signal.SIGINT)

    def steps() -> Iterator[int]:
        with often_undisturbed():
            yield 1

    under_way, failed = steps(), list[BaseException]()
    next(under_way)

    def close() -> None:
        try:
            under_way.close()
        except BaseException as error:
            failed.append(error)

    try:
        thread = threading.Thread(target=close)
        thread.start()
        thread.join()
        assert failed == []
        with pytest.raises(KeyboardInterrupt):
            ctrl_c()
    finally:
        signal.signal(signal.SIGINT, before)
