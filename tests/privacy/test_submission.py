import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st
from privet.privacy.budget.accounting import epsilon_of, rounded_up
from privet.privacy.budget.charge import charged_events
from privet.privacy.envelope import SUBMISSION_BYTES
from privet.privacy.errors import PlanError, UsageError
from privet.privacy.plan import Plan
from privet.privacy.plan_file import parse_plan
from privet.privacy.submission import Submission, claim_of, resolve

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
CLAIM = ("privacy.unit=record", "privacy.delta=1e-5", "privacy.clip-norm=1.0")

MakePlan = Callable[..., Plan]
MakeSubmission = Callable[..., Submission]


@pytest.fixture
def content(make_submission: MakeSubmission) -> dict[str, Any]:
    """A private submission as JSON, to be spoilt."""
    read: dict[str, Any] = json.loads(make_submission(private=True).canonical)
    return read


def refused(content: bytes) -> str:
    with pytest.raises(UsageError) as caught:
        Submission.from_bytes(content)
    assert caught.value.message.startswith("malformed submission: ")
    assert caught.value.remedy == "ask the coordinator to submit the plan again"
    return caught.value.message.removeprefix("malformed submission: ")


# What is resolved


def test_every_default_is_written_out_and_the_simulation_is_gone(make_submission: MakeSubmission) -> None:
    plan = json.loads(make_submission(*CLAIM, "privacy.noise-multiplier=4", private=False).canonical)["plan"]
    assert plan["run"] == {
        "name": "test", "task": "synthetic", "dataset": "synthetic", "seed": 3, "rounds": 4, "spare-rounds": 1,
    }  # fmt: skip
    assert plan["privacy"]["mechanism"] == "local"
    assert plan["aggregation"] == {"strategy": "fedavg", "fraction": 1, "min-nodes": 2}
    assert plan["training"]["optimizer"] == "sgd"
    assert "simulation" not in plan
    assert "evaluation" not in plan


def test_the_claim_follows_from_the_noise(make_plan: MakePlan, make_submission: MakeSubmission) -> None:
    claim = make_submission(private=True).claim
    assert claim is not None
    assert claim.noise_multiplier == 4.0
    cost = rounded_up(epsilon_of(charged_events(make_plan(private=True), 4.0), 1e-5))
    assert Decimal(repr(claim.epsilon)) == cost


def test_the_noise_follows_from_the_epsilon_and_pays_for_evaluations_too(make_submission: MakeSubmission) -> None:
    claims = [
        make_submission(*CLAIM, "privacy.epsilon=3.0", *evaluation).claim
        for evaluation in ((), ("evaluation.noise-multiplier=20.0",))
    ]
    assert all(claim is not None and claim.epsilon == 3.0 for claim in claims)
    assert claims[1].noise_multiplier > claims[0].noise_multiplier  # type: ignore[union-attr]


def test_a_run_without_a_claim_claims_nothing(make_plan: MakePlan, make_submission: MakeSubmission) -> None:
    assert make_submission().claim is None
    assert claim_of(make_plan()) is None
    assert json.loads(make_submission().canonical)["claim"] is None


def test_a_noise_that_costs_more_than_any_claim_is_a_plan_error(make_plan: MakePlan) -> None:
    for noise, said in (("0.05", "costs epsilon infinite"), ("0.25", "costs epsilon 1")):
        plan = make_plan(f"privacy.noise-multiplier={noise}", "run.rounds=8", private=True)
        with pytest.raises(PlanError, match=f"noise-multiplier {noise} {said}") as caught:
            claim_of(plan)
        assert "raise noise-multiplier" in caught.value.remedy


def test_resolving_twice_gives_the_same_bytes(make_submission: MakeSubmission) -> None:
    assert make_submission(private=True).canonical == make_submission(private=True).canonical


def test_resolving_a_resolved_plan_changes_nothing(make_submission: MakeSubmission) -> None:
    once = make_submission(private=True)
    again = resolve(once.plan, federation="test", run_id="run-1", operator="tester", now=NOW)
    assert again.canonical == once.canonical


# When it is valid


