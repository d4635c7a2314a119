"""Decisions, checked: what the policy permitted stands before it, was decided so, and on facts that the ledger has.

The rules:
1. A run's charge, and an app's run, has its own permission (`admit`, `runApp`) for the same run and submission. Between
   the two stand only policies, decisions on the same run, and the operator who signed.
2. Each `begin` has its own permission (`train`, `evaluate`) for the same run, round and attempt. Between the two stand
   only policies, decisions on the same run, its operator, its charge, and a `witnessed` head.
3. Each `answer` has its own permission (`releaseUpdate`, `releaseMetric`) likewise, right before it.
4. A deployment's ledger needs all of them; a simulation's from its first policy on. A recovered charge has none: its
   permission was lost with the ledger.
5. Every decision, denials too, is made again by Cedar from the policy and the facts that the ledger holds, and must
   come out the same: verdict, rules, roles.
6. The facts are compared with what the auditor adds up itself (fact_checks.py).

The auditor's sums and its reading of entries are its own. The engine (policy/rules.py) and what a plan looks like to a
policy (policy/terms.py) are the node's: a defect there would not show here.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from ..errors import UsageError
from ..plan_app import AnySubmission, submission_of
from .asked_again import CedarFailedError, Judge
from .bodies import (
    Answered,
    AppRan,
    Approved,
    Begun,
    Body,
    Charged,
    Decided,
    OperatorChecked,
    PolicyEntered,
    RecoveredCharge,
    Released,
    Witnessed,
)
from .fact_checks import (
    ChargedRun,
    Shares,
    terms_told,
    wrong_account,
    wrong_dataset,
    wrong_operator,
    wrong_terms,
    wrong_time,
)
from .facts import Facts, MalformedFactsError, merged, read_facts, record_in
from .history import Approval, Decision, History, Policy, Signed
from .violations import Findings

_ADMISSIONS = ("admit", "runApp")
_RELEASES = {"train": "releaseUpdate", "evaluate": "releaseMetric"}
# Which permissions an entry leaves standing for what comes after it; any other entry leaves none.
_LEFT: dict[type[Body], tuple[str, ...]] = {
    OperatorChecked: ("admit", "runApp", "train", "evaluate"),
    Charged: ("train", "evaluate"),
    Witnessed: ("train", "evaluate"),
}


@dataclass(frozen=True, slots=True)
class _Permission:
    """A permitted decision that nothing has made use of yet."""

    told: Decision
    body: Decided
    facts: Facts


class DecisionAuditor:
    """Checks policies, decisions and approvals, and adds them to the history."""

    def __init__(self, history: History, findings: Findings) -> None:
        self._history, self._findings = history, findings
        self._judge = Judge()
        self._shares = Shares()
        self._runs: dict[str, ChargedRun] = {}
        self._admitted: dict[str, Facts] = {}  # by run: the facts of its first permission, whole
        self._standing: dict[str, _Permission] = {}  # by action, all of one run
        self._said: dict[str, dict[str, str]] = {}  # by submission: what each role said last
        self._asked: set[str] = set()  # submissions that were pending

    def policy(self, entry: int, time: str, body: PolicyEntered) -> None:
        """The text of a policy."""
        if body.hash in self._history.policies:
            self._findings.note(f"entry {entry}: policy {body.hash[:12]}… stands in the ledger already")
            return
        if hashlib.sha256(body.text.encode("utf-8", "surrogatepass")).hexdigest() != body.hash:
            self._findings.add(entry, "policy", f"its text does not have the hash {body.hash[:12]}…")
        self._history.policies[body.hash] = Policy(entry, time, body.hash)
        problem = self._judge.take(body.hash, body.text)
        if problem is not None:
            self._findings.add(entry, "policy", f"it does not validate: {problem}")

    def decision(self, entry: int, time: str, body: Decided) -> None:
        """What the policy said of a request."""
        try:
            since = None if body.action in _ADMISSIONS else self._admitted.get(body.run)
            facts = merged(read_facts(body.facts), since)
            self._check_again(entry, body, facts)
        except MalformedFactsError as error:
            self._findings.add(entry, "malformed", f"decision: {error}")
            return
        told = self._keep(entry, time, body, facts)
        self._check_facts(entry, time, body, facts)
        if body.verdict == "pending":
            self._asked.add(body.submission)
            self._check_pending(entry, body, facts)
        if any(kept.body.run != body.run for kept in self._standing.values()):
            self._drop(self._standing)
        if body.verdict == "permitted":
            self._standing[body.action] = _Permission(told, body, facts)
            if body.action in _ADMISSIONS:
                self._admitted.setdefault(body.run, facts)

    def approval(self, entry: int, time: str, body: Approved) -> None:
        """What a person said."""
        if body.submission not in self._asked:
            self._findings.note(f"entry {entry}: {body.role} spoke of run {body.run}, which waited for nobody")
        self._said.setdefault(body.submission, {})[body.role] = body.verdict
        self._history.approvals.append(
            Approval(entry, time, body.run, body.submission, body.role, body.verdict, body.because)
        )

    def charge(self, entry: int, body: Charged, submission: AnySubmission | None, signed: Signed | None) -> None:
        """A charge: the policy admitted it. It stands in the history already."""
        run = ChargedRun(
            body.run,
            body.submission,
            submission,
            terms_told(submission),
            f"Dataset::{body.dataset}",
            body.account,
            body.epsilon,
            signed,
            Decimal(0) if body.epsilon.is_finite() else body.delta,
        )
        if body.run not in self._runs or not isinstance(body, RecoveredCharge):
            self._shares.add(body.account, "project", run.project, body.epsilon)
            self._shares.add(body.account, "operator", run.operator, body.epsilon)
        self._runs.setdefault(body.run, run)
        if not isinstance(body, RecoveredCharge):
            self._use_admission(entry, "admit", run)

    def app(self, entry: int, body: AppRan, submission: AnySubmission | None, signed: Signed | None) -> None:
        """An app's run: the policy permitted it."""
        run = ChargedRun(
            body.run, body.submission, submission, terms_told(submission), f"App::{body.app}", "", Decimal(0), signed
        )
        self._runs.setdefault(body.run, run)
        self._use_admission(entry, "runApp", run)

    def release(self, entry: int, body: Released) -> None:
        """A charge given back, which the history has seen already."""
        run, charged = self._runs.get(body.run), self._history.runs.get(body.run)
        if run is None or charged is None or charged.released != entry or not run.epsilon.is_finite():
            return
        self._shares.add(run.account, "project", run.project, -run.epsilon)
        self._shares.add(run.account, "operator", run.operator, -run.epsilon)

    def begin(self, entry: int, body: Begun) -> None:
        """A request about to touch records: the policy permitted it."""
        self._use_attempt(entry, body, body.stage)

    def answer(self, entry: int, body: Answered) -> None:
        """What left the institution: the policy permitted it."""
        self._use_attempt(entry, body, _RELEASES[body.stage])

    def after(self, body: Body | None) -> None:
        """After each entry: what it leaves standing of the permissions before it. None: after the last."""
        if self._standing and not isinstance(body, PolicyEntered | Decided):
            left = _LEFT.get(type(body), ()) if body is not None else ()
            self._drop([action for action in self._standing if action not in left])

    def _keep(self, entry: int, time: str, body: Decided, facts: Facts) -> Decision:
        cohort = record_in(facts, "cohort")
        told = Decision(
            entry=entry,
            time=time,
            run=body.run,
            submission=body.submission,
            operator=body.operator,
            action=body.action,
            resource=body.resource,
            verdict=body.verdict,
            rules=tuple(body.rules.split()),
            roles=tuple((body.approvals or "").split()),
            policy=body.policy,
            error=body.error or "",
            is_pinned=facts["principal"].get("isPinned") is True,
            counts_pinned=cohort.get("arePinned") is True if cohort else None,
        )
        self._history.decisions.append(told)
        return told

    def _check_again(self, entry: int, body: Decided, facts: Facts) -> None:
        """The decision, made anew. Raises MalformedFactsError."""
        known = self._history.policies.get(body.policy)
        if known is None:
            self._findings.add(entry, "policy", f"policy {body.policy[:12]}… decided, and was not entered before")
            return
        known.decisions += 1
        try:
            again = self._judge.decide(body, facts)
        except CedarFailedError as error:
            self._findings.add(entry, "decision", f"run {body.run}, {body.action}: {error}")
            return
        if again is None:
            return  # the policy does not validate, which is a violation of its own
        for name, told, found in (
            ("verdict", body.verdict, again.verdict.value),
            ("rules", body.rules, " ".join(again.rules)),
            ("approvals", body.approvals or "", " ".join(again.approvals)),
        ):
            if told != found:
                why = f"{name} {told or 'none'}; asked again, the policy says {found or 'none'}"
                self._findings.add(entry, "decision", f"run {body.run}, {body.action}: {why}")
                return

    def _check_facts(self, entry: int, time: str, body: Decided, facts: Facts) -> None:
        """What can be compared at once; a run that is not charged yet is compared at its charge."""
        self._differ(entry, body, wrong_time(facts, time))
        approved = sorted(role for role, said in self._said.get(body.submission, {}).items() if said == "approved")
        if facts["context"].get("approvals") != approved:
            told = facts["context"].get("approvals")
            self._findings.add(entry, "facts", f"run {body.run}: approvals {told!r}, the ledger has {approved!r}")
        run = self._run_of(body)
        if body.resource.startswith("Dataset::"):
            dataset = self._history.datasets.get(body.resource.removeprefix("Dataset::"))
            account = run.account if run is not None else dataset.account if dataset is not None else ""
            found = self._history.accounts.get(account)
            self._differ(entry, body, wrong_dataset(facts, body, dataset, found))
        if run is not None:
            self._check_run(entry, body, facts, run)

    def _check_run(self, entry: int, body: Decided, facts: Facts, run: ChargedRun) -> None:
        """What can be compared once a run is charged. It may be called with the run's charge just made."""
        is_admission = body.action in _ADMISSIONS
        if body.resource != run.subject:
            self._findings.add(entry, "facts", f"run {body.run}: {body.resource}, its charge is of {run.subject}")
        self._differ(entry, body, wrong_terms(facts, run.terms))
        self._differ(entry, body, wrong_operator(facts, body, run, is_admission=is_admission))
        account = self._history.accounts.get(run.account)
        if account is not None:
            found = wrong_account(facts, body, run, account, self._shares, is_admission=is_admission)
            self._differ(entry, body, found)

    def _check_pending(self, entry: int, body: Decided, facts: Facts) -> None:
        """What a person was asked about is the submission with that hash, and the policy was shown its terms."""
        text = (body.plan or "").encode("utf-8", "surrogatepass")
        if hashlib.sha256(text).hexdigest() != body.submission:
            self._findings.add(entry, "facts", f"run {body.run}: the plan's text is not the submission that waits")
        try:
            submission = submission_of(text)
        except UsageError as error:
            self._findings.add(entry, "facts", f"run {body.run}: {error.message}")
            return
        self._differ(entry, body, wrong_terms(facts, terms_told(submission)))

    def _use_admission(self, entry: int, action: Literal["admit", "runApp"], run: ChargedRun) -> None:
        permission = self._standing.pop(action, None)
        is_own = permission is not None and (permission.body.run, permission.body.submission) == (run.run, run.digest)
        if permission is None or not is_own:
            if self._is_needed():
                self._findings.add(
                    entry, "undecided", f"run {run.run}: no permission ({action}) stands right before it"
                )
            return
        self._history.permissions.setdefault(run.run, permission.told)
        self._check_run(permission.told.entry, permission.body, permission.facts, run)
        for other in self._standing.values():  # what was asked of the same run before it was charged
            self._check_run(other.told.entry, other.body, other.facts, run)

    def _use_attempt(self, entry: int, body: Begun | Answered, action: str) -> None:
        run = self._history.runs.get(body.run)
        if run is None:
            return  # nothing was charged: a violation of its own
        permission = self._standing.pop(action, None)
        if permission is not None and permission.body.run == body.run:
            context = permission.facts["context"]
            if permission.body.submission == run.submission_hash and (
                (context.get("round"), context.get("attempt")) == (body.round, body.attempt)
            ):
                return
        if self._is_needed():
            told = f"run {body.run}, {body.stage} round {body.round} attempt {body.attempt}"
            self._findings.add(entry, "undecided", f"{told}: no permission ({action}) stands right before it")

    def _run_of(self, body: Decided) -> ChargedRun | None:
        """The run that a decision is about, where it was charged with the same submission."""
        run = self._runs.get(body.run)
        return run if run is not None and run.digest == body.submission else None

    def _is_needed(self) -> bool:
        opening = self._history.opening
        return opening is None or opening.purpose == "deployment" or bool(self._history.policies)

    def _differ(self, entry: int, body: Decided, found: Iterable[str]) -> None:
        for why in found:
            self._findings.add(entry, "facts", f"run {body.run}, {body.action}: {why}")

    def _drop(self, actions: Iterable[Any]) -> None:
        for action in list(actions):
            unused = self._standing.pop(action)
            told = f"{action} of run {unused.body.run} was permitted, and nothing came of it"
            self._findings.note(f"entry {unused.told.entry}: {told}")
