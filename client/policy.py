"""The institution's policy, as its node asks it: what is known of a request, the decision, and what is entered of it.

The rules (DESIGN, section 11):
1. A plan is shown to the policy as it was signed; what an account has, as the ledger says; the operator, by the key
   that signed. Nothing is the server's word but the cohort, and of that only what this node has checked counts.
2. Only keys that the institution pinned are `isPinned`. Without pins it is the coordinator who names the operators.
3. What is known is entered as it was known. A later decision on the same run enters what has changed since.
4. What the institution lets be told of a denial is its own choice: `disclose` in node.toml.
"""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from ..privacy.budget.admission import Charge
from ..privacy.budget.book import Account, Book, RunCharge
from ..privacy.budget.decisions import Body, Case, Cohort, Decided, DeniedError, changed, facts_text
from ..privacy.channel import words
from ..privacy.errors import Refusal
from ..privacy.plan_app import AppSubmission
from ..privacy.policy.moments import moment_of, zone_of
from ..privacy.policy.policy_file import PolicyFile
from ..privacy.policy.rules import Decision, Entity, Question, Rules, Verdict
from ..privacy.policy.terms import TRILLIONTH, app_terms_of, rounded_up, terms_of
from ..privacy.submission import Submission
from .settings import NodeSettings

TLS = 13  # the channel speaks no other (privacy/channel/credentials.py)
_NO_AGE = 2**53  # hours; of a certificate that nobody showed


class NodePolicy:
    """Asks the policy in a file. `settings`: as they are now, read at each decision, so that a change holds at once."""

    def __init__(self, file: PolicyFile, settings: Callable[[], NodeSettings]) -> None:
        self._file = file
        self._settings = settings
        self._terms: tuple[str, Mapping[str, Any]] = ("", {})  # of the submission that was asked about last

    def __call__(self, case: Case) -> Decided:
        """The permission; raise DeniedError where there is none. See decisions.Decide."""
        rules = self._file.rules()
        question = question_of(case, self._settings(), self._terms_of)
        decision = rules.decide(question)
        decided = Decided(_body(case, question, decision), _policy_body(rules, case.book))
        refused = _refused_role(case)
        if decision.verdict is Verdict.PENDING and refused:
            raise self._denial(
                Refusal.APPROVAL_REFUSED, decision, decided, f"{refused} has refused", "ask the institution"
            )
        if decision.verdict is Verdict.PENDING:
            raise self._denial(Refusal.APPROVAL_PENDING, decision, decided, decision.why, "privet node pending")
        if not decision.is_permitted:
            problem = "" if rules.rules else self._file.problem  # it names a path: for the institution alone
            raise self._denial(
                Refusal.POLICY_DENIED, decision, decided, decision.why, "privet policy explain PLAN", problem
            )
        return decided

    def _terms_of(self, submission: Submission) -> Mapping[str, Any]:
        """They are the same in every round of a run. From several threads: replaced, never changed."""
        known, terms = self._terms
        if known != submission.hash:
            terms = terms_of(submission)
            self._terms = submission.hash, terms
        return terms

    def _denial(
        self, code: Refusal, decision: Decision, decided: Decided, why: str, remedy: str, problem: str = ""
    ) -> DeniedError:
        disclosed = {
            "none": "",
            "rule": ", ".join(decision.rules),
            "full": why,
        }[self._settings().policy.disclose]
        told = f"{decided.body['action']}: {problem or why}"
        return DeniedError(code, told, remedy, decided, disclosed[: words.LONGEST_DISCLOSED])


def hour_that_decides(rules: Rules, settings: NodeSettings, now: datetime) -> tuple[object, ...]:
    """What of the time decisions may rest on: the hour, or the minute; nothing where no rule speaks of time.

    A rule that reads a word names it, or escapes its name.
    """
    is_escaped = "\\" in rules.text
    if "time" not in rules.text and not is_escaped:
        return ()
    moment = moment_of(now, zone_of(settings.policy.time_zone))
    words = [word for word in moment if word != "minute" or "minute" in rules.text or is_escaped]
    return tuple(moment[word] for word in words)


