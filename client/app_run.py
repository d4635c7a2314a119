"""A run of a Flower app at a node: what stands before each of its requests, and the worker behind it.

The institution allowed the app by name, its operator signed, and the policy is asked, at every request: not only at the
first one. What the app reads is not accounted for, so nothing else could stop it. After the submission's end nothing
more is answered: an app's requests are not signed, and a server could make more of them for ever.
"""

from collections.abc import Callable

from flwr.app import ConfigRecord, Message, RecordDict

from ..privacy.budget.accounts import AccountBook
from ..privacy.channel import words
from .app_worker import AppWorker


class AppRun:
    """A Flower app that the institution allowed. `check`: raises RefusedError where it may not go on.

    `accounts`: what `check` asks the ledger by, let go of at the end.
    """

    def __init__(self, worker: AppWorker, accounts: AccountBook, check: Callable[[], None]) -> None:
        self._worker = worker
        self._accounts = accounts
        self._check = check
        self._begun: object = None

    def answer(self, message: Message) -> Message:
        """The app's reply, without the submission that came with the request; a TaskError where there is none."""
        self._check()
        seal = message.content.get(words.SEAL)
        begun = seal.get(words.BEGUN) if isinstance(seal, ConfigRecord) else None
        if begun != self._begun:  # the same run, begun anew by the server
            self._worker.forget()
            self._begun = begun
        message.content = RecordDict({k: v for k, v in message.content.items() if k != words.SEAL})
        reply = self._worker.answer(message)
        self._check()  # it may have taken long: what may not leave now, does not
        return reply

    def prepare(self, message: Message) -> None:
        """Nothing: an app's process is started by its first request."""

    def cancel(self, why: str) -> None:
        """End what the app is doing."""
        self._worker.cancel(why)

    def rest(self) -> bool:
        """Let the process go, and keep the app's state."""
        self._worker.rest()
        return not self._worker.has_state

    def close(self) -> None:
        """Let go of process, state and ledger."""
        self._worker.close()
        self._accounts.ledger.close()
