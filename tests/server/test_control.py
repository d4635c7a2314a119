"""The service Control: who may call what, what goes back, and that whoever follows a run misses nothing."""

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from control_server import Office, serving
from fake_nodes import FakeNode, update_of
from privet.privacy.channel import privet_pb2 as pb
from privet.privacy.channel.control_client import ControlClient, ControlError, UnreachableError, printable
from privet.privacy.channel.dial import dial
from privet.privacy.channel.identities import IdentityKey, Role
from privet.privacy.channel.services import callable_of
from privet.privacy.errors import ChannelError, UsageError
from privet.privacy.plan import Plan
from privet.privacy.signed import SignedSubmission, sign
from privet.privacy.submission import Submission, resolve
from privet.server import control as control_module
from privet.server.control import Control
from privet.server.questions import METHODS as QUESTIONS
from privet.server.run_record import RunState
from privet.server.runs import TRAINING
from run_grids import PATIENCE, LocalRunGrid, ended, three

MakePlan = Callable[..., Plan]
METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["Control"].methods]
READING = {"Runs", "Run", "Watch", "ListNodes", "Witness"}
CHANGING = {"Submit", "Stop", "Resume", "Model"}


def submission_of(plan: Plan, operator: str = "alice", run_id: str = "run-1", federation: str = "hearts") -> Submission:
    return resolve(plan, federation=federation, run_id=run_id, operator=operator, now=datetime.now(UTC))


@pytest.fixture(name="office")
def _office(tmp_path: Path) -> Iterator[Office]:
    with serving(Office(tmp_path)) as office:
        office.witness.write_text("a head\n")
        yield office


@pytest.fixture(name="alice")
def _alice(office: Office) -> ControlClient:
    return office.client(office.member("alice"))


def hand_in(office: Office, plan: Plan, run_id: str = "run-1") -> dict[str, Any]:
    member = office.federation.member(f"alice-{run_id}", office.folder / f"alice-{run_id}", Role.OPERATOR)
    signed = sign(submission_of(plan, member.identity.name, run_id), member.key, member.chain)
    return office.client(member).submit(signed)


def call(office: Office, member: Any, method: str) -> None:
    """Call a method with an empty request, and read all that comes back."""
    request = {"Submit": pb.SubmitRequest, "Runs": pb.Nothing, "ListNodes": pb.Nothing, "Watch": pb.WatchRequest}
    kind = request.get(method, pb.WitnessRequest if method == "Witness" else pb.RunRequest)
    with dial(member) as channel:
        answer = callable_of(channel, "Control", method)(kind(), timeout=PATIENCE)
        if isinstance(answer, Iterator):
            list(answer)


# ---- who may call what ----


def test_every_method_is_a_question_and_has_a_place_in_these_tests() -> None:
    assert set(METHODS) == READING | CHANGING
    for method in METHODS:
        assert QUESTIONS[f"/privet.v1.Control/{method}"]


@pytest.mark.parametrize("role", [Role.NODE, Role.AUDITOR, Role.OPERATOR])
def test_each_role_may_call_what_it_may_and_nothing_else(
    office: Office, role: Role, caplog: pytest.LogCaptureFixture
) -> None:
    member = office.member("somebody", role)
    for method in METHODS:
        may = role is Role.OPERATOR or (role is Role.AUDITOR and method in READING)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "privet.server"):
            try:
                call(office, member, method)
                status = grpc.StatusCode.OK
            except grpc.RpcError as error:
                status = error.code()
        assert (status is grpc.StatusCode.PERMISSION_DENIED) is not may, method
        assert (f"spiffe://hearts/{role}/somebody: somebody may not" in caplog.text) is not may


def test_refused_caller_gets_one_sentence_and_a_remedy(office: Office, make_plan: MakePlan) -> None:
    auditor = office.client(office.member("dpo", Role.AUDITOR))
    hand_in(office, make_plan())
    with pytest.raises(ControlError) as error:
        auditor.stop("run-1")
    assert error.value.message == "dpo may not stop run run-1: no rule permits it"
    assert error.value.remedy == "ask the coordinator; privet policy explain at the server says more"
    assert error.value.exit_code == 3


