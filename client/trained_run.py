"""A training run at a node: what its requests bring, and the node that answers them behind Flower's ClientApp.

A request brings its submission in one place, and that is the run's whose orders were looked at: what is answered, and
what is made ready, is what the policy was asked about.
"""

import contextlib

from flwr.app import ConfigRecord, Context, Message, RecordDict

from ..privacy.channel import words
from ..privacy.channel.flower import run_number
from ..privacy.errors import PrivetError, Refusal, RefusedError
from ..privacy.plan_app import AnySubmission, AppSubmission, submission_of
from ..privacy.signed import SignedSubmission
from ..privacy.submission import Submission
from .app import client_app
from .node import Node
from .seat import refusal
from .teller import Teller
from .worker import Workers

_LISTENED = ("train", "evaluate")
_SUBMITTED = (words.DESCRIBE, words.INITIAL, words.TRAIN, words.EVALUATE)  # kinds of requests that bring a submission


class TrainedRun:
    """A node that trains for one run, behind Flower's ClientApp."""

    def __init__(self, node: Node, workers: Workers, run_id: str, first: Message, teller: Teller) -> None:
        self._node = node
        self._workers = workers
        self._run_id = run_id
        self._teller = teller
        self._app = client_app(lambda _: node)
        self._context = Context(run_number(run_id), first.metadata.dst_node_id, {}, RecordDict(), {})

    def answer(self, message: Message) -> Message:
        """The node's reply; raise RefusedError for a request that is not of this run."""
        if message.metadata.message_type in _SUBMITTED:
            task_submission(message, self._run_id)
        config = message.content.get(words.CONFIG)
        if (
            message.metadata.message_type in _LISTENED
            and isinstance(config, ConfigRecord)
            and self._teller.countersigned
        ):
            config[words.WITNESSED] = self._teller.countersigned
        return self._app(message, self._context)

    def prepare(self, message: Message) -> None:
        """Start the process that trains as soon as the run is known: at all nodes at once, and not one by one."""
        if message.metadata.message_type == words.DESCRIBE:
            with contextlib.suppress(PrivetError):  # told where it is asked for
                self._node.prepare(signed_submission(message).submission)

    def cancel(self, why: str) -> None:
        """End what is being trained: that attempt is spent."""
        self._workers.cancel(self._run_id, why)

    def rest(self) -> bool:
        """Nothing is kept that the ledger and the kept answers do not hold."""
        return True

    def close(self) -> None:
        """Let go of process and ledger."""
        self._workers.finish(self._run_id)
        self._node.close()


def is_description(message: Message) -> bool:
    """Whether a training run asks what was declared; an app's messages bring a seal, whatever they are called."""
    return message.metadata.message_type == words.DESCRIBE and words.SEAL not in message.content


def task_submission(message: Message, run_id: str) -> Submission:
    """The submission that a request of a task's run brings, in its config and nowhere else; raise RefusedError."""
    if words.SEAL in message.content:  # what is in it would be read in place of what the policy is asked about
        raise refusal(Refusal.MALFORMED_REQUEST, f"an app's seal in run {run_id}, which is a task's")
    submission = named_submission(signed_submission(message), run_id)
    if isinstance(submission, AppSubmission):
        raise refusal(Refusal.MALFORMED_REQUEST, f"run {run_id} is an app's, and this is asked of a task's")
    return submission


def named_submission(signed: SignedSubmission, run_id: str) -> AnySubmission:
    """What was signed; raise RefusedError where it is of another run than the request."""
    submission = submission_of(signed.submission)
    if submission.run_id != run_id:
        raise refusal(Refusal.OTHER_SUBMISSION, f"a submission of run {submission.run_id} in run {run_id}")
    return submission


def signed_submission(message: Message) -> SignedSubmission:
    """The signed submission that a request brings: of a training run in its config, of an app's beside its records."""
    for name in (words.SEAL, words.CONFIG):
        record = message.content.get(name)
        if isinstance(record, ConfigRecord) and words.SUBMISSION in record:
            parts = [record.get(key) for key in (words.SUBMISSION, words.SIGNATURE, words.CERTIFICATES)]
            if all(isinstance(part, bytes) for part in parts):
                return SignedSubmission(*parts)  # type: ignore[arg-type]  # each was looked at
    raise RefusedError(Refusal.MALFORMED_REQUEST, "a request without a signed submission", "ask the coordinator")
