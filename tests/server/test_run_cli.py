"""`privet run`: the commands as an operator types them, against a real server over real certificates."""

import io
import json
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from control_server import Office, serving
from fake_nodes import FakeNode
from privet.__main__ import run
from privet.privacy.budget.ledger import system_clock
from privet.privacy.channel.control_client import ControlClient, UnreachableError
from privet.privacy.channel.dial import dial
from privet.privacy.channel.identities import Role
from privet.privacy.channel.member import Member
from privet.privacy.plan_file import parse_plan, plan_text, read_plan
from privet.privacy.signed import sign
from privet.privacy.submission import Submission, resolve
from privet.server.control import Control
from privet.server.run_cli import _handed_in
from privet.server.run_record import RunState
from privet.server.run_text import event_line
from privet.server.run_watch import Watching, followed
from rich.console import Console
from run_grids import PATIENCE, LocalRunGrid, ended, three
from safetensors.numpy import load

PRIVATE = ("privacy.unit=record", "privacy.noise-multiplier=4.0", "privacy.delta=1e-5", "privacy.clip-norm=1.0")
LIMIT = "at delta 1e-5 (unit: record, add-or-remove-one)"
Out = pytest.CaptureFixture[str]


class Desk:
    """An operator's terminal: `type` runs a command line and gives exit code, stdout, stderr."""

    def __init__(self, office: Office, capsys: Out, monkeypatch: pytest.MonkeyPatch, plan: Path) -> None:
        self.office, self._capsys, self._monkeypatch, self.plan = office, capsys, monkeypatch, plan
        self.sit("alice")

    def sit(self, name: str, role: Role = Role.OPERATOR) -> None:
        if not (self.office.folder / name).exists():
            self.office.member(name, role)
        self._monkeypatch.setenv("PRIVET_HOME", str(self.office.folder / name))

    def type(self, line: str) -> tuple[int, str, str]:
        self._capsys.readouterr()
        code = run([part.replace("PLAN", str(self.plan)) for part in line.split()])
        said = self._capsys.readouterr()
        return code, said.out, said.err

    def submit(self, *settings: str) -> str:
        changes = " ".join(f"--set {setting}" for setting in settings)
        code, out, err = self.type(f"run submit PLAN --json {changes}")
        assert code == 0, err
        return str(json.loads(out)["run_id"])

    def done(self, *settings: str) -> str:
        run_id = self.submit(*settings)
        ended(self.office.runs, run_id)
        return run_id


@pytest.fixture(name="plan")
def _plan(tmp_path: Path) -> Path:
    text = (
        (Path(__file__).parents[1] / "conftest.py").read_text(encoding="utf-8").split('PLAN = """')[1].split('"""')[0]
    )
    path = tmp_path / "plan.toml"
    path.write_text(plan_text(parse_plan(text, "plan.toml")), encoding="utf-8")
    return path


@pytest.fixture(name="desk")
def _desk(tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch, plan: Path) -> Iterator[Desk]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    with serving(Office(tmp_path / "office")) as office:
        yield Desk(office, capsys, monkeypatch, plan)


def test_submitted_plan_is_signed_run_and_its_model_fetched(desk: Desk) -> None:
    code, out, err = desk.type("run submit PLAN " + " ".join(f"--set {setting}" for setting in PRIVATE))
    assert (code, err) == (0, "")
    submitted, claimed, following = out.splitlines()
    run_id = submitted.removeprefix("submitted run ")
    assert re.fullmatch(r"test-\d{8}-[0-9a-f]{4}", run_id)
    assert claimed.startswith("claimed: at most epsilon ")
    assert claimed.endswith(f"{LIMIT} for each node")
    assert following == f"next: privet run watch {run_id}"
    assert ended(desk.office.runs, run_id) is RunState.FINISHED
    code, out, _ = desk.type(f"run model {run_id} -o model.safetensors")
    assert (code, out.split(":")[0]) == (0, "wrote model.safetensors")
    assert load(Path("model.safetensors").read_bytes())["w"].shape == (2, 2)


def test_beginning_of_a_run_id_is_enough_where_it_is_the_only_one(desk: Desk) -> None:
    first = desk.done()
    assert json.loads(desk.type("run show test --json")[1])["run_id"] == first
    second = desk.done()
    code, _, err = desk.type("run show test")
    assert code == 2
    assert err.startswith("error: 2 runs begin with test: ")
    assert json.loads(desk.type(f"run show {second} --json")[1])["run_id"] == second