def test_run_of_a_project_is_its_members_alone(office: Office, make_plan: MakePlan) -> None:
    """By the rules that ship: others may look, and that is all."""
    alice, bob, now = office.member("alice"), office.member("bob"), datetime.now(UTC)
    office.projects.add("heart-failure", now, operators=["alice"])
    plan = make_plan("run.project='heart-failure'")
    signed = sign(submission_of(plan, "bob", "run-2"), bob.key, bob.chain)
    forbidden = "forbidden by rule projects-are-steered-by-their-operators"
    with pytest.raises(ControlError, match=f"bob may not submit run run-2: {forbidden}"):
        office.client(bob).submit(signed)
    page = office.client(alice).submit(sign(submission_of(plan), alice.key, alice.chain))
    assert page["project"] == "heart-failure"
    ended(office.runs, "run-1")
    for refused in (
        office.client(bob).resume,
        office.client(bob).stop,
        lambda run: list(office.client(bob).model(run)),
    ):
        with pytest.raises(ControlError, match=forbidden):
            refused("run-1")
    assert [(run["run_id"], run["project"]) for run in office.client(bob).runs()] == [("run-1", "heart-failure")]
    office.projects.add("heart-failure", now, operators=["bob"])
    assert list(office.client(bob).model("run-1"))


def test_list_of_runs_has_those_that_the_caller_may_watch(office: Office, make_plan: MakePlan) -> None:
    alice, bob = office.member("alice"), office.member("bob")
    office.projects.add("heart-failure", datetime.now(UTC), operators=["alice"])
    for run_id, plan in (("heart-1", make_plan("run.project='heart-failure'")), ("plain-1", make_plan())):
        office.client(alice).submit(sign(submission_of(plan, run_id=run_id), alice.key, alice.chain))
    path = office.federation.home.policy
    own_alone = """
    @id("own-alone") forbid (principal, action == Action::"watch", resource)
    when { resource has project } unless { principal in resource.project };
    """
    path.write_text(own_alone + path.read_text())
    assert sorted(run["run_id"] for run in office.client(alice).runs()) == ["heart-1", "plain-1"]
    assert [run["run_id"] for run in office.client(bob).runs()] == ["plain-1"]
    with pytest.raises(ControlError) as error:
        office.client(bob).run("heart-2")
    assert error.value.message == "no run heart-2"


def test_project_that_there_is_not_is_an_error_that_names_the_nearest(
    office: Office, alice: ControlClient, make_plan: MakePlan
) -> None:
    office.projects.add("heart-failure", datetime.now(UTC), operators=["alice-run-1"])
    with pytest.raises(ControlError, match=r"no project heart-failures; did you mean heart-failure\?") as error:
        hand_in(office, make_plan("run.project='heart-failures'"))
    assert error.value.exit_code == 2
    assert alice.runs() == []


def test_change_of_the_policy_holds_at_the_next_call(office: Office, alice: ControlClient) -> None:
    path = office.federation.home.policy
    shipped = path.read_text()
    assert alice.runs() == []
    path.write_text(
        shipped.replace('permit (principal is Operator, action in Action::"read"', "forbid (principal, action")
    )
    with pytest.raises(ControlError, match="alice may not list the runs: forbidden by rule operators-read"):
        alice.runs()
    path.write_text(shipped)
    assert alice.runs() == []


def test_submission_that_cannot_be_read_is_an_error_for_an_operator_and_a_denial_for_others(office: Office) -> None:
    operator, auditor = office.member("alice"), office.member("dpo", Role.AUDITOR)
    unread = SignedSubmission(b"{", b"", b"")
    with pytest.raises(ControlError) as error:
        office.client(operator).submit(unread)
    assert error.value.exit_code == 2
    with pytest.raises(ControlError, match="dpo may not submit what it sent: no rule permits it"):
        office.client(auditor).submit(unread)


def test_submission_that_another_operator_signed_is_refused(office: Office, make_plan: MakePlan) -> None:
    alice, mallory = office.member("alice"), office.member("mallory")
    signed = sign(submission_of(make_plan()), alice.key, alice.chain)
    with pytest.raises(ControlError, match="the submission is operator alice's, and mallory hands it in") as error:
        office.client(mallory).submit(signed)
    assert error.value.exit_code == 3
    assert office.runs.book.records() == []


def test_submission_with_a_forged_signature_is_refused(office: Office, make_plan: MakePlan) -> None:
    alice = office.member("alice")
    with pytest.raises(ControlError, match="not alice's over these bytes") as error:
        office.client(alice).submit(sign(submission_of(make_plan()), IdentityKey.generate(), alice.chain))
    assert error.value.exit_code == 3


