"""The log of decisions: a line for each, bounded, followed over a rotation, and never in a call's way."""

import json
import logging
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from privet.privacy.policy.rules import Decision, Entity, Question, Verdict
from privet.server.decision_log import START, DecisionLog, Place, former_of, read_decisions

NOW = datetime(2027, 6, 30, 12, 0, tzinfo=UTC)
PERMITTED = Decision(Verdict.PERMITTED, ("operators-steer",), "cafe" * 16)
DENIED = Decision(Verdict.DENIED, (), "cafe" * 16)


def question(action: str = "stop", run: str = "run-1") -> Question:
    operator = Entity(("Operator", "alice"), {"key": "ab12", "isPinned": False}, (("Project", "hearts"),))
    return Question(operator, action, Entity(("Run", run), {"state": "running", "members": ["m"] * 3}), {"tls": 13})


def runs(path: Path, after: Place = START) -> tuple[list[str], Place]:
    """The runs that are told of after a place, and the place after them."""
    found = []
    for line, place in read_decisions(path, after):
        found.append(line["resource"].removeprefix("Run::"))
        after = place
    return found, after


def test_line_says_who_asked_what_and_what_decided(tmp_path: Path) -> None:
    DecisionLog(tmp_path / "log").enter(question(), DENIED, NOW)
    assert json.loads((tmp_path / "log").read_text()) == {
        "time": "2027-06-30T12:00:00.000Z",
        "principal": "Operator::alice",
        "action": "stop",
        "resource": "Run::run-1",
        "verdict": "denied",
        "rules": [],
        "policy": "cafe" * 16,
        "error": "",
        "context": {"tls": 13},
        "facts": {
            "principal": {"key": "ab12", "isPinned": False, "within": ["Project::hearts"]},
            "resource": {"state": "running", "within": []},
        },
    }
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("action", ["checkHealth", "renew"])
def test_what_members_do_by_the_clock_is_entered_only_where_it_is_denied(tmp_path: Path, action: str) -> None:
    log = DecisionLog(tmp_path / "log")
    log.enter(question(action), PERMITTED, NOW)
    assert list(read_decisions(tmp_path / "log")) == []
    log.enter(question(action), DENIED, NOW)
    assert [line["action"] for line, _ in read_decisions(tmp_path / "log")] == [action]


def test_log_is_bounded_and_followed_over_its_rotation(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = DecisionLog(path, largest=2000)  # four lines or five
    seen, place = list[str](), START
    for number in range(40):
        log.enter(question(run=f"run-{number}"), PERMITTED, NOW)
        found, place = runs(path, place)
        seen += found
    assert seen == [f"run-{number}" for number in range(40)]
    assert max(path.stat().st_size, former_of(path).stat().st_size) <= 2000
    kept, _ = runs(path)
    assert kept == seen[-len(kept) :]
    assert len(kept) >= 5
    assert sorted(one.name for one in tmp_path.iterdir() if one.is_file()) == ["log", "log.1"]


def test_reader_that_was_away_for_long_gets_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = DecisionLog(path, largest=2000)
    log.enter(question(run="run-0"), PERMITTED, NOW)
    _, place = runs(path)
    for number in range(1, 40):
        log.enter(question(run=f"run-{number}"), PERMITTED, NOW)
    found, _ = runs(path, place)
    assert found[-1] == "run-39"
    assert found == [f"run-{number}" for number in range(40 - len(found), 40)]


def test_line_that_is_not_whole_is_left_for_the_next_time_and_rubbish_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log"
    DecisionLog(path).enter(question(), PERMITTED, NOW)
    line = path.read_text()
    path.write_text(f"rubbish\n[3]\n{line}{line[:40]}")
    found, place = runs(path)
    assert found == ["run-1"]
    with path.open("a") as file:
        file.write(line[40:])
    assert runs(path, place)[0] == ["run-1"]


def test_log_that_is_not_there_tells_nothing(tmp_path: Path) -> None:
    assert list(read_decisions(tmp_path / "log")) == []


def test_log_that_cannot_be_written_is_said_once_and_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "away"
    log = DecisionLog(folder / "log")
    with caplog.at_level(logging.ERROR, "privet.server"):
        for _ in range(3):
            log.enter(question(), DENIED, NOW)
        assert caplog.text.count("cannot be written") == 1
        folder.mkdir()
        log.enter(question(), DENIED, NOW)
        assert len(list(read_decisions(folder / "log"))) == 1
        (folder / "log").unlink()
        folder.rmdir()
        log.enter(question(), DENIED, NOW)
    assert caplog.text.count("cannot be written") == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the machine has no disk that is always full")
def test_disk_that_is_full_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    log = DecisionLog(Path("/dev/full"))
    for _ in range(2):
        log.enter(question(), DENIED, NOW)
    assert caplog.text.count("No space left") == 1


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = DecisionLog(path, largest=20_000)
    threads = [
        threading.Thread(target=lambda: [log.enter(question(), PERMITTED, NOW) for _ in range(50)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = (former_of(path).read_text() + path.read_text()).splitlines()
    assert all(json.loads(line)["action"] == "stop" for line in kept)