def question_of(
    case: Case, settings: NodeSettings, terms: Callable[[Submission], Mapping[str, Any]] = terms_of
) -> Question:
    """What the policy is asked. `terms`: gives those of a submission."""
    asker = case.asker
    is_pinned = bool(asker.key_fingerprint) and settings.operators.get(asker.name) == asker.key_fingerprint
    operator = Entity(("Operator", asker.name), {"key": asker.key_fingerprint, "isPinned": is_pinned})
    context: dict[str, Any] = {
        "approvals": _approvals(case),
        "time": moment_of(case.now, zone_of(settings.policy.time_zone)),
        "transport": {"tls": TLS, "certificateAgeHours": _age(case)},
    }
    if isinstance(case.submission, AppSubmission):
        app = Entity(("App", case.submission.plan.app.name))
        return Question(operator, case.action, app, context | app_terms_of(case.submission))
    if case.dataset is None or case.account is None:
        raise ValueError("a task's run has a data set")
    task = ("Task", case.dataset.task)
    dataset = Entity(
        ("Dataset", case.dataset.name),
        {"account": case.account.name, "declaredSize": case.dataset.declared_size},
        (task,),
    )
    context |= {"plan": terms(case.submission), "account": _account(case, case.account)}
    if case.action != "admit":
        context |= {"cohort": _cohort(case.cohort), "round": case.round, "attempt": case.attempt}
    return Question(operator, case.action, dataset, context, (Entity(task),))


def _account(case: Case, account: Account) -> dict[str, Any]:
    """The account with this run in it, whether it was charged already or not."""
    assert not isinstance(case.submission, AppSubmission), "an app's run is charged to no account"
    charge = case.charge or Charge(Decimal(0), Decimal(0), Decimal(0), ())  # it was charged before
    project, run = case.submission.plan.run.project or "", case.submission.run_id

    def of_runs(is_meant: Callable[[RunCharge], bool]) -> int:
        """The epsilons of some runs on this account, added up: under any filter an upper bound of what they cost."""
        found = [
            one.epsilon
            for one in case.book.runs.values()
            if one.account == account.name and not one.is_released and (one.run == run or is_meant(one))
        ]
        return rounded_up(sum(found, charge.epsilon))

    return {
        "name": account.name,
        "unit": account.unit,
        "epsilonLimit": rounded_up(account.epsilon),
        "epsilonAfter": rounded_up(account.epsilon_after(charge.epsilon, charge.divergence)),
        "deltaLimit": rounded_up(account.delta, TRILLIONTH),
        "deltaAfter": rounded_up(account.spent_delta + charge.delta, TRILLIONTH),
        "epsilonOfOperator": of_runs(lambda one: one.operator == case.asker.name),
        "epsilonOfProject": of_runs(lambda one: one.project == project),
    }


def _cohort(cohort: Cohort) -> dict[str, Any]:
    return {"told": cohort.told, "parties": cohort.parties, "arePinned": cohort.are_pinned}


def _approvals(case: Case) -> list[str]:
    said = case.book.approvals.get(case.submission.hash, {})
    return sorted(role for role, verdict in said.items() if verdict == "approved")


def _refused_role(case: Case) -> str:
    said = case.book.approvals.get(case.submission.hash, {})
    return next((role for role, verdict in sorted(said.items()) if verdict == "refused"), "")


def _age(case: Case) -> int:
    """Hours since the operator's certificate began, when the run was admitted: later rounds bring none."""
    if case.asker.certified is not None:
        return max(0, int((case.now - case.asker.certified).total_seconds() // 3600))
    admitted = case.book.facts.get(case.submission.run_id)
    if admitted is None:
        return _NO_AGE
    age: int = json.loads(admitted)["context"]["transport"]["certificateAgeHours"]
    return age


def _facts(question: Question) -> dict[str, Any]:
    return {
        "principal": dict(question.principal.attributes),
        "resource": dict(question.resource.attributes)
        | {"within": [f"{kind}::{name}" for kind, name in question.resource.within]},
        "context": dict(question.context),
    }


def _body(case: Case, question: Question, decision: Decision) -> Body:
    facts, admitted = _facts(question), case.book.facts.get(case.submission.run_id)
    is_first = case.action in ("admit", "runApp") or admitted is None
    body = {
        "run": case.submission.run_id,
        "submission": case.submission.hash,
        "operator": case.asker.name,
        "action": case.action,
        "resource": "::".join(question.resource.uid),
        "verdict": decision.verdict.value,
        "rules": " ".join(decision.rules),
        "policy": decision.policy,
        "facts": facts_text(facts if is_first else changed(facts, json.loads(admitted or "{}"))),
    }
    if decision.error:
        body["error"] = decision.error
    if decision.verdict is Verdict.PENDING:
        body |= {"approvals": " ".join(decision.approvals), "plan": case.submission.canonical.decode()}
    return body


def _policy_body(rules: Rules, book: Book) -> Mapping[str, str] | None:
    """The rules' text, where the ledger has it not yet."""
    return None if rules.hash in book.policies else {"hash": rules.hash, "text": rules.text}