def test_submission_for_another_federation_is_refused(office: Office, make_plan: MakePlan) -> None:
    alice = office.member("alice")
    with pytest.raises(ControlError, match="for federation lungs"):
        office.client(alice).submit(sign(submission_of(make_plan(), federation="lungs"), alice.key, alice.chain))


# ---- what goes back ----


def test_submitted_run_is_followed_to_its_end_and_its_model_is_fetched(
    office: Office, alice: ControlClient, make_plan: MakePlan
) -> None:
    page = hand_in(office, make_plan("evaluation.every=2"))
    assert (page["run_id"], page["rounds"], page["task"], page["claim"]) == ("run-1", 4, "synthetic", None)
    views = list(alice.watch("run-1", follow=True))
    events = [view["event"] for view in views if "event" in view]
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert [event["kind"] for event in events if event["kind"] != "roll"] == [
        "submitted", "waiting", "running", *["round"] * 4, "finished",
    ]  # fmt: skip
    last = views[-1]["run"]
    assert (last["state"], last["round"], last["metrics"]) == ("finished", 4, {"accuracy": 0.5})
    content = b"".join(alice.model("run-1"))
    assert hashlib.sha256(content).hexdigest() == last["model"]["sha256"]
    assert last["traffic"] == {"sent": 1000, "received": 500}
    assert alice.runs()[0] == {key: last[key] for key in alice.runs()[0]}


def test_answers_are_told_in_passing_while_a_round_goes_on(tmp_path: Path, make_plan: MakePlan) -> None:
    followed, heard, go_on = threading.Event(), threading.Event(), threading.Event()

    def train_when_followed(model: Any, *_: object) -> Any:
        assert followed.wait(PATIENCE)
        return update_of(model)

    def train_late(model: Any, *_: object) -> Any:
        assert go_on.wait(PATIENCE)
        return "task-failed"

    nodes = [three()[0], FakeNode("node-2", train=train_when_followed), FakeNode("node-3", train=train_late)]
    with serving(Office(tmp_path, grid=lambda: LocalRunGrid(nodes))) as office:
        alice = office.client(office.member("alice"))
        hand_in(office, make_plan("run.rounds=1", "run.spare-rounds=0"))
        found: list[dict[str, Any]] = []
        for view in alice.watch("run-1", follow=True):
            followed.set()
            found.append(view.get("notice", {}))
            if found[-1].get("kind") == "answer":
                heard.set()
                go_on.set()
        go_on.set()
        said = [(notice["kind"], notice["body"].get("node")) for notice in found if notice]
    assert heard.is_set(), "an answer is told before the round is over"
    assert said[-1] == ("missed", "node-3")


def test_reader_who_knows_some_events_gets_the_others(
    office: Office, alice: ControlClient, make_plan: MakePlan
) -> None:
    hand_in(office, make_plan())
    ended(office.runs, "run-1")
    every = [view["event"] for view in alice.watch("run-1") if "event" in view]
    assert [view["event"] for view in alice.watch("run-1", after=3) if "event" in view] == every[3:]
    assert [view for view in alice.watch("run-1", after=len(every), follow=True) if "event" in view] == []


