"""Ledgers that lie about who asked: each recorded field, broken one at a time by whoever holds the ledger's key."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from ledgers import ALICE, FEDERATION, START, Institution, resigned, written
from privet.__main__ import run
from privet.privacy.audit.claims import as_json, claims_of
from privet.privacy.audit.replay import Audit, audit_ledger
from privet.privacy.audit.report import write_report
from privet.privacy.budget.app_runs import admit_app
from privet.privacy.channel.identities import Role
from privet.privacy.errors import RefusedError
from privet.privacy.plan_app import AppPlan, AppSubmission, resolve_app
from privet.privacy.signed import PURPOSE
from privet.privacy.submission import Submission
from signers import Authority

ROOT = FEDERATION.root_pem


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Institution]:
    made = Institution(tmp_path)
    made.open()
    yield made
    made.ledger.close()


def audited(house: Institution, root: bytes | None = ROOT) -> Audit:
    return audit_ledger(house.path, public_key=house.key.public, root=root)


def found(house: Institution, root: bytes | None = ROOT) -> set[tuple[int | None, str]]:
    return {(violation.entry, violation.code) for violation in audited(house, root).violations}


def why(house: Institution, root: bytes | None = ROOT) -> str:
    return "; ".join(violation.why for violation in audited(house, root).violations)


def charge(house: Institution, submission: Submission) -> dict[str, Any]:
    """What the guard would write of it."""
    probe = Institution(house.folder / f"probe-{submission.run_id}-{house.clock.moment:%H%M%S}", clock=house.clock)
    probe.open()
    assert probe.admit(submission)
    (entry,) = (entry for entry in probe.ledger.entries() if entry.kind == "charge")
    probe.ledger.close()
    return entry.content


def forge(house: Institution, run_id: str = "run-1", **changed: str) -> int:
    """An honest charge after an operator's entry in which some of the fields are changed; gives the latter's number.

    The policy was told the same, as far as an entry can hold it.
    """
    submission = house.submission(run_id)
    body = charge(house, submission)
    honest = house.operator_body(run_id, submission.hash, submission.canonical)
    told = honest | changed
    is_possible = told["operator"].islower() and told["key_fingerprint"] == told["key_fingerprint"].lower()
    house.permit_charge(body, told if is_possible else honest)
    number = house.ledger.append("operator", told).sequence
    house.ledger.append("charge", body)
    return number


def test_operator_who_signed_is_found_to_have_signed(house: Institution) -> None:
    forge(house)
    assert house.admit(house.submission("run-2"))
    assert found(house) == found(house, None) == set()
    signed = audited(house).history.runs["run-2"].signed
    assert signed is not None
    assert (signed.operator, signed.key_fingerprint, signed.trust) == ("alice", ALICE.fingerprint, "coordinator")


def test_charge_that_nobody_signed_for(house: Institution) -> None:
    submission = house.submission("run-1")
    body = charge(house, submission)
    house.permit_charge(body, house.operator_body("run-1", submission.hash, submission.canonical))
    number = house.ledger.append("charge", body).sequence
    assert found(house) == {(number, "unsigned")}


def test_ledger_that_does_not_say_what_it_is_needs_signatures(house: Institution, tmp_path: Path) -> None:
    """Who cuts the opening off must not make a simulation of it."""
    submission = house.submission("run-1")
    body = charge(house, submission)
    house.permit_charge(body, house.operator_body("run-1", submission.hash, submission.canonical))
    house.ledger.append("charge", body)
    rows = resigned(house.rows()[1:], house.key)
    audit = audit_ledger(written(tmp_path / "cut.sqlite", rows), public_key=house.key.public)
    assert {violation.code for violation in audit.violations} == {"opening", "unsigned"}


def test_simulation_needs_no_signatures(tmp_path: Path) -> None:
    house = Institution(tmp_path / "simulated", purpose="simulation")
    house.open()
    assert house.admit(house.submission("run-1"))
    assert "operator" not in [entry.kind for entry in house.ledger.entries()]
    assert found(house) == set()
    assert audited(house).history.runs["run-1"].signed is None


@pytest.mark.parametrize(("field", "value"), [("run", "run-9"), ("submission", "a" * 64)])
def test_operator_of_another_run_or_submission(house: Institution, field: str, value: str) -> None:
    number = forge(house, **{field: value})
    assert found(house) == {(number + 1, "unsigned"), (number, "operator")}


def test_operator_who_signed_for_nothing(house: Institution) -> None:
    submission = house.submission("run-1")
    told = house.operator_body("run-1", submission.hash, submission.canonical)
    first, second = (house.ledger.append("operator", told).sequence for _ in range(2))
    assert found(house) == {(first, "operator"), (second, "operator")}


def test_operator_whose_charge_stands_elsewhere(house: Institution) -> None:
    """One entry between them is one too many: they are written in one step."""
    submission = house.submission("run-1")
    body = charge(house, submission)
    told = house.operator_body("run-1", submission.hash, submission.canonical)
    house.permit_charge(body, told)
    number = house.ledger.append("operator", told).sequence
    house.open("clinic")
    late = house.ledger.append("charge", body).sequence
    assert found(house) == {(number, "operator"), (late, "unsigned"), (late, "undecided")}


def test_one_signature_for_two_runs(house: Institution) -> None:
    first, second = house.submission("run-1"), house.submission("run-2")
    told = house.operator_body("run-1", first.hash, first.canonical)
    bodies = [charge(house, submission) for submission in (first, second)]
    house.permit_charge(bodies[0], told)
    house.ledger.append("operator", told)
    house.ledger.append("charge", bodies[0])
    house.permit_charge(bodies[1], told)
    moved = house.ledger.append("operator", told | {"run": "run-2", "submission": second.hash}).sequence
    house.ledger.append("charge", bodies[1])
    assert found(house) == {(moved, "operator")}
    assert "not alice's over these bytes" in why(house)


def test_name_that_is_not_the_certificates(house: Institution) -> None:
    number = forge(house, operator="bob")
    assert found(house) == {(number, "operator")}
    assert "name bob, its certificate says alice" in why(house)


def test_key_that_is_not_the_certificates(house: Institution) -> None:
    number = forge(house, key_fingerprint="b" * 64)
    assert found(house) == {(number, "operator")}
    assert "its certificate says" in why(house)


@pytest.mark.parametrize(
    "sign",
    [
        lambda content: ALICE.sign(PURPOSE, content + b" "),
        lambda content: ALICE.sign("ledger-entry", content),
        lambda content: FEDERATION.party("alice").key.sign(PURPOSE, content),
        lambda content: b"\x30\x06\x02\x01\x01\x02\x01\x01",
    ],
    ids=["other bytes", "other purpose", "other key", "no signature"],
)
def test_signature_that_does_not_hold(house: Institution, sign: Any) -> None:
    number = forge(house, signature=sign(house.submission("run-1").canonical).hex())
    assert found(house, None) == {(number, "operator")}
    assert "not alice's over these bytes" in why(house, None)


@pytest.mark.parametrize("role", [Role.NODE, Role.AUDITOR])
def test_certificate_of_another_role(house: Institution, role: Role) -> None:
    chain = FEDERATION.party("alice", role, key=ALICE).chain.decode()
    number = forge(house, certificates=chain)
    assert found(house, None) == {(number, "operator")}
    assert "is not of role operator" in why(house, None)


def test_certificate_of_another_federation(house: Institution) -> None:
    chain = Authority("g", START).party("alice", key=ALICE).chain.decode()
    number = forge(house, certificates=chain)
    assert found(house, None) == {(number, "operator")}
    assert "spiffe://g/operator/alice is not of federation f" in why(house, None)


def test_certificate_of_an_authority_that_calls_itself_the_federation(house: Institution) -> None:
    """Only who was handed the root sees it; without it the audit says that it did not look."""
    chain = Authority("f", START).party("alice", key=ALICE).chain.decode()
    number = forge(house, certificates=chain)
    assert found(house, None) == set()
    assert found(house) == {(number, "operator")}
    assert "does not lead to the federation's root" in why(house)


@pytest.mark.parametrize("moved", [timedelta(hours=-24, minutes=-1), timedelta(hours=1)])
def test_certificate_that_was_not_valid_then(house: Institution, moved: timedelta) -> None:
    moment = house.clock.moment + moved
    chain = FEDERATION.party("alice", key=ALICE, at=moment).chain.decode()
    number = forge(house, certificates=chain)
    assert found(house, None) == {(number, "operator")}
    assert "its certificate was valid from" in why(house, None)


@pytest.mark.parametrize("moved", [timedelta(hours=-1), timedelta(hours=25)])
def test_time_of_check_outside_of_the_certificate(house: Institution, moved: timedelta) -> None:
    checked = (house.clock.moment + moved).strftime("%Y-%m-%dT%H:%M:%SZ")
    number = forge(house, checked=checked)
    assert found(house, None) - {(number - 1, "facts")} == {(number, "operator")}  # the age that a policy was told


def test_entry_written_long_after_the_certificate_ended(house: Institution) -> None:
    submission = house.submission("run-1")
    body = charge(house, submission)
    told = house.operator_body("run-1", submission.hash, submission.canonical)
    house.permit_charge(body, told)
    house.clock.moment += timedelta(days=2)
    number = house.ledger.append("operator", told).sequence
    house.ledger.append("charge", body)
    assert found(house, None) == {(number, "operator")}


@pytest.mark.parametrize(
    "changed",
    [
        {"checked": "2026-02-31T00:00:00Z"},
        {"certificates": "none"},
        {"certificates": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" * 2},
    ],
)
def test_field_that_cannot_be_read(house: Institution, changed: dict[str, str]) -> None:
    number = forge(house, **changed)
    assert found(house) == {(number, "operator")}


@pytest.mark.parametrize(
    "changed",
    [
        {"signature": "zz"},
        {"signature": "00" * 73},
        {"signature": "0" * 17},
        {"key_fingerprint": "B" * 64},
        {"trust": "everybody"},
        {"operator": "Alice"},
        {"certificates": "x" * 20_000},
        {"checked": "yesterday"},
        {"extra": "1"},
    ],
)
def test_field_that_is_malformed(house: Institution, changed: dict[str, str]) -> None:
    number = forge(house, **changed)
    assert found(house) == {(number, "malformed"), (number + 1, "unsigned")}


def test_every_byte_of_a_certificate_is_read_without_a_traceback(house: Institution) -> None:
    chain = house.operator_body("run-1", "a" * 64, b"")["certificates"]
    for place in range(30, len(chain) // 2, 23):
        flipped = chain[:place] + ("A" if chain[place] != "A" else "B") + chain[place + 1 :]
        house.ledger.append("operator", house.operator_body("run-1", "a" * 64, b"") | {"certificates": flipped})
    assert {code for _, code in found(house)} == {"operator"}


def test_operator_with_a_new_key_is_a_note(house: Institution) -> None:
    assert house.admit(house.submission("run-1"))
    submission = house.submission("run-2")
    other = FEDERATION.party("alice", at=house.clock.moment)
    body = charge(house, submission)
    told = house.operator_body("run-2", submission.hash, submission.canonical) | {
        "key_fingerprint": other.key.fingerprint,
        "signature": other.signs(submission).signature.hex(),
        "certificates": other.chain.decode(),
    }
    house.permit_charge(body, told)
    number = house.ledger.append("operator", told).sequence
    house.ledger.append("charge", body)
    audit = audited(house)
    assert audit.holds
    assert any(f"operator alice signs with another key in entry {number}" in note for note in audit.notes)


def test_run_charged_twice_keeps_its_first_operator(house: Institution) -> None:
    first = forge(house)
    second = forge(house)
    assert found(house) == {(second + 1, "charged-twice")}
    signed = audited(house).history.runs["run-1"].signed
    assert signed is not None
    assert signed.entry == first


# Flower apps.


@pytest.fixture
def app(house: Institution) -> AppSubmission:
    plan = AppPlan.model_validate({"run": {"name": "a"}, "app": {"name": "vision"}, "privacy": {"unit": "none"}})
    return resolve_app(plan, federation="f", run_id="app-1", operator="alice", now=house.clock.moment)


def forge_operator(house: Institution, app: AppSubmission, run_id: str = "", digest: str = "") -> None:
    """The permission of an app's run, and the operator who signed for it."""
    told = house.operator_body(run_id or app.run_id, digest or app.hash, app.canonical)
    house.permit_app(app, told)
    house.ledger.append("operator", told)