def test_validity_begins_at_its_moment_and_ends_before_its_last(make_submission: MakeSubmission) -> None:
    submission = make_submission(now=NOW)
    end = NOW + timedelta(days=30)
    assert submission.is_valid_at(NOW)
    assert submission.is_valid_at(end - timedelta(microseconds=1))
    assert not submission.is_valid_at(end)
    assert not submission.is_valid_at(NOW - timedelta(microseconds=1))


def test_a_moment_of_another_zone_is_the_same_moment(make_plan: MakePlan) -> None:
    there = NOW.astimezone(timezone(timedelta(hours=9)))
    submission = resolve(make_plan(), federation="f", run_id="r", operator="o", now=there)
    assert submission.body.not_before == "2026-11-22T12:00:00Z"


@pytest.mark.parametrize("validity", [timedelta(0), timedelta(days=-1), timedelta(days=367)])
def test_a_validity_that_cannot_be_meant_is_a_mistake(make_plan: MakePlan, validity: timedelta) -> None:
    with pytest.raises(ValueError, match="it must expire after it begins, and within a year"):
        resolve(make_plan(), federation="f", run_id="r", operator="o", now=NOW, validity=validity)


# One meaning, one hash


def test_the_hash_is_that_of_the_canonical_bytes(make_submission: MakeSubmission) -> None:
    submission = make_submission(private=True)
    assert submission.hash == hashlib.sha256(submission.canonical).hexdigest()
    assert submission.canonical == rfc8785.dumps(json.loads(submission.canonical))


def test_plans_of_one_meaning_hash_alike() -> None:
    plain = """
        [run]
        name = "a"
        task = "digits"
        rounds = 3
        [model]
        b = 2.0
        a = true
        [training]
        learning-rate = 1
        [privacy]
        unit = "none"
        sampling-rate = 0.50
        """
    other = """
        privacy = {sampling-rate = 5e-1, unit = "none"}
        model = {a = true, b = 2}
        training.learning-rate = 1.0
        training.optimizer = "sgd"
        [run]
        dataset = "digits"
        rounds = 0x3
        seed = 0
        task = 'digits'
        name = "a"
        """
    plans = [parse_plan(text, "p") for text in (plain, other)]
    hashes = {resolve(plan, federation="f", run_id="r", operator="o", now=NOW).hash for plan in plans}
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "assignment", ["run.seed=4", "run.rounds=5", "training.momentum=0.1", "model.features=4", "run.dataset=other"]
)
def test_plans_of_other_meaning_hash_differently(make_submission: MakeSubmission, assignment: str) -> None:
    assert make_submission(assignment).hash != make_submission().hash


@settings(max_examples=40, deadline=None)
@given(
    model=st.dictionaries(
        st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True),
        st.booleans()
        | st.integers(-(2**53) + 1, 2**53 - 1)
        | st.floats(-1e15, 1e15)
        | st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=20),
        max_size=5,
    ),
    rate=st.floats(1e-300, 1.0),
    learning=st.floats(1e-300, 1e300),
)
def test_canonical_bytes_read_back_to_themselves(
    model: dict[str, bool | int | float | str], rate: float, learning: float
) -> None:
    plan = Plan.model_validate(
        {
            "run": {"name": "a", "task": "t", "rounds": 3},
            "model": model,
            "training": {"learning-rate": learning},
            "privacy": {"unit": "none", "sampling-rate": rate},
        }
    )
    submission = resolve(plan, federation="f", run_id="r", operator="o", now=NOW)
    again = Submission.from_bytes(submission.canonical)
    assert again.canonical == submission.canonical
    assert again.body == submission.body
    assert {key: type(value) for key, value in again.plan.model.items()} == {
        key: type(value) for key, value in submission.plan.model.items()
    }


def test_a_private_submission_reads_back(make_submission: MakeSubmission) -> None:
    submission = make_submission("evaluation.every=2", "evaluation.noise-multiplier=20.0", private=True)
    again = Submission.from_bytes(submission.canonical)
    assert again == submission
    assert (again.hash, again.claim) == (submission.hash, submission.claim)


# Attacks on the decoder