def test_log_longer_than_a_page_is_read_whole(
    office: Office, alice: ControlClient, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand_in(office, make_plan())
    ended(office.runs, "run-1")
    for number in range(control_module.MOST_LISTED + 20):
        office.runs.book.tell("run-1", "note", {"n": number})
    numbers = [view["event"]["number"] for view in alice.watch("run-1") if "event" in view]
    assert numbers == list(range(1, office.runs.book.record("run-1").events + 1))


def test_follower_is_woken_when_a_waiting_run_is_stopped(tmp_path: Path, make_plan: MakePlan) -> None:
    with serving(Office(tmp_path, grid=lambda: LocalRunGrid(three(), connected=0))) as office:
        alice = office.client(office.member("alice"))
        hand_in(office, make_plan())
        kinds = []
        for view in alice.watch("run-1", follow=True):
            kinds.append(view["event"]["kind"] if "event" in view else "")
            if kinds[-1] == "waiting":
                assert alice.stop("run-1")["state"] in ("stopping", "stopped")
        told = [kind for kind in kinds if kind and kind != "roll"]
        assert told == ["submitted", "waiting", "stopping", "stopped"]
        assert alice.resume("run-1")["state"] in ("submitted", "waiting")
        again = [event for event in office.runs.book.events("run-1") if event.kind == "submitted"][1]
        assert again.body == {"by": "alice"}


def test_private_run_shows_charged_and_executed_with_delta_unit_and_relation(
    office: Office, alice: ControlClient, make_plan: MakePlan
) -> None:
    hand_in(office, make_plan("evaluation.every=2", "evaluation.noise-multiplier=50.0", private=True))
    ended(office.runs, "run-1")
    epsilon, claim = alice.run("run-1")["epsilon"], alice.run("run-1")["claim"]
    assert (epsilon["delta"], epsilon["unit"], epsilon["relation"]) == (1e-5, "record", "add-or-remove-one")
    assert epsilon["charged"] == dict.fromkeys(["node-1", "node-2", "node-3"], claim["epsilon"])
    assert set(epsilon["executed"]) == set(epsilon["charged"])
    # A spare round was charged and not carried out.
    assert 0 < epsilon["executed"]["node-1"] < claim["epsilon"]
    assert (claim["noise_multiplier"], claim["mechanism"]) == (4.0, "local")


def test_node_that_refused_is_not_shown_as_charged(tmp_path: Path, make_plan: MakePlan) -> None:
    nodes = [*three()[:2], FakeNode("node-3", describe=lambda _: "budget-exhausted")]
    with serving(Office(tmp_path, grid=lambda: LocalRunGrid(nodes))) as office:
        hand_in(office, make_plan(private=True))
        ended(office.runs, "run-1")
        page = office.client(office.member("dpo", Role.AUDITOR)).run("run-1")
    assert page["refused"] == {"node-3": "budget-exhausted"}
    assert set(page["epsilon"]["charged"]) == {"node-1", "node-2"}


def test_unknown_run_is_an_error_that_names_the_nearest(
    office: Office, alice: ControlClient, make_plan: MakePlan
) -> None:
    hand_in(office, make_plan())
    for ask in (
        lambda: alice.run("run-2"),
        lambda: alice.stop("run-2"),
        lambda: alice.resume("run-2"),
        lambda: list(alice.watch("run-2")),
        lambda: list(alice.model("run-2")),
    ):
        with pytest.raises(ControlError, match=r"no run run-2; did you mean run-1\?") as error:
            ask()
        assert (error.value.remedy, error.value.exit_code) == ("privet run list", 2)


def test_run_id_that_is_a_path_finds_no_file(office: Office, alice: ControlClient) -> None:
    for run_id in ("../../server.sqlite", "/etc/passwd", ""):
        with pytest.raises(ControlError, match="no run"):
            list(alice.model(run_id))


def test_large_model_comes_in_parts(office: Office, alice: ControlClient, make_plan: MakePlan) -> None:
    hand_in(office, make_plan())
    ended(office.runs, "run-1")
    content = bytes(range(256)) * (3 * control_module.PART_BYTES // 256) + b"end"
    office.runs.model_file("run-1").write_bytes(content)
    parts = list(alice.model("run-1"))
    assert [len(part) for part in parts] == [control_module.PART_BYTES] * 3 + [3]
    assert b"".join(parts) == content


def test_witness_and_nodes_are_what_the_server_has(office: Office, alice: ControlClient) -> None:
    assert b"".join(alice.witness("st-marys")) == b"a head\n"
    with pytest.raises(ControlError, match="no ledger of a node nobody was witnessed"):
        list(alice.witness("nobody"))
    assert alice.nodes() == [{"name": "st-marys", "is_connected": True}]


def test_defect_is_told_without_its_text(tmp_path: Path, make_plan: MakePlan, caplog: pytest.LogCaptureFixture) -> None:
    office = Office(tmp_path)

    def fail() -> list[dict[str, Any]]:
        raise KeyError("secret")

    office.nodes = fail  # type: ignore[method-assign]
    with (
        serving(office),
        caplog.at_level(logging.ERROR, "privet.server"),
        pytest.raises(ControlError, match="a defect in the server") as error,
    ):
        office.client(office.member("alice")).nodes()
    assert "secret" not in str(error.value)
    assert "secret" in caplog.text


def test_more_followers_than_the_server_serves_are_turned_away(
    office: Office, alice: ControlClient, make_plan: MakePlan
) -> None:
    hand_in(office, make_plan())
    ended(office.runs, "run-1")
    office.control._onlookers = control_module.MOST_ONLOOKERS
    with pytest.raises(ControlError, match="256 follow runs at this moment"):
        list(alice.watch("run-1"))


def test_follower_who_leaves_frees_its_place(tmp_path: Path, make_plan: MakePlan) -> None:
    with serving(Office(tmp_path, grid=lambda: LocalRunGrid(three(), connected=0))) as office:
        alice = office.client(office.member("alice"))
        hand_in(office, make_plan())
        watching = alice.watch("run-1", follow=True)
        next(watching)
        assert office.control._onlookers == 1
        watching.close()
        alice.stop("run-1")  # whoever still looks on is woken
        ended(office.runs, "run-1")
        for _ in range(200):
            if office.control._onlookers == 0:
                break
            alice.runs()
        assert office.control._onlookers == 0
        assert office.runs.notices._onlookers == {}


def test_run_of_a_kind_nobody_carries_out_is_refused(tmp_path: Path, make_plan: MakePlan) -> None:
    office = Office(tmp_path, carry_out={"other": lambda job: {}})
    with serving(office), pytest.raises(ControlError, match=f"runs of kind {TRAINING} are not carried out here"):
        hand_in(office, make_plan())


def test_server_that_is_not_there_is_named_by_its_address(office: Office, tmp_path: Path) -> None:
    away = Office(tmp_path / "away")
    client = away.client(away.member("alice"))
    with pytest.raises(UnreachableError, match=f"{away.federation.home.facts.address} cannot be reached") as error:
        client.runs()
    assert "server runs" in error.value.remedy


# ---- what a server says is outside data ----


def says(text: str) -> type[Control]:
    """A server that answers what it likes."""

    class Says(Control):
        async def Runs(self, *_: object) -> pb.View:  # noqa: N802
            return pb.View(json=text)

    return Says


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000, '{"runs": 3}', '{"runs": [3]}', "{}"])
def test_answer_that_is_no_page_is_a_clear_error(tmp_path: Path, text: str) -> None:
    office = Office(tmp_path, service=says(text))
    with serving(office), pytest.raises(ChannelError, match="not one of privet's"):
        office.client(office.member("alice")).runs()


