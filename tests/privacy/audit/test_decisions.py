"""Ledgers that lie about what the policy decided: rightly chained and signed, with one thing wrong, which is named.

Whoever forges holds the institution's key: only what the entries say can give it away.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from ledgers import ALICE, NO_CLAIM, PLAN, Institution, done, resigned, written
from privet.__main__ import run
from privet.client.settings import NodeSettings
from privet.privacy.audit.bodies import canonical
from privet.privacy.audit.claims import as_json, claims_of
from privet.privacy.audit.replay import Audit, audit_ledger
from privet.privacy.audit.report import write_report
from privet.privacy.budget.app_runs import admit_app
from privet.privacy.budget.events import SampledGaussian
from privet.privacy.budget.guard import Attempt
from privet.privacy.budget.witness import Head, Witness
from privet.privacy.plan_app import AppPlan, resolve_app

POLICY = """
@id("study") permit (principal, action in Action::"participate", resource in Task::"digits")
when { principal.isPinned && context.account.epsilonAfter <= 9000000 };
@id("apps") permit (principal, action == Action::"runApp", resource == App::"vision");
@id("least-noise") forbid (principal, action in Action::"participate", resource)
unless { context.plan.noiseMultiplier >= 2000000 };
@id("needs-steward") @approval("data-steward") forbid (principal, action == Action::"admit", resource)
unless { context.plan.noiseMultiplier >= 8000000 || context.approvals.contains("data-steward") };
@id("by-day") forbid (principal, action, resource) unless { context.time.hour >= 6 };

// end of policy
"""


@dataclass
class Row:
    """An entry that can be changed."""

    time: str
    kind: str
    body: dict[str, Any]


Rows = list[Row]
Change = Callable[[Rows], object]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Institution]:
    """Three runs and an app's: one admitted, one that waited for a person, one denied."""
    pins = NodeSettings(operators={"alice": ALICE.fingerprint})
    made = Institution(tmp_path_factory.mktemp("house"), settings=pins)
    made.write_policy(POLICY)
    made.open()
    first, second = made.submission("run-1"), made.submission("run-2", noise=4.0)
    assert made.admit(first)
    made.train(first, 1)
    assert not made.admit(second)
    said = {"run": "run-2", "submission": second.hash, "role": "data-steward"}
    made.ledger.append("approval", said | {"verdict": "approved", "because": "ethics vote 7"})
    assert made.admit(second)
    assert not made.admit(made.submission("run-3", noise=0.5))
    made.train(second, 1)
    made.train(first, 2)
    made.train(first, 3, "evaluate")
    plan = AppPlan.model_validate({"run": {"name": "a"}, "app": {"name": "vision"}, "privacy": {"unit": "none"}})
    app = resolve_app(plan, federation="f", run_id="app-1", operator="alice", now=made.clock.moment)
    admit_app(made.accounts, app, made.clock.moment, made.signer(app.canonical), made.policy)
    yield made
    made.ledger.close()


def rows_of(house: Institution) -> Rows:
    return [Row(entry.time, entry.kind, dict(entry.content)) for entry in house.ledger.entries()]


def audited(house: Institution, rows: Rows, path: Path) -> Audit:
    """The changed rows, chained and signed anew by the institution."""
    plain = [(0, row.time, row.kind, canonical(row.body), "", "", "") for row in rows]
    return audit_ledger(written(path / "forged.sqlite", resigned(plain, house.key)), public_key=house.key.public)


def place(rows: Rows, kind: str, **said: str) -> int:
    """Where the first entry of a kind stands that says so."""
    return next(
        number
        for number, row in enumerate(rows)
        if row.kind == kind and all(row.body.get(key) == value for key, value in said.items())
    )


def removed(kind: str, **said: str) -> Change:
    return lambda rows: rows.pop(place(rows, kind, **said))


def moved(kind: str, by: int, **said: str) -> Change:
    def change(rows: Rows) -> None:
        times = [row.time for row in rows]
        number = place(rows, kind, **said)
        rows.insert(number + by, rows.pop(number))
        for row, time in zip(rows, times, strict=True):
            row.time = time

    return change


def told(changed: dict[str, str], kind: str = "decision", **said: str) -> Change:
    return lambda rows: rows[place(rows, kind, **said)].body.update(changed)


def fact(part: str, path: str, value: Any, **said: str) -> Change:
    """A fact of a decision, altered; of the first admission where nothing else is said."""

    def change(rows: Rows) -> None:
        body = rows[place(rows, "decision", **(said or {"action": "admit", "run": "run-1"}))].body
        facts = json.loads(body["facts"])
        *way, last = (part, *path.split("."))
        record = facts
        for name in way:
            record = record[name]
        assert record.get(last) != value
        record[last] = value
        body["facts"] = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    return change


