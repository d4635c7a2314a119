"""Undisturbed: short steps that Ctrl-C may come before or after, and not in the middle of."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType

_Handler = Callable[[int, FrameType | None], object]


class _Patient:
    """Hears Ctrl-C in the place of `before`, and passes it on when no step is under way."""

    def __init__(self, before: _Handler) -> None:
        self.before = before
        self.steps = 0
        self._came: list[tuple[int, FrameType | None]] = []

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._came.append((number, frame))
        self.pass_on()

    def pass_on(self) -> None:
        """What came, once, if nothing is under way."""
        if self._came and not self.steps:
            first = self._came[0]
            self._came.clear()
            self.before(*first)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C that comes meanwhile takes effect when this is over. In other threads than the first it never comes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    if not isinstance(handler, _Patient):
        with often_undisturbed(), undisturbed() if callable(handler) else nullcontext():
            yield
        return
    handler.steps += 1
    try:
        yield
    finally:
        handler.steps -= 1
        handler.pass_on()


@contextmanager
def often_undisturbed() -> Iterator[None]:
    """For many such steps: each costs less where one has made ready for all. Between them Ctrl-C comes as ever."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    patient = _Patient(before)
    signal.signal(signal.SIGINT, patient)
    try:
        yield
    finally:
        # A generator that was left in the middle may be closed elsewhere, or late.
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is patient:
            signal.signal(signal.SIGINT, before)