def test_unknown_run_is_answered_with_the_nearest(desk: Desk) -> None:
    run_id = desk.done()
    code, out, err = desk.type(f"run show {run_id[:-1]}x")
    assert (code, out) == (2, "")
    assert err == f"error: no run {run_id[:-1]}x; did you mean {run_id}?\ntry: privet run list\n"


def test_list_shows_the_newest_first(desk: Desk) -> None:
    assert desk.type("run list")[1] == "no runs; next: privet run submit PLAN\n"
    first, second = desk.done(), desk.done()
    lines = desk.type("run list")[1].splitlines()
    assert [line.split()[0] for line in lines] == [second, first]
    assert "finished  round 4 of 4" in lines[0]
    assert [told["run_id"] for told in json.loads(desk.type("run list --json")[1])] == [second, first]


def test_show_says_charged_and_executed_with_delta_unit_and_relation(desk: Desk) -> None:
    run_id = desk.done(*PRIVATE)
    out = desk.type(f"run show {run_id}")[1]
    assert re.search(r"charged (\d+\.\d\d), executed (\d+\.\d\d) \(node-1\) " + re.escape(LIMIT), out)
    charged, executed = map(float, re.search(r"charged ([\d.]+), executed ([\d.]+)", out).groups())  # type: ignore[union-attr]
    assert executed < charged
    assert "takes part: node-1, node-2, node-3" in out
    assert "SHA-256 " in out


def test_run_without_a_claim_says_so(desk: Desk) -> None:
    assert "no privacy claim" in desk.type(f"run show {desk.done()}")[1]


def test_logs_are_a_line_for_each_event_or_json(desk: Desk) -> None:
    run_id = desk.done("evaluation.every=2")
    lines = [line.split("  ", 1)[1] for line in desk.type(f"run logs {run_id}")[1].splitlines()]
    assert lines[:4] == ["submitted by alice", "waiting", "running", "takes part: node-1, node-2, node-3"]
    assert re.fullmatch(r"round 2: 3 answered in \d+\.\d s; accuracy 0\.5000", lines[5])
    assert lines[-1] == "finished"
    events = [json.loads(line) for line in desk.type(f"run logs {run_id} --json")[1].splitlines()]
    assert [event["number"] for event in events] == list(range(1, len(lines) + 1))


def test_following_ends_with_the_run_and_says_what_next(desk: Desk) -> None:
    code, out, err = desk.type("run submit PLAN --follow " + " ".join(f"--set {setting}" for setting in PRIVATE))
    assert (code, err) == (0, "")
    run_id = out.splitlines()[0].removeprefix("submitted run ")
    for number in (1, 2, 3, 4):
        assert f"round {number}: 3 answered in" in out
    assert re.search(r"charged [\d.]+, executed [\d.]+ \(node-1\) " + re.escape(LIMIT), out)
    assert out.splitlines()[-1] == f"next: privet run model {run_id} -o model.safetensors"


def test_following_in_json_gives_an_object_a_line(desk: Desk) -> None:
    code, out, _ = desk.type("run submit PLAN --follow --json")
    views = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert views[-1]["run"]["state"] == "finished"
    assert all(len(view) == 1 and set(view) <= {"event", "run", "notice"} for view in views)