def policy(change_text: Callable[[str], str], *, is_hashed: bool = True) -> Change:
    """Another text of the policy; every decision names its hash."""

    def change(rows: Rows) -> None:
        body = rows[place(rows, "policy")].body
        body["text"] = change_text(body["text"])
        if is_hashed:
            body["hash"] = hashlib.sha256(body["text"].encode()).hexdigest()
            for row in rows:
                if row.kind == "decision":
                    row.body["policy"] = body["hash"]

    return change


def inserted(kind: str, before: str, **said: str) -> Change:
    """A copy of the first entry of a kind, before another."""

    def change(rows: Rows) -> None:
        number = place(rows, before, **said)
        rows.insert(number, Row(rows[number].time, kind, rows[place(rows, kind)].body))

    return change


TRAIN = {"run": "run-1", "action": "train"}
ADMIT_2 = {"run": "run-2", "action": "admit", "verdict": "permitted"}
WAITS = {"run": "run-2", "verdict": "pending"}
DENIED = {"run": "run-3"}
# What is done to the ledger -> the codes of all violations that are found.
FORGERIES: dict[str, tuple[Change, set[str]]] = {
    "nothing": (lambda rows: None, set()),
    "permission of a charge removed": (removed("decision", **ADMIT_2), {"undecided", "malformed"}),
    "permission of a request removed": (removed("decision", **TRAIN), {"undecided"}),
    "permission of a release removed": (removed("decision", run="run-1", action="releaseUpdate"), {"undecided"}),
    "permission of a metric removed": (removed("decision", action="releaseMetric"), {"undecided"}),
    "permission of an evaluation removed": (removed("decision", action="evaluate"), {"undecided"}),
    "permission of an app removed": (removed("decision", action="runApp"), {"undecided"}),
    "charge before its permission": (moved("decision", 2, **ADMIT_2), {"undecided"}),
    "request before its permission": (moved("decision", 1, **TRAIN), {"undecided"}),
    "an entry between permission and charge": (inserted("refused", "operator", run="run-2"), {"undecided"}),
    "an entry between permission and request": (inserted("refused", "begin", run="run-2"), {"undecided"}),
    "an entry between permission and release": (inserted("refused", "answer", run="run-2"), {"undecided"}),
    "permission of another run": (told({"run": "run-9"}, **TRAIN), {"undecided", "malformed"}),
    "permission of another submission": (told({"submission": "a" * 64}, **ADMIT_2), {"undecided", "facts"}),
    "permission of another round": (fact("context", "round", 2, **TRAIN), {"undecided"}),
    "permission of another attempt": (fact("context", "attempt", 2, **TRAIN), {"undecided"}),
    "denial passed off as a permission": (told({"verdict": "permitted", "rules": "study"}, **DENIED), {"decision"}),
    "permission passed off as a denial": (told({"verdict": "denied"}, **TRAIN), {"decision", "undecided"}),
    "waiting passed off as a denial": (
        lambda rows: [
            told({"verdict": "denied"}, **WAITS)(rows),
            [rows[place(rows, "decision", run="run-2")].body.pop(key) for key in ("approvals", "plan")],
        ],
        {"decision"},
    ),
    "another rule": (told({"rules": "apps"}, **TRAIN), {"decision"}),
    "a rule more": (told({"rules": "apps study"}, **TRAIN), {"decision"}),
    "another role": (told({"approvals": "director"}, **WAITS), {"decision"}),
    "a plan that is not what waits": (told({"plan": "{}"}, **WAITS), {"facts"}),
    "an action that was not asked": (told({"action": "evaluate"}, **TRAIN), {"undecided"}),
    "another operator": (told({"operator": "bob"}, **TRAIN), {"facts"}),
    "another data set": (told({"resource": "Dataset::clinic"}, **TRAIN), {"facts"}),
    "policy removed": (removed("policy"), {"policy"}),
    "policy after its first decision": (moved("policy", 1), {"policy"}),
    "policy that does not validate": (policy(lambda text: text.replace("isPinned", "isNice")), {"policy"}),
    "policy that was cut short": (policy(lambda text: text[:200]), {"policy"}),
    "policy that is nested without end": (policy(lambda text: "(" * 100_000 + text), {"policy"}),
    "policy under another's hash": (policy(lambda text: text + "\n", is_hashed=False), {"policy"}),
    "rule taken out, and hashed anew": (
        policy(lambda text: text.replace("noiseMultiplier >= 2000000", "noiseMultiplier >= 0")),
        {"decision"},
    ),
    "rule put in, and hashed anew": (
        policy(lambda text: '@id("never") forbid (principal, action == Action::"train", resource);' + text),
        {"decision"},
    ),
    "rule renamed, and hashed anew": (policy(lambda text: text.replace("least-noise", "most-noise")), {"decision"}),
    "approval made up": (removed("approval"), {"facts"}),
    "approval that was none": (told({"verdict": "refused"}, "approval"), {"facts"}),
    "approval of another submission": (told({"submission": "b" * 64}, "approval"), {"facts"}),
    "approval by another role": (told({"role": "director"}, "approval"), {"facts"}),
    "approval that nobody gave": (fact("context", "approvals", ["director"]), {"facts"}),
    "another epsilon": (fact("context", "plan.epsilon", 1), {"facts"}),
    "another option": (fact("context", "plan.options", ["model.depth=2"]), {"facts"}),
    "less noise": (fact("context", "plan.noiseMultiplier", 99_000_000, **DENIED), {"decision"}),
    "plan of what waits": (fact("context", "plan.rounds", 1, **WAITS), {"facts"}),
    "account of more epsilon": (fact("context", "account.epsilonLimit", 11_000_000), {"facts"}),
    "account of more delta": (fact("context", "account.deltaLimit", 200_000_000), {"facts"}),
    "account that had spent less": (fact("context", "account.epsilonAfter", 0), {"facts"}),
    "account that had spent less delta": (fact("context", "account.deltaAfter", 0), {"facts"}),
    "operator who had spent less": (fact("context", "account.epsilonOfOperator", 0), {"facts"}),
    "project that had spent less": (fact("context", "account.epsilonOfProject", 0), {"facts"}),
    "account of another unit": (fact("context", "account.unit", "group"), {"facts"}),
    "account of another name": (fact("resource", "account", "clinic"), {"facts"}),
    "another declared size": (fact("resource", "declaredSize", 9), {"facts"}),
    "another key": (fact("principal", "key", "c" * 64), {"facts"}),
    "key that was not pinned": (told({"trust": "coordinator"}, "operator"), {"facts"}),
    "another day": (fact("context", "time.date", 20260401), {"facts"}),
    "no day": (fact("context", "time.date", 20261399), {"facts"}),
    "another weekday": (fact("context", "time.weekday", "friday"), {"facts"}),
    "another minute": (fact("context", "time.minute", 3), {"facts"}),
    "hour that is none": (fact("context", "time.hour", 30), {"facts"}),
    "older certificate": (fact("context", "transport.certificateAgeHours", 12), {"facts"}),
    "fact of another type": (fact("context", "plan.epsilon", "3"), {"decision", "facts"}),
    "fact that no schema has": (fact("context", "plan.extra", 3), {"decision", "facts"}),
    "error that did not happen": (
        told({"error": "it broke", "verdict": "denied", "rules": ""}, **DENIED),
        {"decision"},
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgery_is_named(house: Institution, tmp_path: Path, name: str) -> None:
    change, expected = FORGERIES[name]
    rows = rows_of(house)
    change(rows)
    audit = audited(house, rows, tmp_path)
    assert set(audit.counts) == expected, audit.violations


HOSTILE = ["", "[]", "{}", "1e9", "[" * 50_000, '{"context":{},"principal":{},"resource":[]}', "\0"]
HOSTILE += ['{"context":{"a":1.5},"principal":{},"resource":{}}', '{"context":{"a":null},"principal":{},"resource":{}}']
HOSTILE += ['{"context":{},"principal":{},"resource":{"within":[1]}}', '{"context":{}, "principal":{},"resource":{}}']
HOSTILE += ['{"context":{"a":' + "9" * 5000 + '},"principal":{},"resource":{}}']
HOSTILE += ['{"context":{"a":{"b":{"c":{}}}},"principal":{},"resource":{}}']
HOSTILE += ['{"context":{},"principal":{},"resource":{"within":["App::a"]}}']


@pytest.mark.parametrize("facts", HOSTILE, ids=lambda text: text[:50])
def test_facts_that_are_none(house: Institution, tmp_path: Path, facts: str) -> None:
    rows = rows_of(house)
    rows[place(rows, "decision", **TRAIN)].body["facts"] = facts
    assert set(audited(house, rows, tmp_path).counts) == {"malformed", "undecided"}


def test_facts_that_say_nothing(house: Institution, tmp_path: Path) -> None:
    rows = rows_of(house)
    facts = '{"context":{},"principal":{},"resource":{"within":["Task::digits"]}}'
    rows[place(rows, "decision", **ADMIT_2)].body["facts"] = facts
    assert set(audited(house, rows, tmp_path).counts) == {"decision", "facts"}


@pytest.mark.parametrize(
    "changed",
    [
        {"verdict": "maybe"},
        {"action": "connect"},
        {"resource": "Node::a"},
        {"rules": "two  spaces"},
        {"policy": "none"},
        {"approvals": "data-steward"},
        {"plan": "{}"},
        {"error": "a permission without an error"},
        {"extra": "1"},
    ],
    ids=str,
)
def test_decision_that_is_malformed(house: Institution, tmp_path: Path, changed: dict[str, str]) -> None:
    rows = rows_of(house)
    rows[place(rows, "decision", **TRAIN)].body.update(changed)
    assert set(audited(house, rows, tmp_path).counts) == {"malformed", "undecided"}


def test_one_permission_for_two_requests(house: Institution, tmp_path: Path) -> None:
    rows = rows_of(house)
    number = place(rows, "begin", run="run-1")
    rows.insert(number + 1, Row(rows[number].time, "begin", rows[number].body | {"attempt": "2"}))
    assert {violation.code for violation in audited(house, rows, tmp_path).violations} == {"undecided"}


def test_permission_that_nothing_came_of_is_a_note(house: Institution, tmp_path: Path) -> None:
    rows = rows_of(house)
    number = place(rows, "decision", **TRAIN)
    rows.insert(number, rows[number])
    rows.insert(number + 1, Row(rows[number].time, "refused", rows[place(rows, "refused")].body))
    audit = audited(house, rows, tmp_path)
    assert audit.holds
    assert [note for note in audit.notes if "was permitted, and nothing came of it" in note]


def test_approval_of_what_did_not_wait_is_a_note(house: Institution, tmp_path: Path) -> None:
    rows = rows_of(house)
    number = place(rows, "approval")
    rows.append(Row(rows[-1].time, "approval", rows[number].body | {"submission": "d" * 64}))
    audit = audited(house, rows, tmp_path)
    assert audit.holds
    assert [note for note in audit.notes if "data-steward spoke of run run-2, which waited for nobody" in note]


def test_witnessed_head_may_stand_between_permission_and_request(tmp_path: Path) -> None:
    made = Institution(tmp_path, owner="hospital-a")
    made.open()
    submission = made.submission("run-1")
    assert made.admit(submission)
    entry = made.ledger.head()
    assert entry is not None
    head = Head.of("hospital-a", entry, made.key)
    countersigned = Witness(made.witness_path, "hospital-a", made.server_key).countersign(head, [])
    attempt = Attempt("train", 1, 1, "a" * 64)
    made.guard("ward").begin(submission, attempt, countersigned)
    made.guard("ward").answered(submission, attempt, "b" * 64, done(submission))
    kinds = [row.kind for row in rows_of(made)]
    assert kinds[-5:] == ["decision", "witnessed", "begin", "decision", "answer"]
    assert audit_ledger(made.path, public_key=made.key.public).violations == ()
    made.ledger.close()


def test_simulation_needs_decisions_from_its_first_policy_on(tmp_path: Path) -> None:
    made = Institution(tmp_path, purpose="simulation")
    made.open()
    assert made.admit(made.submission("run-1"))
    assert audit_ledger(made.path).violations == ()
    made.write_policy(POLICY.replace("principal.isPinned && ", ""))
    second = made.submission("run-2")
    assert made.admit(second)
    made.train(second, 1)
    assert audit_ledger(made.path).violations == ()
    made.policy = None
    assert made.admit(made.submission("run-3"))
    assert [violation.code for violation in audit_ledger(made.path).violations] == ["undecided"]
    made.ledger.close()


def test_runs_without_a_claim_of_a_project_and_on_a_renyi_account_hold(tmp_path: Path) -> None:
    """What the auditor adds up is what the guard told the policy, in every kind of account."""
    made = Institution(tmp_path)
    made.open("attic", allows_none=True)
    made.open("clinic", filter="renyi", typical=(SampledGaussian(12.0, 1.0, 8),))
    text = PLAN.replace('name = "study"', 'name = "study"\nproject = "lung"')
    runs = [made.submission(f"run-{number}", dataset="clinic", text=text) for number in range(3)]
    runs += [made.submission("run-9", dataset="attic"), made.submission("open", dataset="attic", text=NO_CLAIM)]
    for submission in runs:
        assert made.admit(submission)
    for round_ in (1, 2):
        for submission in runs:
            made.train(submission, round_)
    assert audit_ledger(made.path, public_key=made.key.public).violations == ()
    made.clock.moment += timedelta(days=40)
    assert made.admit(made.submission("never-began", dataset="clinic", text=text))
    made.clock.moment += timedelta(days=40)
    assert made.admit(made.submission("run-10", dataset="clinic", text=text))  # and gives back what expired
    assert "release" in [row.kind for row in rows_of(made)]
    assert audit_ledger(made.path, public_key=made.key.public).violations == ()
    made.ledger.close()


def test_recovered_charge_needs_no_permission(tmp_path: Path) -> None:
    """It was lost with the ledger; what was charged again has its own, and later decisions count both."""
    made = Institution(tmp_path)
    made.open()
    submission = made.submission("run-1")
    assert made.admit(submission)
    charged = next(entry.content for entry in made.ledger.entries() if entry.kind == "charge")
    made.ledger.append("recovered-charge", charged)
    assert made.admit(made.submission("run-2"))
    audit = audit_ledger(made.path, public_key=made.key.public)
    assert audit.violations == ()
    made.ledger.close()


def test_recovered_charge_counts_among_its_operators(tmp_path: Path) -> None:
    """A restored ledger has no entry of who signed for it; the plan names the operator."""
    lost, made = Institution(tmp_path / "lost"), Institution(tmp_path / "restored")
    for one in (lost, made):
        one.open()
    assert lost.admit(lost.submission("run-1"))
    charged = next(entry.content for entry in lost.ledger.entries() if entry.kind == "charge")
    made.ledger.append("recovered-charge", charged)
    assert made.admit(made.submission("run-2"))
    rows = rows_of(made)
    assert audited(made, rows, tmp_path).violations == ()
    account = json.loads(rows[place(rows, "decision")].body["facts"])["context"]["account"]
    assert account["epsilonOfOperator"] == account["epsilonOfProject"] == account["epsilonAfter"]
    fact("context", "account.epsilonOfOperator", account["epsilonAfter"] // 2, run="run-2")(rows)
    again = audited(made, rows, tmp_path / "lost")
    assert [violation.code for violation in again.violations] == ["facts"]
    lost.ledger.close()
    made.ledger.close()


# What an auditor is told.


def test_command_tells_what_was_decided(house: Institution, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["audit", "ledger", str(house.path)]) == 0
    text = capsys.readouterr().out
    for line in (
        "decisions: 11 permitted, 1 denied, 1 waiting for a person",
        "rule needs-steward: 1 waiting for a person",
        "operators in decisions: 13 with key pinned",
        "cohorts in decisions: 8 with coordinator trusted to name parties",
        "admit Dataset::ward for run run-3 of alice: forbidden by rule least-noise",
        "admit Dataset::ward for run run-2 of alice: rule needs-steward asks for the approval of data-steward",
        "run run-2, by data-steward, because: ethics vote 7",
        "run run-2: permitted by rule study, policy ",
        "; approved by data-steward: ethics vote 7",
        "run app-1: permitted by rule apps",
    ):
        assert line in text, line
    assert "decision: " not in text
    assert run(["audit", "ledger", str(house.path), "--decisions"]) == 0
    assert capsys.readouterr().out.count("\ndecision: ") == 13


def test_json_and_report_tell_what_was_decided(house: Institution, tmp_path: Path) -> None:
    audit = audit_ledger(house.path)
    made = as_json(audit, claims_of(audit))
    json.dumps(made)
    assert made["decisions_by_verdict"] == {"permitted": 11, "denied": 1, "pending": 1}
    assert [policy["decisions"] for policy in made["policies"]] == [13]
    (second,) = (found for found in made["permissions"] if found["run"] == "run-2")
    assert second["decision"]["rules"] == ("study",)
    assert [approval["because"] for approval in second["approvals"]] == ["ethics vote 7"]
    write_report(audit, claims_of(audit), tmp_path / "report.html")
    page = " ".join((tmp_path / "report.html").read_text().split())
    for words in ("What the policy decided", "forbidden by rule least-noise", "data-steward: “ethics vote 7”"):
        assert words in page


def test_report_escapes_what_a_person_said(house: Institution, tmp_path: Path) -> None:
    rows = rows_of(house)
    rows[place(rows, "approval")].body["because"] = "<script>alert(1)</script>"
    audit = audited(house, rows, tmp_path)
    write_report(audit, claims_of(audit), tmp_path / "report.html")
    assert "<script>" not in (tmp_path / "report.html").read_text()


def test_ledger_without_a_policy_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Institution(tmp_path / "simulated", purpose="simulation")
    made.open()
    made.ledger.close()
    assert run(["audit", "ledger", str(made.path)]) == 0
    assert "decisions: none; the ledger holds no policy" in capsys.readouterr().out
