"""The node's side of `privet policy`: what its node would decide, and what it has decided."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ..privacy.budget.admission import check_charge, cost_of
from ..privacy.budget.book import Book, DeclaredDataset
from ..privacy.budget.decisions import Action, Asker, Case, Cohort
from ..privacy.budget.ledger import Entry, Ledger, system_clock
from ..privacy.budget.statement import release_expired
from ..privacy.errors import PrivetError, RefusedError, UsageError
from ..privacy.home import Home, closed_after
from ..privacy.plan_app import AppPlan, resolve_app
from ..privacy.plan_file import read_any_plan
from ..privacy.policy.check import Known
from ..privacy.policy.explain import Explained, explained
from ..privacy.policy.rules import Rules
from ..privacy.policy.sides import Asked, Logged, LogReader, Report
from ..privacy.policy.terms import rounded_up
from ..privacy.policy.units import value_of
from ..privacy.policy.vocabulary import meant
from ..privacy.submission import Submission, resolve
from .policy import question_of
from .settings import NodeSettings, pin

_TRAINING: tuple[Action, ...] = ("admit", "train", "releaseUpdate")
_EVALUATION: tuple[Action, ...] = ("evaluate", "releaseMetric")
_KINDS = frozenset(("decision", "approval", "policy"))
_RUN = "explain"  # the id of a run that there is not
NO_NAMES = "coordinator trusted to name operators"
NO_PARTIES = "coordinator trusted to name parties: no peer is pinned (privet node trust-peer)"


class NodeSide:
    """A node's policy."""

    name: Literal["node"] = "node"

    def is_at(self, home: Home) -> bool:
        """Whether something was declared, allowed or joined here that only an institution does."""
        return home.policy.exists() or home.has_ledger()

    def policy(self, home: Home) -> Path:
        """The policy's file."""
        return home.policy

    def needs_no_file(self, home: Home) -> bool:
        """A node without a policy permits nothing."""
        return False

    def known(self, home: Home, passphrase: bytes | None) -> Known:
        """What was declared and pinned here. Data sets are left out where the ledger cannot be opened."""
        settings = NodeSettings.read(home.settings)
        names = {"App": frozenset(settings.apps)}
        if settings.operators:
            names["Operator"] = frozenset(settings.operators)
        datasets = _datasets(home, passphrase)
        if datasets is not None:
            names |= {"Dataset": frozenset(datasets), "Task": frozenset(one.task for one in datasets.values())}
        return Known("node", names, settings.operators, bool(settings.peers))

    def explain(self, home: Home, passphrase: bytes | None, rules: Rules, asked: Asked) -> Report:
        """What this node would decide on the plan now; raise UsageError where its data set is not declared."""
        settings, plan = NodeSettings.read(home.settings), read_any_plan(asked.plan, asked.overrides)
        now = system_clock().replace(microsecond=0)
        asker = Asker(asked.operator, asked.key or settings.operators.get(asked.operator, ""), certified=now)
        if isinstance(plan, AppPlan):
            app = resolve_app(plan, federation=_RUN, run_id=_RUN, operator=asked.operator, now=now)
            with self._book(home, passphrase) as book:
                case = Case(app, "runApp", asker, now, book)
                return _of_app(case, explained(rules, question_of(case, settings)), settings)
        submission = resolve(plan, federation=_RUN, run_id=_RUN, operator=asked.operator, now=now)
        with self._book(home, passphrase) as book:
            dataset = _dataset(book, plan.dataset)
            account = book.accounts[dataset.account]
            case = Case(submission, "admit", asker, now, book, dataset, account, cost_of(submission, account, now))
            return _of_task(case, _decisions(rules, case, settings, asked.only), settings)

    def log(self, home: Home, passphrase: bytes | None) -> LogReader:
        """Decisions, approvals and policies, as the ledger has them."""
        accounts = home.open_book(passphrase)
        return _LedgerLog(accounts.ledger)

    def pin(self, home: Home, operator: str, key: str) -> Sequence[str]:
        """Pin an operator's key in node.toml."""
        pin(home.settings, operator, key)
        pinned = ", ".join(sorted(NodeSettings.read(home.settings).operators))
        return [f"operator {operator} pinned; listened to: {pinned}"]

    @contextlib.contextmanager
    def _book(self, home: Home, passphrase: bytes | None) -> Iterator[Book]:
        """The ledger's book, without what has expired; an empty one where nothing was declared."""
        if not home.has_ledger():
            yield Book()
            return
        with closed_after(home.open_book(passphrase)) as accounts:
            release_expired(accounts, system_clock())
            yield accounts.book


