"""The Flower ClientApp: translation only. What a node does stands in node.py."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Literal

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from ..privacy.budget.decisions import DeniedError
from ..privacy.budget.witness import Countersigned, head_text, read_countersigned
from ..privacy.channel import words
from ..privacy.channel.arrays import to_parameters, to_record
from ..privacy.errors import LedgerError, PrivetError, Refusal, RefusedError
from .node import Node, Request

log = logging.getLogger("privet.node")

_APP_RAISED = 2  # Flower's own code for a ClientApp that raised
_APP_FAILED = "app-failed"

Stage = Literal["describe", "initial", "train", "evaluate"]
Handler = Callable[[Node, Message], RecordDict]


def client_app(node_of: Callable[[Context], Node]) -> ClientApp:
    """A ClientApp that answers for the node that `node_of` finds for a Flower context."""
    app = ClientApp()

    def handled_by(handler: Handler) -> Callable[[Message, Context], Message]:
        def handle(message: Message, context: Context) -> Message:
            # What is logged stays here. Flower itself would put the text of whatever is raised into the reply.
            try:
                return _answered(node_of(context), handler, message)
            except PrivetError as error:
                log.error("no answer: %s; try: %s", error.message, error.remedy)
            except Exception:
                log.exception("no answer could be made")
            return Message(Error(_APP_RAISED, _APP_FAILED), reply_to=message)

        return handle

    app.query("describe")(handled_by(_describe))
    app.query("initial")(handled_by(_initial))
    app.query("witness")(handled_by(_witness))
    app.train()(handled_by(_train))
    app.evaluate()(handled_by(_evaluate))
    return app


def _answered(node: Node, handler: Handler, message: Message) -> Message:
    try:
        return Message(handler(node, message), reply_to=message)
    except RefusedError as refusal:
        log.warning("node %s: %s: %s", node.name, refusal.code, refusal.message)
        return Message(Error(words.REFUSED, reason_of(refusal)), reply_to=message)


def reason_of(refusal: RefusedError) -> str:
    """What leaves of a refusal: its code, and what the institution discloses of its policy's decision."""
    disclosed = refusal.disclosed if isinstance(refusal, DeniedError) else ""
    return f"{refusal.code.value}{words.DISCLOSED}{disclosed}" if disclosed else refusal.code.value


def _describe(node: Node, message: Message) -> RecordDict:
    config = message.content.get(words.CONFIG)
    facts: dict[str, str | int | bytes] = {words.NAME: node.name, words.DECLARED_SIZE: node.dataset.declared_size}
    if isinstance(config, ConfigRecord) and words.SUBMISSION in config:
        attendance = node.consider(_request("describe", message))
        if attendance is not None:
            facts |= {words.SIGNATURE: attendance.signature, words.CERTIFICATES: attendance.chain}
    return RecordDict({words.CONFIG: ConfigRecord({**facts})})


def _witness(node: Node, message: Message) -> RecordDict:
    countersigned = _witnessed(message)
    if countersigned is not None:
        node.witness(countersigned)
    return RecordDict()


def _initial(node: Node, message: Message) -> RecordDict:
    return RecordDict({words.ARRAYS: to_record(node.answer(_request("initial", message)).parameters)})


def _train(node: Node, message: Message) -> RecordDict:
    answer = node.answer(_request("train", message))
    weight = MetricRecord({words.DECLARED_SIZE: node.dataset.declared_size})
    arrays = to_record(answer.parameters)
    return RecordDict({words.ARRAYS: arrays, words.METRICS: weight, words.LEDGER: _ledger(node, message)})


def _evaluate(node: Node, message: Message) -> RecordDict:
    answer = node.answer(_request("evaluate", message))
    metrics = MetricRecord({words.DECLARED_SIZE: node.dataset.declared_size, **answer.sums})
    return RecordDict({words.METRICS: metrics, words.LEDGER: _ledger(node, message)})


def _ledger(node: Node, message: Message) -> ConfigRecord:
    """The head of the ledger, and the charges since the one that the server countersigned last."""
    head, charges = node.head(_witnessed(message))
    return ConfigRecord({words.HEAD: head_text(head), words.CHARGES: json.dumps([asdict(entry) for entry in charges])})


def _witnessed(message: Message) -> Countersigned | None:
    config = message.content.get(words.CONFIG)
    text = config.get(words.WITNESSED) if isinstance(config, ConfigRecord) else None
    try:
        return read_countersigned(text) if text is not None else None
    except LedgerError as error:
        raise _malformed(error.message) from None


def _request(stage: Stage, message: Message) -> Request:
    content = message.content
    config = content.get(words.CONFIG)
    arrays = content.get(words.ARRAYS)
    if not isinstance(config, ConfigRecord) or not isinstance(arrays, ArrayRecord | None):
        raise _malformed("its config or arrays are missing or of another type")
    submission, number, attempt = (config.get(key) for key in (words.SUBMISSION, words.ROUND, words.ATTEMPT))
    if not isinstance(submission, bytes) or type(number) is not int or type(attempt) is not int:
        raise _malformed("submission, round or attempt is missing or of another type")
    parameters = to_parameters(arrays) if arrays is not None else {}
    brought = (_bytes(config, key) for key in (words.SIGNATURE, words.CERTIFICATES, words.COHORT))
    return Request(stage, submission, number, attempt, parameters, _witnessed(message), *brought)


def _bytes(config: ConfigRecord, key: str) -> bytes:
    """What a simulation's server leaves out; a node that needs it refuses what is empty."""
    value = config.get(key, b"")
    if not isinstance(value, bytes):
        raise _malformed(f"its {key} is of another type")
    return value


def _malformed(why: str) -> RefusedError:
    return RefusedError(Refusal.MALFORMED_REQUEST, f"malformed request: {why}", "ask the coordinator")