def test_control_characters_of_a_server_reach_no_terminal(tmp_path: Path) -> None:
    said = {"runs": [{"a\x1b[2J": ["\x1b]0;x\x07", {"b": "line\nbreak\u202e"}]}]}
    office = Office(tmp_path, service=says(json.dumps(said)))
    with serving(office):
        assert office.client(office.member("alice")).runs() == [{"a[2J": ["]0;x", {"b": "linebreak"}]}]


def test_error_of_a_server_is_cleaned_and_its_exit_code_bounded(tmp_path: Path) -> None:
    office = Office(tmp_path)

    def fail() -> list[dict[str, Any]]:
        error = UsageError("evil\x1b[31m\nword", "remedy\r\n")
        error.exit_code = 77
        raise error

    office.nodes = fail  # type: ignore[method-assign]
    with serving(office), pytest.raises(ControlError) as error:
        office.client(office.member("alice")).nodes()
    assert (error.value.message, error.value.remedy, error.value.exit_code) == ("evil[31mword", "remedy", 1)


def test_printable_keeps_what_people_write() -> None:
    assert printable("Ärztin, 病院 – ward 7") == "Ärztin, 病院 – ward 7"


def test_docs_name_every_state_key_and_kind(office: Office, alice: ControlClient, make_plan: MakePlan) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "runs.md").read_text(encoding="utf-8")
    hand_in(office, make_plan("evaluation.every=2", "evaluation.noise-multiplier=50.0", private=True))
    views = list(alice.watch("run-1", follow=True))
    page, events = views[-1]["run"], [view["event"] for view in views if "event" in view]
    words = {*RunState, *page, *page["epsilon"], *page["claim"], *page["traffic"], *page["model"]}
    words |= {"notice", *(view["notice"]["kind"] for view in views if "notice" in view)}
    for told in events:
        words |= {*told, told["kind"], *(told["body"] if told["kind"] in ("round", "roll") else ())}
    missing = {word for word in words if f"`{word}`" not in docs}
    assert not missing