def office_desk(
    folder: Path, plan: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> tuple[Office, Callable[[], Desk]]:
    office = Office(folder / "office", **changes)
    monkeypatch.chdir(folder)
    return office, lambda: Desk(office, capsys, monkeypatch, plan)


def test_failed_run_is_told_with_its_reason_and_exit_code_1(
    tmp_path: Path, plan: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [FakeNode("node-1"), FakeNode("node-2", describe=lambda _: "operator-not-pinned")]
    office, desk_at = office_desk(tmp_path, plan, capsys, monkeypatch, grid=lambda: LocalRunGrid(nodes))
    with serving(office):
        code, out, err = desk_at().type("run submit PLAN --follow")
    assert code == 1
    assert "refused: node-2 operator-not-pinned" in out
    assert re.search(
        r"error: run \S+ failed: 1 nodes say who they are, the plan needs 2: node-2 operator-not-pinned\ntry: .*"
        r"privet run resume \S+\n",
        err,
    )


def test_run_is_stopped_and_resumed_from_another_terminal(
    tmp_path: Path, plan: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    grids = [LocalRunGrid(three(), connected=0), LocalRunGrid(three())]
    office, desk_at = office_desk(tmp_path, plan, capsys, monkeypatch, grid=lambda: grids.pop(0))
    with serving(office):
        desk = desk_at()
        run_id = desk.submit()
        desk.sit("bob")
        code, out, _ = desk.type(f"run stop {run_id}")
        assert (code, out.split(": ")[1].split(";")[0] in ("stopping", "stopped")) == (0, True)
        assert ended(office.runs, run_id) is RunState.STOPPED
        code, _, err = desk.type(f"run watch {run_id}")
        assert (code, err) == (1, f"error: run {run_id} is stopped\ntry: privet run resume {run_id}\n")
        code, out, _ = desk.type(f"run resume {run_id} --json")
        assert (code, json.loads(out)["state"] in ("submitted", "waiting", "running")) == (0, True)
        assert ended(office.runs, run_id) is RunState.FINISHED
        assert "stopping by bob" in desk.type(f"run logs {run_id}")[1]
        code, _, err = desk.type(f"run stop {run_id}")
        assert (code, err.splitlines()[0]) == (2, f"error: run {run_id} is finished: it cannot become stopping")


def test_auditor_may_look_and_not_touch(desk: Desk) -> None:
    run_id = desk.done()
    desk.sit("dpo", Role.AUDITOR)
    for line in (f"run show {run_id}", f"run logs {run_id}", f"run watch {run_id}", "run list"):
        assert desk.type(line)[0] == 0
    for line in (f"run stop {run_id}", f"run resume {run_id}", f"run model {run_id} -o m.safetensors"):
        code, _, err = desk.type(line)
        assert code == 3
        assert f"run {run_id}: no rule permits it" in err
    code, _, err = desk.type("run submit PLAN")
    assert (code, err.splitlines()[0]) == (2, "error: spiffe://hearts/auditor/dpo is no operator")
    assert not Path("m.safetensors").exists()
    assert list(Path().glob(".m.safetensors*")) == []


def test_node_may_not_even_look(desk: Desk) -> None:
    desk.sit("st-marys", Role.NODE)
    code, _, err = desk.type("run list")
    assert (code, err.splitlines()[0]) == (3, "error: st-marys may not list the runs: no rule permits it")


def test_model_is_never_written_over_a_file_unless_forced(desk: Desk) -> None:
    run_id = desk.done()
    Path("model").write_text("mine")
    code, _, err = desk.type(f"run model {run_id} -o model")
    assert (code, err) == (2, "error: model: there is a file already\ntry: --force, or another name\n")
    assert Path("model").read_text() == "mine"
    assert desk.type(f"run model {run_id} -o model --force")[0] == 0
    assert load(Path("model").read_bytes())["w"].shape == (2, 2)


@pytest.mark.parametrize("target", ["missing/model", "."])
def test_model_is_not_fetched_where_it_cannot_be_written(desk: Desk, target: str) -> None:
    code, _, err = desk.type(f"run model {desk.done()} -o {target}")
    assert (code, "not a file that can be written" in err) == (2, True)


def test_model_that_was_changed_at_the_server_is_not_written(desk: Desk) -> None:
    run_id = desk.done()
    path = desk.office.runs.model_file(run_id)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    code, _, err = desk.type(f"run model {run_id} -o model")
    assert code == 1
    assert "was promised" in err
    path.write_bytes(path.read_bytes() + b"more")
    code, _, err = desk.type(f"run model {run_id} -o model")
    assert (code, "bytes came" in err) == (1, True)
    assert list(Path().glob("*model*")) == []


def test_model_of_a_run_that_has_none_is_an_error(
    tmp_path: Path, plan: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    office, desk_at = office_desk(tmp_path, plan, capsys, monkeypatch, grid=lambda: LocalRunGrid(three(), connected=0))
    with serving(office):
        desk = desk_at()
        code, _, err = desk.type(f"run model {desk.submit()} -o model")
    assert code == 2
    assert "it has no model yet" in err
    assert list(Path().glob("*model*")) == []


def test_witness_is_fetched_by_an_auditor(desk: Desk) -> None:
    desk.office.witness.write_text("a head\n")
    desk.sit("dpo", Role.AUDITOR)
    code, out, _ = desk.type("audit witness st-marys -o witness.jsonl")
    assert (code, out.splitlines()) == (
        0,
        ["wrote witness.jsonl: 7 bytes; next: privet audit ledger FILE --witness witness.jsonl"],
    )
    assert Path("witness.jsonl").read_text() == "a head\n"
    assert desk.type("audit witness st-marys -o witness.jsonl")[0] == 2
    code, _, err = desk.type("audit witness nobody -o other.jsonl")
    assert (code, err.splitlines()[0]) == (2, "error: no ledger of a node nobody was witnessed")
    assert not Path("other.jsonl").exists()


def test_server_that_does_not_run_is_named(
    tmp_path: Path, plan: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    office, desk_at = office_desk(tmp_path, plan, capsys, monkeypatch)
    code, _, err = desk_at().type("run list")
    assert code == 1
    assert f"error: {office.federation.home.facts.address} cannot be reached" in err
    assert "try: see that the server runs" in err


def test_home_that_joined_nothing_says_how_to_join(
    tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIVET_HOME", str(tmp_path / "nowhere"))
    assert run(["run", "list"]) == 2
    assert "privet join" in capsys.readouterr().err


def test_plan_that_is_wrong_is_refused_before_the_server_hears_of_it(desk: Desk) -> None:
    code, _, err = desk.type("run submit PLAN --set evaluation.every=9")
    assert code == 2
    assert "evaluation.every: 9, but there are 4 rounds" in err
    assert desk.office.runs.book.records() == []


def test_validity_is_signed_in_days(desk: Desk) -> None:
    code, out, _ = desk.type("run submit PLAN --json --validity 2")
    body = Submission.from_bytes(desk.office.runs.book.signed(json.loads(out)["run_id"]).submission).body
    assert code == 0
    assert body.expires[:10] > body.not_before[:10]
    assert json.loads(out)["valid_until"] == body.expires
    assert desk.type("run submit PLAN --validity 0")[0] == 2


# ---- following ----


def test_interrupted_watching_leaves_the_run_running(
    tmp_path: Path, plan: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    shows = threading.Event()

    class Shows(Control):
        async def Watch(self, request: Any, context: Any) -> Any:  # noqa: N802
            async for view in super().Watch(request, context):
                yield view
                shows.set()

    grid = LocalRunGrid(three(), connected=0)
    office, desk_at = office_desk(tmp_path, plan, capsys, monkeypatch, grid=lambda: grid, service=Shows)
    with serving(office):
        desk = desk_at()
        run_id = desk.submit()
        main_thread = threading.main_thread().ident
        assert main_thread is not None

        def press() -> None:
            assert shows.wait(PATIENCE)
            signal.pthread_kill(main_thread, signal.SIGINT)

        presser = threading.Thread(target=press)
        presser.start()
        code, _, err = desk.type(f"run watch {run_id}")
        presser.join(PATIENCE)
        assert (code, err) == (1, f"run {run_id} goes on; follow it again: privet run watch {run_id}\n")
        grid.connect(3)
        assert ended(office.runs, run_id) is RunState.FINISHED


class Flaky:
    """A client whose connection breaks after each event, as over restarts of a server."""

    def __init__(self, events: int, broken: int) -> None:
        self.events, self.broken, self.asked = events, broken, list[int]()

    def watch(self, run_id: str, after: int = 0, follow: bool = False) -> Iterator[dict[str, Any]]:
        self.asked.append(after)
        if self.broken and after:
            self.broken -= 1
            raise UnreachableError("nobody there", "look")
        if after < self.events:
            yield {"event": {"number": after + 1, "kind": "note", "time": "", "body": {}}}
            raise UnreachableError("broken", "look")


def test_following_survives_restarts_and_repeats_nothing() -> None:
    pauses: list[float] = []
    away: list[int] = []
    client = Flaky(events=3, broken=6)
    views = list(followed(client, "run-1", lambda: away.append(1), pauses.append))  # type: ignore[arg-type]
    assert [view["event"]["number"] for view in views] == [1, 2, 3]
    assert client.asked == [0, *[1] * 7, 2, 3]
    assert pauses[:7] == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert len(away) == 3, "told once for each time that the server was gone"


def test_following_a_server_that_was_never_there_fails_at_once() -> None:
    class Nobody:
        def watch(self, *_: object, **__: object) -> Iterator[dict[str, Any]]:
            raise UnreachableError("nobody there", "look")

    with pytest.raises(UnreachableError):
        next(followed(Nobody(), "run-1", lambda: None, lambda _: None))  # type: ignore[arg-type]


def shown(terminal: bool, views: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=200, color_system=None)
    with Watching(console) as watching:
        for view in views:
            watching.show(view)
        if watching._bar is not None:
            watching._bar[0].refresh()
    return out.getvalue()


RUN = {
    "run_id": "run-1", "state": "running", "round": 6, "rounds": 20, "metrics": {"accuracy": 0.91},
    "claim": {"epsilon": 3.0, "delta": 1e-5, "unit": "record", "relation": "add-or-remove-one"},
    "epsilon": {"executed": {"node-1": 1.613, "node-2": 1.2}, "charged": {"node-1": 3.0, "node-2": 3.0}},
    "traffic": {"sent": 12_000_000, "received": 3_400},
}  # fmt: skip


def notice(kind: str, **body: Any) -> dict[str, Any]:
    return {"notice": {"kind": kind, "body": {"round": 7, **body}}}


def test_terminal_shows_round_cohort_accuracy_epsilon_bytes_and_who_dropped() -> None:
    views = [
        {"run": RUN},
        notice("round-begun", cohort=["node-1", "node-2", "node-3"]),
        notice("answer", node="node-1", bytes=280, seconds=0.1),
        notice("missed", node="node-3", code="budget-exhausted"),
        notice("missed", node="node-4", code="policy-denied", disclosed="office-hours"),
    ]
    out = shown(True, views)
    assert "round 7: node-3 budget-exhausted" in out
    assert "round 7: node-4 policy-denied: office-hours" in out
    assert "round 6 of 20" in out
    assert "1 of 3 answered; accuracy 0.9100; " in out
    assert f"epsilon charged 3.00, executed 1.62 {LIMIT}" in out
    assert "12.0 MB out, 3.4 kB in" in out


def test_without_a_terminal_each_event_is_a_line_and_nothing_is_in_passing() -> None:
    body = {
        "round": 7,
        "answered": 2,
        "seconds": 1.25,
        "missing": {"node-3": "no-answer"},
        "metrics": {"accuracy": 0.9},
    }
    event = {"number": 9, "time": "2026-11-22T12:00:00.000Z", "kind": "round", "body": body}
    out = shown(
        False, [{"run": RUN}, notice("missed", node="node-3", code="no-answer"), {"event": event}, {"run": RUN}]
    )
    assert out.splitlines() == [
        f"claimed: at most epsilon 3 {LIMIT} for each node",
        f"charged 3.00, executed 1.62 (node-1) {LIMIT}",
        "2026-11-22T12:00:00.000Z  round 7: 2 answered in 1.2 s; accuracy 0.9000; missing: node-3 no-answer",
    ]


@pytest.mark.parametrize(
    ("kind", "body", "told"),
    [
        ("refused", {"node": "b", "code": "policy-denied", "disclosed": "office-hours"},
         "no answer from b: policy-denied: office-hours"),
        ("refused", {"node": "b", "code": "no-answer", "disclosed": ""}, "no answer from b: no-answer"),
        ("waits", {"nodes": {"c": "approval-pending: needs-steward"}},
         "waits for: c approval-pending: needs-steward"),
        ("waits", {"nodes": {}}, "waits for nobody any more"),
        ("roll", {"members": ["a"], "refused": {"b": "policy-denied: office-hours"}, "not_asked": {}},
         "takes part: a; refused: b policy-denied: office-hours"),
    ],
)  # fmt: skip
def test_reason_of_a_node_is_told_as_its_institution_lets_it_be(kind: str, body: dict[str, Any], told: str) -> None:
    assert event_line({"time": "t", "kind": kind, "body": body}) == f"t  {told}"


def test_text_of_a_node_is_no_markup() -> None:
    out = shown(True, [{"run": RUN}, notice("missed", node="[red]node[/red]", code="[link=x]")])
    assert "[red]node[/red] [link=x]" in out


def test_many_names_are_cut_in_a_line() -> None:
    members = [f"node-{number:03}" for number in range(100)]
    event = {"number": 1, "time": "t", "kind": "roll", "body": {"members": members}}
    assert shown(False, [{"event": event}]).strip().endswith("node-011, 88 more")


def test_lost_reply_to_a_submission_makes_one_run(desk: Desk) -> None:
    """The server enters the run, and the connection breaks before it says so."""

    class Loses(ControlClient):
        lost = 0

        def submit(self, signed: Any) -> dict[str, Any]:
            page = super().submit(signed)
            self.lost += 1
            if self.lost == 1:
                raise UnreachableError("broken", "again")
            return page

    member = Member.load(desk.office.folder / "alice" / "identity")
    submission = resolve(read_plan(desk.plan), federation="hearts", run_id="once", operator="alice", now=system_clock())
    client = Loses(lambda: dial(member), member.address)
    assert _handed_in(client, sign(submission, member.key, member.chain))["run_id"] == "once"
    assert client.lost == 2
    assert [record.run_id for record in desk.office.runs.book.records()] == ["once"]
