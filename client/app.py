"""The Flower ClientApp: translation only. What a node does stands in node.py."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from ..privacy.budget.decisions import DeniedError
from ..privacy.budget.witness import Countersigned, head_text, read_countersigned
from ..privacy.channel import words
from ..privacy.channel.arrays import to_parameters, to_record
from ..privacy.errors import LedgerError, PrivetError, Refusal, RefusedError
from ..privacy.parameters import Parameters, Unchanging
from .answers import Answer
from .node import Begun, Carried, Request
from .participant import Participant

log = logging.getLogger("privet.node")

_APP_RAISED = 2  # Flower's own code for a ClientApp that raised
_APP_FAILED = "app-failed"

Stage = Literal["describe", "initial", "train", "evaluate"]
Handler = Callable[[Participant, Message], RecordDict]
Read = Callable[[ArrayRecord], Parameters]

_Result = TypeVar("_Result")


def client_app(node_of: Callable[[Context], Participant]) -> ClientApp:
    """A ClientApp that answers for the node that `node_of` finds for a Flower context."""
    app = ClientApp()

    def handled_by(handler: Handler) -> Callable[[Message, Context], Message]:
        return lambda message, context: _sure(message, lambda: _answered(node_of(context), handler, message))

    app.query("describe")(handled_by(_describe))
    app.query("initial")(handled_by(_initial))
    app.query("witness")(handled_by(_witness))
    app.train()(handled_by(_train))
    app.evaluate()(handled_by(_evaluate))
    return app


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A node, what it is asked, and how far it has come: begun, answered already, or its reply, a refusal."""

    node: Participant
    message: Message
    step: Begun | Answer | Message


class Reader:
    """Reads the model that several nodes of one process are asked with, and hashes it, once.

    What is the same is told by identity, of bytes that cannot change; another array, name or order is read anew. The
    last model is remembered: one round is asked at a time.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[str, str, object]] = []
        self._last: Unchanging | None = None

    def __call__(self, record: ArrayRecord) -> Parameters:
        """The record's arrays, as `to_parameters` reads and checks them."""
        parts: list[tuple[str, str, object]] = [(name, array.stype, array.data) for name, array in record.items()]
        if self._last is None or not _is_same(parts, self._parts):
            self._last, self._parts = Unchanging(to_parameters(record)), parts
        return self._last


def _is_same(some: Sequence[tuple[str, str, object]], others: Sequence[tuple[str, str, object]]) -> bool:
    return len(some) == len(others) and all(
        one[:2] == other[:2] and one[2] is other[2] and type(one[2]) is bytes
        for one, other in zip(some, others, strict=True)
    )


def begun_together(asked: Iterable[tuple[Participant, Message]], read: Read = to_parameters) -> list[Asked]:
    """Let several nodes begin what each is asked to train or to evaluate; each by itself, as it would alone."""
    requests = _Requests(read)
    return [Asked(node, message, _surely(node, message, _begun, node, message, requests)) for node, message in asked]


def finished_together(
    asked: Sequence[Asked], carried: Sequence[Carried] | None, is_held: bool = False
) -> list[Message]:
    """The replies of nodes that have begun, in that order. Who is refused takes nobody along.

    `carried`: what those gave that had begun; None where each had better carry it out by itself. `is_held`: updates do
    not travel, since who carried them out adds them up.
    """
    results = iter(carried or ())
    bare = _Bare() if is_held and carried is not None else None
    return [_finished_reply(one, results, bare) for one in asked]


def _finished_reply(asked: Asked, results: Iterator[Carried], bare: "_Bare | None") -> Message:
    node, message, step = asked.node, asked.message, asked.step
    if isinstance(step, Begun):
        return _surely(node, message, _finished, node, message, step, next(results, None), bare)
    return _surely(node, message, _reply, node, message, step) if isinstance(step, Answer) else step


class _Bare:
    """Contents of replies whose updates do not travel; those that say the same are one object, as of requests.

    So nobody writes into one: who adds to a reply makes it anew first (`restated` in server/gathered.py).
    """

    def __init__(self) -> None:
        self._by_size: dict[int, RecordDict] = {}

    def content(self, node: Participant, message: Message, answer: Answer) -> RecordDict:
        """What such a reply says."""
        config = message.content.get(words.CONFIG)
        if answer.sums or not isinstance(config, ConfigRecord) or words.NO_HEAD not in config:
            return _evaluated(node, message, answer)
        size = node.dataset.declared_size
        if size not in self._by_size:
            self._by_size[size] = _evaluated(node, message, answer)
        return self._by_size[size]