class _LedgerLog:
    """Reads on in a ledger from where it was read last."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._seen = 0

    def __call__(self) -> Iterable[Logged]:
        for entry in self._ledger.entries(self._seen):
            self._seen = entry.sequence
            if entry.kind in _KINDS:
                yield _logged(entry)


def _logged(entry: Entry) -> Logged:
    content = entry.content
    body: Mapping[str, Any] = {"sequence": entry.sequence, "time": entry.time, "kind": entry.kind, **content}
    when = f"{entry.time[:19]}Z"
    if entry.kind == "policy":
        count = content["text"].count("@id(")
        text = f"{when}  policy {content['hash'][:12]} holds from here: {count} rules"
        return Logged(entry.time, "", text, False, body)
    run, verdict = content["run"], content["verdict"]
    if entry.kind == "approval":
        text = f"{when}  run {run}  {content['role']} has {verdict} it: {content['because']}"
        return Logged(entry.time, run, text, verdict != "approved", body)
    rules = f"by {content['rules'].replace(' ', ', ')}" if content["rules"] else "by no rule"
    why = f"; error: {content['error']}" if "error" in content else ""
    what = f"{content['operator']}  {content['action']} {content['resource'].replace('::', ' ', 1)}"
    text = f"{when}  run {run}  {what}  {verdict} {rules} (policy {content['policy'][:12]}){why}"
    return Logged(entry.time, run, text, verdict != "permitted", {**body, "facts": json.loads(content["facts"])})


def _decisions(rules: Rules, case: Case, settings: NodeSettings, only: str) -> Sequence[tuple[str, Explained]]:
    """What is decided on each action of the run, one after the other, as if its smallest cohort took part."""
    assert isinstance(case.submission, Submission)
    plan = case.submission.plan
    actions = (*_TRAINING, *_EVALUATION) if plan.evaluation else _TRAINING
    if only and only not in actions:
        raise UsageError(f"--action {only}: not asked for this plan; {meant(only, actions)}", "--action admit")
    parties = plan.aggregation.min_nodes
    cohort = Cohort(parties, parties, bool(settings.peers))
    cases = [replace(case, action=action, cohort=cohort, round=1, attempt=1) for action in actions]
    own = rounded_up(case.charge.epsilon if case.charge else None)
    return [("", explained(rules, question_of(one, settings), own)) for one in cases if not only or one.action == only]


def _of_task(case: Case, decisions: Sequence[tuple[str, Explained]], settings: NodeSettings) -> Report:
    submission, dataset, account, charge = case.submission, case.dataset, case.account, case.charge
    assert isinstance(submission, Submission)
    assert dataset is not None
    assert account is not None
    assert charge is not None
    after, plan = "", submission.plan
    try:
        if dataset.task != plan.run.task:
            raise UsageError(f"data set {dataset.name} is for task {dataset.task}, not {plan.run.task}", "another task")
        check_charge(submission, dataset, account, charge)
    except (RefusedError, UsageError) as error:
        after = error.message
    assumed = f"assumed: {plan.aggregation.min_nodes} parties take part, the least that the plan asks for"
    return Report(
        f"plan {plan.run.name}: task {plan.run.task} on data set {dataset.name}, for operator {case.asker.name}",
        decisions,
        _before(case.asker, settings),
        after,
        f"{account.name} charges epsilon {charge.epsilon}; spent {account.epsilon_spent} of {account.epsilon}",
        [*_trust(case.asker, settings), assumed] + ([] if settings.peers else [NO_PARTIES]),
        _granting(case, settings) if _lacks_permit(decisions) else "",
    )


def _granting(case: Case, settings: NodeSettings) -> str:
    """The command that permits the case's plan; empty for one without a claim, which no grant bounds.

    Its epsilon: the plan's claim, which is a little more than what is charged, and what the operator's other runs cost.
    """
    assert isinstance(case.submission, Submission)
    claim, plan = case.submission.claim, case.submission.plan
    if claim is None or case.charge is None:
        return ""
    spent = question_of(case, settings).context["account"]["epsilonOfOperator"]
    spare = max(0, rounded_up(claim.epsilon) - rounded_up(case.charge.epsilon))
    epsilon = value_of(("context", "account", "epsilonOfOperator"), spent + spare)
    return _allowing(f"--task {plan.run.task} --dataset {plan.dataset} --epsilon {epsilon}", case.asker)


def _of_app(case: Case, one: Explained, settings: NodeSettings) -> Report:
    plan = case.submission.plan
    assert isinstance(plan, AppPlan)
    before = _before(case.asker, settings)
    if plan.app.name not in settings.apps:
        before = before or f"app {plan.app.name} is not allowed here; privet node allow-app"
    decisions = [("", one)]
    return Report(
        f"plan {plan.run.name}: app {plan.app.name}, for operator {case.asker.name}; it makes no claim",
        decisions,
        before,
        notes=_trust(case.asker, settings),
        remedy=_allowing(f"--app {plan.app.name}", case.asker) if _lacks_permit(decisions) else "",
    )


def _lacks_permit(decisions: Sequence[tuple[str, Explained]]) -> bool:
    """Whether something is refused because no rule permits it, and not because one forbids."""
    refused = [one.decision for _, one in decisions if not one.decision.is_permitted]
    return any(not decision.rules and not decision.error for decision in refused)


def _allowing(what: str, asker: Asker) -> str:
    return f"privet policy allow {what} --operator {asker.name} --key {asker.key_fingerprint or 'FINGERPRINT'}"


def _before(asker: Asker, settings: NodeSettings) -> str:
    """Why a node that pins operators would not listen to this one."""
    if not settings.operators or settings.operators.get(asker.name) == asker.key_fingerprint:
        return ""
    known = "is pinned with another key" if asker.name in settings.operators else "is not pinned here"
    return f"operator {asker.name} {known}"


def _trust(asker: Asker, settings: NodeSettings) -> list[str]:
    key = asker.key_fingerprint
    if settings.operators:
        return [] if _before(asker, settings) else [f"operator pinned here, with key {key[:16]}…"]
    given = f"with key {key[:16]}…" if key else "no key is given (--key)"
    return [f"{NO_NAMES}: {asker.name} is not pinned here, {given}"]


def _dataset(book: Book, name: str) -> DeclaredDataset:
    if name not in book.datasets:
        raise UsageError(
            f"data set {name} is not declared here; {meant(name, book.datasets)}", "privet dataset add, or run.dataset"
        )
    return book.datasets[name]


def _datasets(home: Home, passphrase: bytes | None) -> Mapping[str, DeclaredDataset] | None:
    if not home.has_ledger():
        return {}
    with contextlib.suppress(PrivetError), closed_after(home.open_book(passphrase)) as accounts:
        return dict(accounts.book.datasets)
    return None