def test_bytes_in_any_other_spelling(content: dict[str, Any]) -> None:
    canonical = rfc8785.dumps(content)
    spellings = [
        json.dumps(content).encode(),
        canonical + b"\n",
        b" " + canonical,
        b"\xef\xbb\xbf" + canonical,
        json.dumps(content, separators=(",", ":"), sort_keys=False)[::1].encode(),
        canonical.replace(b'"format":1', b'"format":1.0'),
        canonical.replace(b'"format":1', b'"format":1,"format":1'),
        canonical.replace(b'"run-1"', b'"run\\u002d1"'),
        canonical.replace(b'"noise-multiplier":4', b'"noise-multiplier":4e0'),
        canonical.decode().encode("utf-16"),
    ]
    assert Submission.from_bytes(canonical)
    for spelling in spellings:
        if spelling != canonical:
            assert refused(spelling)


def test_more_bytes_than_a_submission_has(content: dict[str, Any]) -> None:
    assert refused(rfc8785.dumps(content) + b" " * SUBMISSION_BYTES).endswith(f"bytes, allowed are {SUBMISSION_BYTES}")


@pytest.mark.parametrize(
    "garbage",
    [b"", b"null", b"[]", b"7", b'"text"', b"{}", b"{", b"\xff\xfe\x00", b"\x80\x04K\x01.", b"NaN", b"{'a': 1}"],
)
def test_bytes_that_are_no_submission(garbage: bytes) -> None:
    assert refused(garbage)


@pytest.mark.parametrize("deep", [b"[" * 60_000, b'{"a":' * 12_000, b"[" * 30_000 + b"]" * 30_000])
def test_deep_nesting(deep: bytes) -> None:
    assert refused(deep)


@pytest.mark.parametrize("place", [(), ("plan",), ("plan", "run"), ("plan", "privacy"), ("claim",)])
def test_unknown_key(content: dict[str, Any], place: tuple[str, ...]) -> None:
    table = content
    for key in place:
        table = table[key]
    table["zzz"] = 1
    assert refused(rfc8785.dumps(content)) == ".".join([*place, "zzz"]) + ": Extra inputs are not permitted"


@pytest.mark.parametrize("key", ["format", "federation", "run_id", "operator", "not_before", "expires", "plan"])
def test_missing_key(content: dict[str, Any], key: str) -> None:
    del content[key]
    assert refused(rfc8785.dumps(content)) == f"{key}: Field required"


def test_simulation_section(content: dict[str, Any]) -> None:
    content["plan"]["simulation"] = {"held-out": 0.1, "nodes": 10, "partition": "iid"}
    assert refused(rfc8785.dumps(content)) == "[simulation] is read by the simulator alone"


@pytest.mark.parametrize("version", [0, 2, True, "1", None])
def test_format_of_another_version(content: dict[str, Any], version: object) -> None:
    content["format"] = version
    assert refused(rfc8785.dumps(content)).startswith("format: ")


@pytest.mark.parametrize("spelled", ["NaN", "Infinity", "-Infinity", "1e999", "1" * 400, "1" * 5000, "true", '"1"'])
@pytest.mark.parametrize(
    "place", [("claim", "epsilon"), ("plan", "privacy", "delta"), ("plan", "model", "records"), ("plan", "run", "seed")]
)
def test_numbers_that_are_none(content: dict[str, Any], place: tuple[str, ...], spelled: str) -> None:
    if spelled in ("true", '"1"') and "model" in place:
        return  # flags and texts are options
    table = content
    for key in place[:-1]:
        table = table[key]
    table[place[-1]] = "PLACE"
    assert refused(json.dumps(content, sort_keys=True, separators=(",", ":")).replace('"PLACE"', spelled).encode())


@pytest.mark.parametrize("text", ["\ud800", "a\x00b", "x" * 300])
def test_text_that_no_plan_may_hold(content: dict[str, Any], text: str) -> None:
    for place in ("model", "key", "run_id"):
        spoilt = json.loads(json.dumps(content))
        if place == "model":
            spoilt["plan"]["model"] = {"kind": text}
        elif place == "key":
            spoilt["plan"]["model"] = {text: 1}
        else:
            spoilt["run_id"] = text
        assert refused(json.dumps(spoilt, sort_keys=True, separators=(",", ":")).encode()) != ""


@pytest.mark.parametrize("run_id", ["../../etc", "a/b", "", "Run", "-x", "a\n"])
def test_run_id_that_leaves_its_folder(content: dict[str, Any], run_id: str) -> None:
    content["run_id"] = run_id
    assert refused(rfc8785.dumps(content)).startswith("run_id: ")


