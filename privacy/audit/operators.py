"""Who asked for each run, checked again: the signature over the very submission that was charged, key, name and time.

A deployment's charge, and an app's run, follow right after the entry of the operator who signed for it. Whether the
certificate leads to the federation's root needs the root, which is not in a ledger: an auditor is handed it.
"""

from dataclasses import dataclass
from datetime import datetime

from ..channel.identities import Certificate, Role, verified
from ..envelope import time_of
from ..errors import ChannelError, UsageError
from ..plan_app import AnySubmission, AppSubmission
from ..signed import certificate_in, problem_of_signer
from .bodies import AppRan, Charged, OperatorChecked, RecoveredCharge
from .history import App, History, Signed
from .violations import Findings


@dataclass(frozen=True, slots=True)
class _Waiting:
    """An operator's entry, whose charge comes next. `certificate`: None where it cannot be read."""

    entry: int
    body: OperatorChecked
    certificate: Certificate | None


class OperatorAuditor:
    """Checks operators and what they asked for, and adds them to the history. `root`: the federation's, PEM."""

    def __init__(self, root: bytes | None, history: History, findings: Findings) -> None:
        self._root, self._history, self._findings = root, history, findings
        self._waiting: _Waiting | None = None
        self._keys: dict[str, tuple[str, int]] = {}  # operator -> key, and the entry that showed it last

    def operator(self, entry: int, time: str, body: OperatorChecked) -> None:
        """Who signed what is charged next."""
        self._finish_waiting()
        certificate = self._certificate(entry, time, body)
        self._waiting = _Waiting(entry, body, certificate)
        key, seen = self._keys.setdefault(body.operator, (body.key_fingerprint, entry))
        if key != body.key_fingerprint:
            self._findings.note(
                f"operator {body.operator} signs with another key in entry {entry} than in entry {seen}"
            )
            self._keys[body.operator] = (body.key_fingerprint, entry)

    def charge(self, entry: int, body: Charged, submission: AnySubmission | None) -> Signed | None:
        """A charge: somebody signed for it, unless this is a simulation, or was signed for in a ledger that is lost."""
        if isinstance(body, RecoveredCharge):
            return None
        signed = self._signed(entry, body.run, body.submission, submission)
        run = self._history.runs.get(body.run)
        if run is not None and run.entry == entry:
            run.signed = signed
        return signed

    def app(self, entry: int, time: str, body: AppRan) -> tuple[AppSubmission | None, Signed | None]:
        """A Flower app's run, and who asked for it: what it read is not accounted for."""
        submission = self._app_submission(entry, body)
        signed = self._signed(entry, body.run, body.submission, submission)
        operator = submission.body.operator if submission else "unreadable"
        first = self._history.apps.get(body.run)
        if first is not None or body.run in self._history.runs:
            self._findings.add(entry, "charged-twice", f"run {body.run} was admitted before")
        else:
            self._history.apps[body.run] = App(entry, time, body.run, body.app, operator, signed)
        return submission, signed

    def finish(self) -> None:
        """After the last entry."""
        self._finish_waiting()

    def _finish_waiting(self) -> None:
        if self._waiting is not None:
            why = f"run {self._waiting.body.run} was signed for, and nothing was charged"
            self._findings.add(self._waiting.entry, "operator", why)
            self._waiting = None

    def _signed(self, entry: int, run: str, digest: str, submission: AnySubmission | None) -> Signed | None:
        """The operator's entry that stands right before this one and names the same submission."""
        waiting = self._waiting
        is_for_this = waiting is not None and (waiting.entry, waiting.body.run, waiting.body.submission) == (
            entry - 1,
            run,
            digest,
        )
        if waiting is None or not is_for_this:
            opening = self._history.opening
            if opening is None or opening.purpose == "deployment":
                self._findings.add(entry, "unsigned", f"run {run}: no operator who signed for it stands before it")
            return None
        self._waiting = None
        if submission is not None:
            self._check_signature(waiting, submission)
        told = waiting.body
        return Signed(waiting.entry, told.operator, told.key_fingerprint, told.trust, _age_hours(waiting))

    def _check_signature(self, waiting: _Waiting, submission: AnySubmission) -> None:
        body, certificate = waiting.body, waiting.certificate
        if certificate is None:
            return  # a violation of its own
        problem = problem_of_signer(certificate, submission, bytes.fromhex(body.signature))
        if problem is not None:
            self._findings.add(waiting.entry, "operator", f"run {body.run}: {problem}")

    def _certificate(self, entry: int, time: str, body: OperatorChecked) -> Certificate | None:
        """The certificate in the entry, checked against what the entry says beside it."""
        try:
            certificate = certificate_in(body.certificates.encode())
        except ChannelError as error:
            self._findings.add(entry, "operator", f"run {body.run}: {error.message}")
            return None
        for name, told, certified in (
            ("name", body.operator, certificate.identity.name),
            ("key", body.key_fingerprint, certificate.key_fingerprint),
        ):
            if told != certified:
                self._findings.add(
                    entry, "operator", f"run {body.run}: {name} {told}, its certificate says {certified}"
                )
        self._check_times(entry, time, body, certificate)
        return certificate

    def _check_times(self, entry: int, time: str, body: OperatorChecked, certificate: Certificate) -> None:
        """Valid when it was checked, and when it was entered: both, since either alone could be made up."""
        try:
            moments = (datetime.fromisoformat(time), time_of(body.checked))
        except ValueError:
            self._findings.add(entry, "operator", f"run {body.run}: checked at {body.checked}, which is no time")
            return
        for moment in moments:
            if moment.tzinfo is None or not certificate.not_before <= moment <= certificate.not_after:
                why = f"valid from {certificate.not_before} to {certificate.not_after}, used at {moment}"
                self._findings.add(entry, "operator", f"run {body.run}: its certificate was {why}")
                return
        self._check_chain(entry, body, moments[1])

    def _check_chain(self, entry: int, body: OperatorChecked, at: datetime) -> None:
        if self._root is None:
            return  # the audit says so beside each operator
        try:
            verified(body.certificates.encode(), self._root, at, Role.OPERATOR)
        except ChannelError as error:
            self._findings.add(entry, "operator", f"run {body.run}: {error.message}")

    def _app_submission(self, entry: int, body: AppRan) -> AppSubmission | None:
        try:
            submission = AppSubmission.from_bytes(body.plan.encode())
        except UsageError as error:
            self._findings.add(entry, "submission", error.message)
            return None
        for name, told, planned in (
            ("submission", body.submission, submission.hash),
            ("run", body.run, submission.run_id),
            ("app", body.app, submission.plan.app.name),
        ):
            if told != planned:
                self._findings.add(entry, "submission", f"{name} {told}, its plan says {planned}")
        return submission


def _age_hours(waiting: _Waiting) -> int | None:
    """How long the certificate had been valid when it was checked."""
    if waiting.certificate is None:
        return None
    try:
        age = time_of(waiting.body.checked) - waiting.certificate.not_before
    except ValueError:
        return None
    return max(0, int(age.total_seconds() // 3600))
