"""What each kind of entry must say. A body is canonical JSON whose leaves are strings; anything else is malformed.

Numbers are read with bounds: an amount is a plain decimal of few digits, so that no cell can make arithmetic slow.
"""

import json
import re
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    PlainValidator,
    StrictStr,
    StringConstraints,
    ValidationError,
    model_validator,
)

from ..plan import NAME_PATTERN
from ..signed import CERTIFICATES_BYTES

_AMOUNT = re.compile(r"[0-9]{1,15}(\.[0-9]{1,330})?([eE][+-]?[0-9]{1,3})?", re.ASCII)
# Amounts above are no epsilon, delta, divergence or noise that anyone means, and would cost precision in sums.
_LARGEST_AMOUNT = Decimal(10) ** 12
_WHOLE = re.compile(r"0|[1-9][0-9]{0,15}", re.ASCII)


def _amount(text: object) -> Decimal:
    if text == "Infinity":
        return Decimal("Infinity")
    if not isinstance(text, str) or not _AMOUNT.fullmatch(text):
        raise ValueError("not an amount")
    amount = Decimal(text)
    if amount > _LARGEST_AMOUNT:
        raise ValueError("an amount above 1e12")
    return amount


def _finite(text: object) -> Decimal:
    amount = _amount(text)
    if not amount.is_finite():
        raise ValueError("not finite")
    return amount


def _whole(text: object) -> int:
    if not isinstance(text, str) or not _WHOLE.fullmatch(text):
        raise ValueError("not a whole number")
    return int(text)


def _float(text: object) -> float:
    return float(_finite(text))


def _signed(text: object) -> float:
    return -_float(text[1:]) if isinstance(text, str) and text.startswith("-") else _float(text)