@pytest.mark.parametrize(
    "spelled",
    ["2026-1-22T12:00:00Z", "２０２６-11-22T12:00:00Z", "2026-11-22T12:00:00+00:00", "2026-02-30T00:00:00Z", "soon"],
)
def test_second_spelling_of_a_time(content: dict[str, Any], spelled: str) -> None:
    content["not_before"] = spelled
    assert refused(rfc8785.dumps(content))


def test_validity_turned_round_or_for_ever(content: dict[str, Any]) -> None:
    for expires in (content["not_before"], "2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z"):
        spoilt = content | {"expires": expires}
        assert refused(rfc8785.dumps(spoilt)) == "it must expire after it begins, and within a year"


def test_claim_without_a_unit_and_unit_without_a_claim(
    content: dict[str, Any], make_submission: MakeSubmission
) -> None:
    assert refused(rfc8785.dumps(content | {"claim": None})) == "a claim is made exactly when the plan has a unit"
    unprotected = json.loads(make_submission().canonical) | {"claim": content["claim"]}
    assert refused(rfc8785.dumps(unprotected)) == "a claim is made exactly when the plan has a unit"


def test_claim_of_another_noise_than_the_plan(content: dict[str, Any]) -> None:
    """Attack: a plan to show to people with noise 4, and a claim that nodes carry out with noise 0.5."""
    content["claim"]["noise_multiplier"] = 0.5
    assert refused(rfc8785.dumps(content)) == "the claim is another than the plan's"


def test_claim_of_another_epsilon_than_the_plan(make_submission: MakeSubmission) -> None:
    content = json.loads(make_submission(*CLAIM, "privacy.epsilon=1.0").canonical)
    content["claim"] = {"epsilon": 90, "noise_multiplier": 0.3}
    assert refused(rfc8785.dumps(content)) == "the claim is another than the plan's"


@pytest.mark.parametrize("place", [("run", "dataset"), ("privacy", "mechanism"), ("run", "seed"), ("model",)])
def test_default_left_open(content: dict[str, Any], place: tuple[str, ...]) -> None:
    """A second spelling of the same run would have a second hash."""
    table = content["plan"]
    for key in place[:-1]:
        table = table[key]
    del table[place[-1]]
    if place == ("model",):
        content["plan"]["run"]["name"] = "test"
    assert refused(rfc8785.dumps(content)) in (
        "its plan is not resolved: a default is left open",
        "its bytes are not canonical (RFC 8785)",
    )


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_refused_with_one_error(noise: bytes) -> None:
    refused(noise)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.data(), JSON_VALUES)
def test_any_value_at_any_place_is_a_submission_or_one_error(data: st.DataObject, value: object) -> None:
    content: dict[str, Any] = json.loads(SAMPLE)
    table = content
    while True:
        key = data.draw(st.sampled_from(sorted(table)))
        if not isinstance(table[key], dict) or not table[key] or data.draw(st.booleans()):
            break
        table = table[key]
    table[key] = value
    spoilt = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    try:
        submission = Submission.from_bytes(spoilt)
    except UsageError:
        return
    assert submission.canonical == spoilt
    assert Submission.from_bytes(submission.canonical) == submission


SAMPLE = (
    '{"claim":null,"expires":"2026-12-22T12:00:00Z","federation":"f","format":1,"not_before":"2026-11-22T12:00:00Z",'
    '"operator":"o","plan":{"aggregation":{"fraction":1,"min-nodes":2,"strategy":"fedavg"},"model":{"x":1},'
    '"privacy":{"sampling-rate":0.2,"unit":"none"},"run":{"dataset":"digits","name":"a","rounds":3,"seed":0,'
    '"spare-rounds":0,"task":"digits"},"training":{"learning-rate":1,"local-steps":1,"momentum":0,"optimizer":"sgd",'
    '"weight-decay":0}},"run_id":"r"}'
)


def test_format_1_stays_readable() -> None:
    """A submission of the first version, byte for byte: when this breaks, FORMAT must become 2."""
    submission = Submission.from_bytes(SAMPLE.encode())
    assert submission.hash == hashlib.sha256(SAMPLE.encode()).hexdigest()
    assert submission.plan.run.dataset == "digits"
