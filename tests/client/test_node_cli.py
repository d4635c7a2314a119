"""`privet node …` as an institution types it, without a node that runs."""

import json
from pathlib import Path

import pytest
from parties import Federation, make_federation
from privet.__main__ import run
from privet.client.health import is_running
from privet.client.state import MOST_WITHDRAWN, Orders, read_orders
from privet.privacy.alone import only_one
from privet.privacy.channel.member import IDENTITY, Member
from privet.privacy.errors import UsageError
from privet.privacy.home import Home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    home = Home(tmp_path / "st-marys")
    home.root.mkdir()
    monkeypatch.setenv("PRIVET_HOME", str(home.root))
    return home


@pytest.fixture
def federation(tmp_path: Path, home: Home) -> Federation:
    """Of which the home is a member; nobody listens at its addresses."""
    federation = make_federation(tmp_path / "coordinator")
    federation.member("st-marys", home.root)
    return federation


def test_pause_and_resume_are_kept_where_the_node_reads_them(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["node", "pause"]) == 0
    assert read_orders(home.orders) == Orders(is_paused=True)
    assert run(["node", "status"]) == 0
    assert "paused; next: privet node resume" in capsys.readouterr().out
    assert run(["node", "resume"]) == 0
    assert read_orders(home.orders) == Orders()


def test_withdrawal_is_for_good_and_counted_once(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert run(["node", "withdraw", "run-1"]) == 0
    assert run(["node", "pause"]) == 0
    assert run(["node", "withdraw", "run-2"]) == 0
    assert run(["node", "resume"]) == 0
    assert read_orders(home.orders) == Orders(False, ("run-1", "run-2"))
    capsys.readouterr()
    assert run(["node", "status", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["withdrawn"] == ["run-1", "run-2"]
    assert told["is_running"] is False


def test_withdrawals_have_a_limit(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    Orders(False, tuple(f"run-{number}" for number in range(MOST_WITHDRAWN))).write(home.orders)
    assert run(["node", "withdraw", "one-more"]) == 2
    assert "10000 runs are withdrawn from" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"withdrawn": 3}', b"\xff"])
def test_orders_that_privet_did_not_write_are_an_error_and_not_none(home: Home, content: bytes) -> None:
    """A node that was paused must not take part because the file was damaged."""
    home.orders.write_bytes(content)
    with pytest.raises(UsageError):
        read_orders(home.orders)


def test_status_of_a_home_where_no_node_runs(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.status.write_text("rubbish")
    assert run(["node", "status"]) == 0
    said = capsys.readouterr().out
    assert "no node runs in" in said
    assert "fingerprint" not in said


def test_status_shows_the_nodes_own_fingerprint(
    home: Home, federation: Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether it runs or not, and without the passphrase of its key: others pin it."""
    fingerprint = Member.load(home.root / IDENTITY).key.fingerprint
    assert run(["node", "status"]) == 0
    assert f"\nkey fingerprint {fingerprint}, for others to pin\n" in capsys.readouterr().out
    (home.root / IDENTITY / "chain.pem").write_text("rubbish")
    assert run(["node", "status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["key_fingerprint"] == ""


def test_status_tells_all_that_the_node_said(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    work = {"run_id": "run-1", "what": "train round 3", "is_busy": True, "answered": 2, "refused": "paused"}
    told = {"state": "disconnected", "since": "2026-01-01T00:00:00Z", "why": "no route", "pid": 7, "runs": [work]}
    more = {
        "tasks": {"digits": "1"},
        "apps": ["hello"],
        "operators": "pinned: alice",
        "peers": "pinned: north",
        "is_behind": "an older copy",
    }
    home.status.write_text(json.dumps(told | more | {"certificate_expires": "2026-01-02T00:00:00Z"}))
    with only_one(home.root / "node.lock", "taken", "wait"):
        assert is_running(home)
        assert run(["node", "status"]) == 0
    said = capsys.readouterr().out
    for part in (
        "disconnected since 2026-01-01T00:00:00Z: no route (process 7)",
        "offers tasks: digits 1",
        "allows apps: hello",
        "operators: pinned: alice",
        "cohorts: pinned: north",
        "certificate until 2026-01-02T00:00:00Z",
        "trains nothing: an older copy",
        "run run-1: train round 3, 2 answers, last refusal paused",
    ):
        assert part in said
    assert not is_running(home)


def test_node_of_a_home_that_nobody_joined_with_is_refused(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["node"]) == 2
    assert "nobody has joined a federation here" in capsys.readouterr().err


def test_leaving_is_asked_for_and_changes_nothing_where_it_is_declined(
    home: Home, federation: Federation, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert run(["node", "leave"]) == 0
    assert "nothing was changed" in capsys.readouterr().out


def test_check_names_what_is_not_ready(home: Home, federation: Federation, capsys: pytest.CaptureFixture[str]) -> None:
    home.settings.write_text("[operators]\nalice = 3\n")
    with federation.serving():
        assert run(["node", "--check"]) == 1
    said = capsys.readouterr()
    assert "ledger: nothing is declared; next: privet dataset add" in said.out
    assert "let this member in" in said.out
    assert "not ready: settings, ledger" in said.err
