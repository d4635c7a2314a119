"""`privet node pending`, `approve` and `reject`: what waits for a person, and what the person says, with a reason.

A plan is shown as it was signed, from the ledger's entry. What is said holds for that submission alone: who types it
sees its plan before, and its hash afterwards.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ..privacy.budget.accounting import shown
from ..privacy.budget.accounts import AccountBook
from ..privacy.budget.approvals import Outcome, asked_about, say, short
from ..privacy.budget.asked import Asked, Pending, Said
from ..privacy.budget.events import RELATION
from ..privacy.budget.ledger import system_clock
from ..privacy.budget.options import AsJson, PassphraseFile
from ..privacy.budget.statement_text import terms
from ..privacy.envelope import time_text
from ..privacy.home import Home, closed_after, passphrase_from
from ..privacy.plan_app import AnySubmission, AppSubmission, submission_of

RunId = Annotated[str, typer.Argument(help="The run's id.", metavar="RUN")]
Role = Annotated[str, typer.Option("--as", help="The role that you speak for, as the policy names it.", metavar="ROLE")]
Because = Annotated[str, typer.Option(help="The reason, for the record.", metavar="TEXT")]
Named = Annotated[
    str, typer.Option("--submission", help="How the submission's hash begins, as `pending` shows it.", metavar="HASH")
]


def pending(passphrase_file: PassphraseFile = None, as_json: AsJson = False) -> None:
    """List what waits for a person's approval: the plan as it was signed, who must approve it, and by which rules."""
    home = Home.of(os.environ)
    if not home.has_ledger():
        print("[]" if as_json else "nothing waits for an approval")
        return
    now = time_text(system_clock())
    with closed_after(home.open_book(passphrase_from(passphrase_file, os.environ))) as accounts:
        asked = accounts.book.asked
        waiting = [one for one in asked.waiting.values() if not one.is_expired_at(now)]
    if as_json:
        print(json.dumps([_told(asked, one) for one in waiting]))
    else:
        print("\n".join(line for one in waiting for line in _lines(asked, one)) or "nothing waits for an approval")


def approve(
    run_id: RunId,
    role: Role,
    because: Because,
    submission: Named = "",
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Approve a run that waits, as one of the roles that its policy asks for.

    Where several submissions of the run id are known, name one; at a terminal you see its plan, and are asked. The node
    takes part once every role has approved, and its other rules permit. Your word can be taken back by
    `privet node reject` until the run is admitted; after that, `privet node withdraw` ends it.
    """
    with _opened(passphrase_file) as accounts:
        _say(accounts, run_id, role, "approved", because, submission, as_json)


def reject(
    run_id: RunId,
    role: Role,
    because: Because,
    submission: Named = "",
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Reject a run that waits: the operator is told so, and the node takes no part in it.

    A later approval by the same role takes the place of the rejection; both stay in the ledger.
    """
    with _opened(passphrase_file) as accounts:
        _say(accounts, run_id, role, "refused", because, submission, as_json)


@contextmanager
def _opened(passphrase_file: Path | None) -> Iterator[AccountBook]:
    with closed_after(Home.of(os.environ).open_book(passphrase_from(passphrase_file, os.environ))) as accounts:
        yield accounts


def _say(
    accounts: AccountBook, run_id: str, role: str, said: Said, because: str, submission: str, as_json: bool
) -> None:
    if sys.stdin.isatty() and not as_json:
        submission = _confirmed(asked_about(accounts, run_id, submission), said)
    outcome = say(accounts, run_id, role, said, because, submission)
    asked = outcome.asked
    if as_json:
        told = {"run_id": run_id, "role": role, "verdict": said, "because": because}
        signed = {"submission_hash": asked.submission, "submission": json.loads(asked.plan)}
        print(json.dumps(told | {"missing": list(outcome.missing), "refused_by": list(outcome.refusers)} | signed))
        return
    if said == "approved":
        print(f"approved run {run_id} as {role}{_still(outcome)}")
    else:
        print(f"rejected run {run_id} as {role}: the node takes no part in it; the ledger holds the reason")
    for line in _plan(asked):
        print(f"  {line}")


def _confirmed(asked: Pending, said: Said) -> str:
    """The whole hash of the submission whose plan was shown, once the person has said yes to it."""
    for line in _plan(asked):
        print(line)
    typer.confirm("approve it?" if said == "approved" else "reject it?", abort=True)
    return asked.submission


def _still(outcome: Outcome) -> str:
    if outcome.refusers:
        return f"; it stays rejected by {', '.join(outcome.refusers)}"
    if outcome.missing:
        return f"; it waits for {', '.join(outcome.missing)}"
    return "; the node takes part as far as its other rules permit"


def _told(asked: Asked, one: Pending) -> dict[str, Any]:
    signed = json.loads(one.plan)
    return {
        "run_id": one.run,
        "operator": one.operator,
        "since": one.since,
        "expires": one.expires,
        "approvals": list(one.roles),
        "missing": list(asked.missing(one)),
        "rules": list(one.rules),
        "submission_hash": one.submission,
        "submission": signed,
    }


def _lines(asked: Asked, one: Pending) -> Iterator[str]:
    missing = asked.missing(one)
    yield f"run {one.run} of operator {one.operator}: waits since {one.since[:19]}Z for {', '.join(missing)}"
    yield f"  asked for by rule {', '.join(one.rules)}; valid until {one.expires}"
    for line in _plan(one):
        yield f"  {line}"
    named = f"{one.run} --submission {short(one)}"
    yield f'  next: privet node approve {named} --as {missing[0]} --because "…", or privet node reject'


def _plan(asked: Pending) -> Iterator[str]:
    """What a person says something about: the plan, and the hash of what was signed."""
    yield from plan_lines(submission_of(asked.plan.encode()))
    yield f"submission {asked.submission}"


def plan_lines(submission: AnySubmission) -> Iterator[str]:
    """A plan in a few lines; --json has all of it."""
    plan = submission.plan
    if isinstance(submission, AppSubmission):
        yield f"plan {plan.run.name}: Flower app {submission.plan.app.name}; no privacy claim"
        return
    run, claim, privacy = submission.plan.run, submission.claim, submission.plan.privacy
    yield f"plan {run.name}: task {run.task}, data set {submission.plan.dataset}, {run.rounds} rounds"
    if claim is None or privacy.delta is None:
        yield "no privacy claim"
    else:
        yield f"claimed: at most epsilon {shown(claim.epsilon)} {terms(privacy.unit, RELATION, privacy.delta)}"
