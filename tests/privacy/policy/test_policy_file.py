"""A policy file that changes under a running process: what is not whole and valid never replaces what is."""

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from policy_cases import ALICE, NODE_CONTEXT, OTHERS, WARD7, changed
from privet.privacy.errors import PolicyError
from privet.privacy.policy.policy_file import PolicyFile, default_policy, nothing, read_rules
from privet.privacy.policy.rules import END, POLICY_BYTES, Question, Rules

PERMIT = '@id("all") permit (principal, action, resource);\n'
FORBID = (
    '@id("small") forbid (principal, action == Action::"admit", resource) unless { context.plan.epsilon <= 100 };\n'
)
WHOLE = f"{PERMIT}{FORBID}{END}\n"
ASKED = Question(ALICE, "admit", WARD7, NODE_CONTEXT["admit"], OTHERS)  # at epsilon 1: what `small` forbids
SMALL = Question(ALICE, "admit", WARD7, changed(NODE_CONTEXT["admit"], {"plan.epsilon": 100}), OTHERS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "policy.cedar"
    made.write_text(WHOLE)
    return made


def test_new_rules_hold_at_the_next_question(path: Path) -> None:
    file = PolicyFile(path)
    assert file.rules().decide(ASKED).rules == ("small",)
    path.write_text(f"{PERMIT}{END}\n")
    assert file.rules().decide(ASKED).rules == ("all",)
    assert file.problem == ""


def test_rules_are_parsed_once_while_the_file_stays(path: Path) -> None:
    file = PolicyFile(path)
    assert file.rules() is file.rules()


def test_file_written_in_pieces_never_permits_what_it_forbids_when_whole(path: Path) -> None:
    """Every prefix of the new text, as a reader finds it in the middle of a write."""
    path.write_text(f"{FORBID}{END}\n")
    file = PolicyFile(path)
    before = file.rules().hash
    for length in range(len(WHOLE)):
        path.write_text(WHOLE[:length])
        rules = file.rules()
        assert not rules.decide(ASKED).is_permitted, WHOLE[:length]
        assert (rules.hash == before) == (file.problem != ""), WHOLE[:length]
    path.write_text(WHOLE)
    assert (file.rules().hash, file.problem) == (Rules(WHOLE).hash, "")
    assert file.rules().decide(SMALL).is_permitted


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _unreadable(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_text(""), "cut short"),
    "without its forbid": (lambda path: path.write_text(PERMIT), "cut short"),
    "cut inside a rule": (lambda path: path.write_text(PERMIT[:20]), "cut short"),
    "cut inside a rule, and ended": (lambda path: path.write_text(f"{PERMIT[:20]}\n{END}\n"), "line 1"),
    "a directory": (_directory, "cannot be read"),
    "not UTF-8": (lambda path: path.write_bytes(b"\xff\xfe" + PERMIT.encode()), "not UTF-8"),
    "1 MB": (lambda path: path.write_bytes(b" " * 2**20 + WHOLE.encode()), f"allowed are {POLICY_BYTES}"),
    "two rules of one name": (lambda path: path.write_text(f"{PERMIT}{PERMIT}{END}\n"), "already"),
    "a rule without a name": (lambda path: path.write_text(f"{PERMIT[10:]}{END}\n"), "needs an @id"),
    "a template": (
        lambda path: path.write_text(f'@id("a") permit (principal == ?principal, action, resource);\n{END}\n'),
        "template",
    ),
    "nested deeply": (
        lambda path: path.write_text(f'@id("a") permit (principal, action, resource) when {{ {"(" * 5000}\n{END}\n'),
        "nested",
    ),
    "other words": (
        lambda path: path.write_text(PERMIT.replace(";", " when { context.plan.eps > 1 };") + f"{END}\n"),
        "eps",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_does_not_validate_replaces_nothing(path: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    file = PolicyFile(path)
    held = file.rules()
    breaks, why = BROKEN[what]
    breaks(path)
    with caplog.at_level(logging.INFO, "privet.policy"):
        assert [file.rules() for _ in range(3)] == [held] * 3
    assert why in file.problem
    assert str(path) in file.problem
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1  # once, not at every question
    assert f"rules {held.hash[:12]} hold on" in said[0]
    path.rmdir() if path.is_dir() else path.unlink()
    path.write_text(f"{PERMIT}{END}\n")
    assert file.rules().decide(ASKED).is_permitted
    assert file.problem == ""


@pytest.mark.parametrize("what", BROKEN)
def test_process_that_begins_with_a_broken_file_permits_nothing(path: Path, what: str) -> None:
    breaks, why = BROKEN[what]
    breaks(path)
    file = PolicyFile(path)
    assert file.rules() is nothing()
    assert why in file.problem
    with pytest.raises(PolicyError) as caught:
        read_rules(path)
    assert caught.value.message == file.problem


def test_file_that_is_taken_away_takes_its_permissions_away(path: Path) -> None:
    """Deleting it is the plainest way to say no; and what is half written afterwards permits nothing either."""
    file = PolicyFile(path)
    assert file.rules().decide(SMALL).is_permitted
    path.unlink()
    assert not file.rules().decide(SMALL).is_permitted
    assert "there is no policy" in file.problem
    path.write_text(PERMIT)
    assert not file.rules().decide(SMALL).is_permitted
    path.write_text(WHOLE)
    assert file.rules().decide(SMALL).is_permitted


def test_link_to_nowhere_is_no_policy(path: Path) -> None:
    file = PolicyFile(path)
    file.rules()
    _unreadable(path)
    assert file.rules() is nothing()


def test_file_put_in_the_place_of_another_is_seen_at_the_same_time_and_size(path: Path) -> None:
    """As an editor writes: a new file under the old name, which may bear the old one's time."""
    file = PolicyFile(path)
    file.rules()
    told = path.stat()
    other = path.with_suffix(".new")
    other.write_text(WHOLE.replace("100 }", "999 }"))
    os.utime(other, ns=(told.st_atime_ns, told.st_mtime_ns))
    assert other.stat().st_size == told.st_size
    other.replace(path)
    assert file.rules().hash == read_rules(path).hash


def test_many_threads_see_whole_rules_while_the_file_changes(path: Path) -> None:
    texts = [WHOLE, WHOLE.replace("100 }", "200 }"), WHOLE.replace("100 }", "1000 }")]
    known, seen = {Rules(text).hash for text in texts}, set[str]()
    file, is_done = PolicyFile(path), threading.Event()

    def ask() -> None:
        while not is_done.is_set():
            rules = file.rules()
            seen.add(rules.hash)
            assert not rules.decide(ASKED).is_permitted

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(60):
        other = path.with_suffix(".new")
        other.write_text(texts[number % 3])
        other.replace(path)
    is_done.set()
    for thread in threads:
        thread.join()
    assert seen <= known


def test_policies_that_ship_are_valid_and_end_with_their_mark() -> None:
    for side in ("node", "server"):
        assert Rules(default_policy(side)).rules  # type: ignore[arg-type]
    assert nothing().rules == ()