class _Requests:
    """Reads what several nodes are asked at once: a content that they share as one object, once."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._last: tuple[RecordDict, str, Request] | None = None

    def __call__(self, message: Message) -> Request:
        content, kind = message.content, message.metadata.message_type
        if self._last is None or self._last[0] is not content or self._last[1] != kind:
            request = _request("train" if kind == words.TRAIN else "evaluate", message, self._read)
            self._last = content, kind, request
        return self._last[2]


def _begun(node: Participant, message: Message, requests: _Requests) -> Begun | Answer:
    return node.begin(requests(message))


def _finished(
    node: Participant, message: Message, begun: Begun, carried: Carried | None, bare: _Bare | None
) -> Message:
    return _reply(node, message, node.finish(begun, carried or node.carry_out(begun)), bare)


def _reply(node: Participant, message: Message, answer: Answer, bare: _Bare | None = None) -> Message:
    if message.metadata.message_type != words.TRAIN:
        return Message(_evaluated(node, message, answer), reply_to=message)
    content = bare.content(node, message, answer) if bare is not None else _trained(node, message, answer)
    return Message(content, reply_to=message)


def _surely(node: Participant, message: Message, deed: Callable[..., _Result], *given: object) -> _Result | Message:
    return _sure(message, _heard, node, message, deed, *given)


def _sure(message: Message, deed: Callable[..., _Result], *given: object) -> _Result | Message:
    """What the deed gives, or a reply that says no more than that it failed."""
    # What is logged stays here. Flower itself would put the text of whatever is raised into the reply.
    try:
        return deed(*given)
    except PrivetError as error:
        log.error("no answer: %s; try: %s", error.message, error.remedy)
    except Exception:
        log.exception("no answer could be made")
    return Message(Error(_APP_RAISED, _APP_FAILED), reply_to=message)


def _heard(node: Participant, message: Message, deed: Callable[..., _Result], *given: object) -> _Result | Message:
    """What the deed gives, or a reply that says with which code the node refused."""
    try:
        return deed(*given)
    except RefusedError as refusal:
        log.warning("node %s: %s: %s", node.name, refusal.code, refusal.message)
        return Message(Error(words.REFUSED, reason_of(refusal)), reply_to=message)


def _answered(node: Participant, handler: Handler, message: Message) -> Message:
    return _heard(node, message, lambda: Message(handler(node, message), reply_to=message))


def reason_of(refusal: RefusedError) -> str:
    """What leaves of a refusal: its code, and what the institution discloses of its policy's decision."""
    disclosed = refusal.disclosed if isinstance(refusal, DeniedError) else ""
    return f"{refusal.code.value}{words.DISCLOSED}{disclosed}" if disclosed else refusal.code.value


def _describe(node: Participant, message: Message) -> RecordDict:
    config = message.content.get(words.CONFIG)
    facts: dict[str, str | int | bytes] = {words.NAME: node.name, words.DECLARED_SIZE: node.dataset.declared_size}
    if isinstance(config, ConfigRecord) and words.SUBMISSION in config:
        attendance = node.consider(_request("describe", message))
        if attendance is not None:
            facts |= {words.SIGNATURE: attendance.signature, words.CERTIFICATES: attendance.chain}
    return RecordDict({words.CONFIG: ConfigRecord({**facts})})


def _witness(node: Participant, message: Message) -> RecordDict:
    countersigned = _witnessed(message)
    if countersigned is not None:
        node.witness(countersigned)
    return RecordDict()


def _initial(node: Participant, message: Message) -> RecordDict:
    return RecordDict({words.ARRAYS: to_record(node.answer(_request("initial", message)).parameters)})


def _train(node: Participant, message: Message) -> RecordDict:
    return _trained(node, message, node.answer(_request("train", message)))


def _evaluate(node: Participant, message: Message) -> RecordDict:
    return _evaluated(node, message, node.answer(_request("evaluate", message)))


def _trained(node: Participant, message: Message, answer: Answer) -> RecordDict:
    facts = _evaluated(node, message, answer)
    facts[words.ARRAYS] = to_record(answer.parameters)
    return facts


def _evaluated(node: Participant, message: Message, answer: Answer) -> RecordDict:
    metrics = MetricRecord({words.DECLARED_SIZE: node.dataset.declared_size, **answer.sums})
    ledger = _ledger(node, message)
    return RecordDict({words.METRICS: metrics, **({words.LEDGER: ledger} if ledger is not None else {})})


def _ledger(node: Participant, message: Message) -> ConfigRecord | None:
    """The head of the ledger, and the charges since the one that the server countersigned last.

    None without a ledger, and where the server asks for none: what it then cannot countersign is its own loss.
    """
    config = message.content.get(words.CONFIG)
    if isinstance(config, ConfigRecord) and words.NO_HEAD in config:
        return None
    stated = node.head(_witnessed(message))
    if stated is None:
        return None
    head, charges = stated
    return ConfigRecord({words.HEAD: head_text(head), words.CHARGES: json.dumps([asdict(entry) for entry in charges])})


def _witnessed(message: Message) -> Countersigned | None:
    config = message.content.get(words.CONFIG)
    text = config.get(words.WITNESSED) if isinstance(config, ConfigRecord) else None
    try:
        return read_countersigned(text) if text is not None else None
    except LedgerError as error:
        raise _malformed(error.message) from None


def _request(stage: Stage, message: Message, read: Read = to_parameters) -> Request:
    content = message.content
    config = content.get(words.CONFIG)
    arrays = content.get(words.ARRAYS)
    if not isinstance(config, ConfigRecord) or not isinstance(arrays, ArrayRecord | None):
        raise _malformed("its config or arrays are missing or of another type")
    submission, number, attempt = (config.get(key) for key in (words.SUBMISSION, words.ROUND, words.ATTEMPT))
    if not isinstance(submission, bytes) or type(number) is not int or type(attempt) is not int:
        raise _malformed("submission, round or attempt is missing or of another type")
    parameters = read(arrays) if arrays is not None else {}
    brought = (_bytes(config, key) for key in (words.SIGNATURE, words.CERTIFICATES, words.COHORT))
    witnessed, clip_norm = _witnessed(message), config.get(words.CLIP_NORM)
    if not isinstance(clip_norm, float | None):
        raise _malformed("its clip norm is of another type")
    return Request(stage, submission, number, attempt, parameters, witnessed, *brought, clip_norm=clip_norm)


def _bytes(config: ConfigRecord, key: str) -> bytes:
    """What a simulation's server leaves out; a node that needs it refuses what is empty."""
    value = config.get(key, b"")
    if not isinstance(value, bytes):
        raise _malformed(f"its {key} is of another type")
    return value


def _malformed(why: str) -> RefusedError:
    return RefusedError(Refusal.MALFORMED_REQUEST, f"malformed request: {why}", "ask the coordinator")
