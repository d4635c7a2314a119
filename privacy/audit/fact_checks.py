"""Facts, compared with the rest of the ledger: what a decision was made on is what the auditor knows at that entry.

Each check gives what differs, in words. Cohorts cannot be compared: who took part elsewhere is in no ledger.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from ..plan_app import AnySubmission, AppSubmission
from ..policy.terms import MILLIONTH, TRILLIONTH, app_terms_of, rounded_up, terms_of
from .bodies import Decided
from .facts import Facts, record_in
from .history import Account, Dataset, Signed

_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_INFINITE = Decimal("Infinity")
# A Renyi account's epsilon comes from logarithms: another machine's may have another last digit. In millionths.
_LAST_DIGITS = 2
_SAME_AGE = 1  # hours: an entry's time has no fractions of a second
# What any zone on earth is ahead of UTC, and in which steps.
_LEAST_OFFSET, _LARGEST_OFFSET, _STEP = timedelta(hours=-12), timedelta(hours=14), timedelta(minutes=15)
# From a request to the entry of its decision: a training process may take five minutes to start, and the ledger one.
_LONGEST_REQUEST = timedelta(minutes=10)
_MINUTE = timedelta(minutes=1)  # what is told has no seconds, and a clock may be set back a little


@dataclass(slots=True)
class Shares:
    """What the runs of an operator, or of a project, have cost an account: the sum of their own epsilons."""

    _sums: defaultdict[tuple[str, str, str], Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    _infinite: set[tuple[str, str, str]] = field(default_factory=set)

    def add(self, account: str, kind: str, name: str, epsilon: Decimal) -> None:
        """A run, or with a negative epsilon one that was given back. What is infinite once stays so."""
        if epsilon.is_finite():
            self._sums[account, kind, name] += epsilon
        else:
            self._infinite.add((account, kind, name))

    def of(self, account: str, kind: str, name: str) -> Decimal:
        """The sum."""
        key = (account, kind, name)
        return _INFINITE if key in self._infinite else self._sums.get(key, Decimal(0))


@dataclass(frozen=True, slots=True)
class ChargedRun:
    """A run that was charged, or an app's that was entered, as the auditor knows it. `terms`: of its plan.

    `digest`: of its submission, as the entry names it.
    `extra_delta`: of a plan without a claim, which the policy was told at its admission, and no account adds up.
    """

    run: str
    digest: str
    submission: AnySubmission | None
    terms: Mapping[str, Any]
    subject: str
    account: str
    epsilon: Decimal
    signed: Signed | None
    extra_delta: Decimal = Decimal(0)

    @property
    def operator(self) -> str:
        """The operator whom its plan names, also where the entry of who signed is lost; empty where it is no plan."""
        return self.submission.body.operator if self.submission is not None else ""

    @property
    def project(self) -> str:
        """The project; empty for none."""
        task = None if isinstance(self.submission, AppSubmission) else self.submission
        return (task.plan.run.project or "") if task is not None else ""


def terms_told(submission: AnySubmission | None) -> Mapping[str, Any]:
    """What a policy is shown of a submission: of a task's run as `plan`, of an app's as parts of the context."""
    if submission is None:
        return {}
    return app_terms_of(submission) if isinstance(submission, AppSubmission) else {"plan": terms_of(submission)}


def wrong_time(facts: Facts, entered: str) -> Iterator[str]:
    """The time of the entry in some zone, up to a request's length before it, and the weekday of its date."""
    time = record_in(facts, "time")
    told = time.get("date")
    try:
        assert isinstance(told, int), "what is compared with a date"
        moment, entry = date(told // 10000, told // 100 % 100, told % 100), datetime.fromisoformat(entered)
    except (ValueError, AssertionError, OverflowError):
        yield f"date {told!r} is none"
        return
    if time.get("weekday") != _WEEKDAYS[moment.weekday()]:
        yield f"weekday {time.get('weekday')!r} of {moment}"
    hour, minute = time.get("hour"), time.get("minute")
    if not (isinstance(hour, int) and 0 <= hour <= 23 and isinstance(minute, int) and 0 <= minute <= 59):
        yield f"hour {hour!r}, minute {minute!r}"
    elif not _is_of_some_zone(datetime(moment.year, moment.month, moment.day, hour, minute), entry):
        yield f"{moment} {hour:02}:{minute:02}, which it was in no zone when entered at {entered}"


def _is_of_some_zone(local: datetime, entry: datetime) -> bool:
    """Whether there is an offset with which the local time is that of the entry, or shortly before."""
    ahead = local - entry.replace(tzinfo=None)
    latest = _LONGEST_REQUEST + _MINUTE
    offset = max(_LEAST_OFFSET, -(-(ahead - _MINUTE) // _STEP) * _STEP)
    return offset <= _LARGEST_OFFSET and offset - ahead <= latest


def wrong_dataset(facts: Facts, body: Decided, dataset: Dataset | None, account: Account | None) -> Iterator[str]:
    """As the institution declared it, and the account's limits as they stood."""
    if dataset is None or account is None:
        yield f"{body.resource} was not offered"
        return
    expected = {"account": account.name, "declaredSize": dataset.declared_size, "within": [f"Task::{dataset.task}"]}
    yield from _other(expected, facts["resource"])
    limits = {
        "name": account.name,
        "unit": account.unit,
        "epsilonLimit": rounded_up(account.epsilon),
        "deltaLimit": rounded_up(account.delta, TRILLIONTH),
    }
    yield from _other(limits, record_in(facts, "account"))


def wrong_terms(facts: Facts, terms: Mapping[str, Any]) -> Iterator[str]:
    """The plan's terms, computed anew from what was signed."""
    for name, expected in terms.items():
        told = facts["context"].get(name)
        if told == expected:
            continue
        if isinstance(expected, Mapping) and isinstance(told, Mapping):
            yield from _other(expected, told, f"{name}.")
            yield from (f"{name}.{key}: no plan has it" for key in sorted(set(told) - set(expected)))
        else:
            yield f"{name} {told!r}, its plan says {expected!r}"


def wrong_operator(facts: Facts, body: Decided, run: ChargedRun, *, is_admission: bool) -> Iterator[str]:
    """Who signed, with which key, and how old the certificate was, as the operator's entry says."""
    signed = run.signed
    if signed is None:
        if run.submission is not None and body.operator != run.submission.body.operator:
            yield f"operator {body.operator}, the submission is {run.submission.body.operator}'s"
        return
    if body.operator != signed.operator:
        yield f"operator {body.operator}, entry {signed.entry} names {signed.operator}"
    yield from _other({"key": signed.key_fingerprint}, facts["principal"])
    if is_admission and facts["principal"].get("isPinned") and signed.trust != "pinned":
        yield f"the operator's key counts as pinned, entry {signed.entry} says that the coordinator was trusted"
    told, expected = record_in(facts, "transport").get("certificateAgeHours"), signed.certificate_age_hours
    if expected is not None and not (isinstance(told, int) and abs(told - expected) <= _SAME_AGE):
        yield f"a certificate of {told!r} hours, entry {signed.entry} shows one of {expected}"


def wrong_account(
    facts: Facts, body: Decided, run: ChargedRun, account: Account, shares: Shares, *, is_admission: bool
) -> Iterator[str]:
    """What the account had spent with this run in it, as the auditor adds it up."""
    extra_delta = run.extra_delta if is_admission else Decimal(0)
    own = Decimal(0) if run.operator == body.operator else run.epsilon
    told = record_in(facts, "account")
    expected = {
        "epsilonAfter": (account.epsilon_spent, MILLIONTH),
        "deltaAfter": (account.spent_delta + extra_delta, TRILLIONTH),
        "epsilonOfOperator": (shares.of(account.name, "operator", body.operator) + own, MILLIONTH),
        "epsilonOfProject": (shares.of(account.name, "project", run.project), MILLIONTH),
    }
    for name, (value, unit) in expected.items():
        amount, said = rounded_up(value, unit), told.get(name)
        slack = _LAST_DIGITS if account.alpha is not None and name == "epsilonAfter" else 0
        if not (isinstance(said, int) and abs(said - amount) <= slack):
            yield f"account.{name} {said!r}, the ledger adds up to {amount}"


def _other(expected: Mapping[str, Any], told: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in expected.items():
        if told.get(name) != value:
            yield f"{prefix}{name} {told.get(name)!r}, the ledger says {value!r}"