def app_body(app: AppSubmission, /, **changed: str) -> dict[str, str]:
    told = {"run": app.run_id, "submission": app.hash, "plan": app.canonical.decode(), "app": app.plan.app.name}
    return told | changed


def test_run_of_an_app_is_listed_as_one_without_a_claim(house: Institution, app: AppSubmission, tmp_path: Path) -> None:
    admit_app(house.accounts, app, house.clock.moment, house.signer(app.canonical), house.policy)
    audit = audited(house)
    assert audit.violations == ()
    claims = claims_of(audit)
    (told,) = as_json(audit, claims)["apps"]
    assert (told["app"], told["run"], told["operator"]) == ("vision", "app-1", "alice")
    assert told["signed"]["key_fingerprint"] == ALICE.fingerprint
    write_report(audit, claims, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "What made no claim" in page
    assert "vision" in page


def test_app_that_nobody_signed_for(house: Institution, app: AppSubmission) -> None:
    house.permit_app(app, house.operator_body(app.run_id, app.hash, app.canonical))
    number = house.ledger.append("app", app_body(app)).sequence
    assert found(house) == {(number, "unsigned")}


@pytest.mark.parametrize("changed", [{"app": "sound"}, {"plan": "{}"}])
def test_app_that_is_not_what_was_signed(house: Institution, app: AppSubmission, changed: dict[str, str]) -> None:
    forge_operator(house, app)
    number = house.ledger.append("app", app_body(app, **changed)).sequence
    assert found(house) - {(number - 2, "facts")} == {(number, "submission")}  # another app than was permitted


def test_app_with_another_run_or_hash_than_its_plan(house: Institution, app: AppSubmission) -> None:
    forge_operator(house, app, "app-9", "c" * 64)
    number = house.ledger.append("app", app_body(app, run="app-9", submission="c" * 64)).sequence
    assert found(house) == {(number, "submission")}
    assert audited(house).counts["submission"] == 2


def test_run_id_of_an_app_and_of_a_task(house: Institution, app: AppSubmission) -> None:
    assert house.admit(house.submission("app-1"))
    forge_operator(house, app)
    number = house.ledger.append("app", app_body(app)).sequence
    assert found(house) == {(number, "charged-twice")}


def test_run_id_of_a_task_after_an_app(house: Institution, app: AppSubmission) -> None:
    body = charge(house, house.submission("app-1"))
    admit_app(house.accounts, app, house.clock.moment, house.signer(app.canonical), house.policy)
    number = house.forge("charge", body)
    assert found(house) == {(number, "charged-twice")}


def test_app_that_was_admitted_twice(house: Institution, app: AppSubmission) -> None:
    for _ in range(2):
        forge_operator(house, app)
        number = house.ledger.append("app", app_body(app)).sequence
    assert found(house) == {(number, "charged-twice")}


def test_refused_app_is_told(house: Institution, app: AppSubmission) -> None:
    with pytest.raises(RefusedError):
        admit_app(house.accounts, app, house.clock.moment + timedelta(days=99), None, house.policy)
    audit = audited(house)
    assert audit.holds
    (told,) = as_json(audit, claims_of(audit))["refused"]
    assert (told["app"], told["dataset"], told["operator"], told["code"]) == ("vision", None, "alice", "not-valid-now")


# What an auditor is told.


def audit_command(house: Institution, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    key = house.folder / "key.txt"
    key.write_text(house.key.public)
    code = run(["audit", "ledger", str(house.path), "--key", str(key), *options])
    return code, capsys.readouterr().out


def test_audit_names_operator_key_and_what_was_not_checked(
    house: Institution, app: AppSubmission, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert house.admit(house.submission("run-1"))
    assert house.admit(house.submission("run-2"))
    with pytest.raises(RefusedError):
        admit_app(house.accounts, app, house.clock.moment + timedelta(days=99), None, house.policy)
    admit_app(house.accounts, app, house.clock.moment, house.signer(app.canonical), house.policy)
    root = tmp_path / "root.pem"
    root.write_bytes(ROOT)
    code, told = audit_command(house, capsys)
    assert code == 0
    line = f"operator alice: 3 runs, key {ALICE.fingerprint}, coordinator trusted to name operators; "
    assert line + "chain not checked: no --root" in told
    assert "app vision: run app-1 of alice: made no claim; what it read is not accounted for" in told
    assert "refused: run app-1 of alice, app vision: not-valid-now" in told
    code, told = audit_command(house, capsys, "--root", str(root))
    assert line + "certificate checked up to the given root" in told
    code, told = audit_command(house, capsys, "--root", str(root), "--json")
    assert json.loads(told)["operators_checked_to_root"] is True
    (account,) = json.loads(told)["accounts"]
    assert account["runs"][0]["signed"]["key_fingerprint"] == ALICE.fingerprint


def test_report_names_operator_and_fingerprint(house: Institution, tmp_path: Path) -> None:
    assert house.admit(house.submission("run-1"))
    audit = audited(house)
    write_report(audit, claims_of(audit), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert f"{ALICE.fingerprint[:16]}…" in page
    assert ALICE.fingerprint in page
    assert "named by the coordinator" in page
    assert "What made no claim" not in page


@pytest.mark.parametrize("content", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\n", b"x" * 5000])
def test_root_that_is_none(
    house: Institution, capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes
) -> None:
    root = tmp_path / "root.pem"
    root.write_bytes(content)
    assert audit_command(house, capsys, "--root", str(root))[0] == 1
    assert audit_command(house, capsys, "--root", str(tmp_path / "none.pem"))[0] == 1