Amount = Annotated[Decimal, PlainValidator(_amount)]
Finite = Annotated[Decimal, PlainValidator(_finite)]
Whole = Annotated[int, PlainValidator(_whole)]
Number = Annotated[float, PlainValidator(_float)]
SignedNumber = Annotated[float, PlainValidator(_signed)]
Name = Annotated[str, StringConstraints(strict=True, pattern=NAME_PATTERN)]
Hash = Annotated[str, StringConstraints(strict=True, pattern=r"^[0-9a-f]{64}$")]
Signature = Annotated[str, StringConstraints(strict=True, pattern=r"^[0-9a-f]{128}$")]
Moment = Annotated[str, StringConstraints(strict=True, pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
_NAME = NAME_PATTERN.removeprefix("^").removesuffix("$")
# Names, a space between them: rules, roles. Of a policy's text, as long as it is, a few thousand.
Names = Annotated[str, StringConstraints(strict=True, pattern=rf"^({_NAME}( {_NAME})*)?$")]
Subject = Annotated[str, StringConstraints(strict=True, pattern=rf"^(Dataset|App)::{_NAME}$")]
Stage = Literal["train", "evaluate"]


class Body(BaseModel):
    """An entry's body."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Opened(Body):
    """The first entry: what the ledger is for, whose it is, and whose key signs it."""

    format: StrictStr
    purpose: Literal["simulation", "deployment"]
    owner: StrictStr
    public_key: Hash


class AccountOpened(Body):
    """An account, with its limit and its filter."""

    account: Name
    unit: Literal["record", "group", "node"]
    relation: Literal["add-or-remove-one"]
    epsilon: Finite
    delta: Finite
    filter: Literal["additive", "renyi"]
    allows_none: Literal["yes", "no"]
    alpha: Whole | None = None


class Raised(Body):
    """A larger epsilon. `since`: the one before (`from` in the entry)."""

    account: Name
    epsilon: Finite
    since: Finite
    because: StrictStr


class Closed(Body):
    """The end of an account."""

    account: Name
    because: StrictStr


class DatasetAdded(Body):
    """A data set, declared."""

    dataset: Name
    task: Name
    path: StrictStr
    declared_size: Whole
    account: Name


class DatasetRemoved(Body):
    """A data set, taken from the offer."""

    dataset: Name


class Event(Body):
    """One kind of noisy step, and how many of it."""

    kind: Literal["sampled-gaussian"]
    noise_multiplier: StrictStr
    sampling_rate: StrictStr
    count: StrictStr


class Charged(Body):
    """A submission, charged in full."""

    run: Name
    submission: Hash
    plan: StrictStr
    dataset: Name
    declared_size: Whole
    account: Name
    unit: Literal["record", "group", "node", "none"]
    epsilon: Amount
    delta: Finite
    divergence: Amount
    expires: Moment
    events: tuple[Event, ...]
    relation: Literal["add-or-remove-one"] | None = None
    accountant: StrictStr | None = None


class Recovered(Body):
    """A witnessed head whose charges were taken over."""

    head_sequence: Whole
    head_hash: Hash


class Lost(Body):
    """A number that a restored ledger uses up, because the entry that bore it is lost."""

    entry: Whole


class Released(Body):
    """A charge given back: it never began."""

    run: Name
    why: StrictStr


class Begun(Body):
    """A request whose records are about to be touched."""

    run: Name
    stage: Stage
    round: Whole
    attempt: Whole
    request: StrictStr


class Answered(Body):
    """An answer, and what the trainer says that it did; a trainer may say more than is compared.

    `count_noise_stddev`, `within`, `next_clip_norm`: of a server that moves its clip norm, as `within`, the noised
    share of the updates that were below it, says.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    run: Name
    stage: Stage
    round: Whole
    attempt: Whole
    answer: StrictStr
    noise_multiplier: Number | None = None
    clip_norm: Number | None = None
    sampling_rate: Number | None = None
    steps: Whole | None = None
    count_noise_stddev: Number | None = None
    within: SignedNumber | None = None
    next_clip_norm: Number | None = None
    task: StrictStr | None = None
    task_version: StrictStr | None = None
    code: StrictStr | None = None
    versions: StrictStr | None = None


class Witnessed(Body):
    """The server's signature of a head of this ledger."""

    sequence: Whole
    hash: Hash
    server_key: Hash
    server_signature: Signature


class OperatorChecked(Body):
    """Who signed the submission that is charged, or the app that is run, in the next entry."""

    run: Name
    submission: Hash
    operator: Name
    key_fingerprint: Hash
    signature: Annotated[str, StringConstraints(strict=True, pattern=r"^([0-9a-f]{2}){8,72}$")]
    certificates: Annotated[str, StringConstraints(strict=True, max_length=CERTIFICATES_BYTES)]
    trust: Literal["pinned", "coordinator"]
    checked: Moment


class PolicyEntered(Body):
    """The text of a policy that decides from here on."""

    hash: Hash
    text: StrictStr


class Decided(Body):
    """What the policy said of a request. `facts`: on what; of an admitted run's rounds, what changed since.

    `approvals` (roles) and `plan`: of a pending one. `error`: why nothing could be decided.
    """

    run: Name
    submission: Hash
    operator: Name
    action: Literal["admit", "train", "evaluate", "releaseUpdate", "releaseMetric", "runApp"]
    resource: Subject
    verdict: Literal["permitted", "denied", "pending"]
    rules: Names
    policy: Hash
    facts: StrictStr
    error: Annotated[str, StringConstraints(strict=True, max_length=4000)] | None = None
    approvals: Names | None = None
    plan: StrictStr | None = None

    @model_validator(mode="after")
    def _check(self) -> "Decided":
        if {self.approvals is not None, self.plan is not None} != {self.verdict == "pending"}:
            raise ValueError("a pending decision, and no other, has approvals and a plan")
        if self.error is not None and self.verdict != "denied":
            raise ValueError("what could not be decided is denied")
        return self


class Approved(Body):
    """What a person said of a submission."""

    run: Name
    submission: Hash
    role: Name
    verdict: Literal["approved", "refused"]
    because: StrictStr


class AppRan(Body):
    """A Flower app that was run and makes no claim."""

    run: Name
    submission: Hash
    plan: StrictStr
    app: Name


class Refused(Body):
    """A submission or request that was refused. `app`: in place of a data set."""

    run: Name
    submission: Hash
    dataset: Name | None = None
    app: Name | None = None
    operator: Name
    code: StrictStr
    why: StrictStr


class RecoveredCharge(Charged):
    """A charge that only the witness remembered."""


KINDS: dict[str, type[Body]] = {
    "opened": Opened,
    "account": AccountOpened,
    "raise": Raised,
    "close": Closed,
    "dataset": DatasetAdded,
    "dataset-removed": DatasetRemoved,
    "operator": OperatorChecked,
    "policy": PolicyEntered,
    "decision": Decided,
    "approval": Approved,
    "app": AppRan,
    "charge": Charged,
    "recovered-charge": RecoveredCharge,
    "recovered": Recovered,
    "lost": Lost,
    "release": Released,
    "begin": Begun,
    "answer": Answered,
    "witnessed": Witnessed,
    "refused": Refused,
}


class MalformedBodyError(ValueError):
    """A body that does not say what its kind must say; the text says why."""


# Where every leaf is a text and no key lies beyond U+FFFF, this is RFC 8785, ten times as fast as the library (a test
# compares them). Other keys are no keys of ours: such a body is malformed, however it is sorted.
canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def read_body(kind: str, text: str) -> Body:
    """The body of an entry of a known kind; raise MalformedBodyError with a short reason."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        raise MalformedBodyError("its body is not JSON") from None
    if not isinstance(told, dict) or not _has_only_texts(told):
        raise MalformedBodyError("its body is not an object of texts")
    if canonical(told) != text:  # a second spelling would be a second meaning
        raise MalformedBodyError("its body is not canonical (RFC 8785)")
    if "from" in told and kind == "raise":
        told["since"] = told.pop("from")
    try:
        return KINDS[kind].model_validate(told)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise MalformedBodyError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _has_only_texts(told: dict[str, Any]) -> bool:
    for value in told.values():
        if isinstance(value, str):
            continue
        if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
            return False
        if not all(isinstance(leaf, str) for row in value for leaf in row.values()):
            return False
    return True
