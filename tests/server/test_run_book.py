"""The book of runs: what may follow what, what is durable, what is refused. On SQLite and, where it is, PostgreSQL."""

import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from privet.privacy.errors import FederationError, PrivetError, RefusedError, UsageError
from privet.privacy.signed import SignedSubmission
from privet.server.database import open_database
from privet.server.run_book import BODY_BYTES, MOST_LISTED, RunBook, unknown_run
from privet.server.run_record import MAY_FOLLOW, NewRun, RunError, RunState
from run_grids import CERTIFICATES

MOMENT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
S = RunState
POSTGRES = shutil.which("postgres")
_NOBODY = 65534


@pytest.fixture(name="postgres", scope="module")
def _postgres() -> Iterator[str]:
    """A PostgreSQL server of this test's own, as a user without rights: it refuses to run as root."""
    if POSTGRES is None:
        pytest.skip("no postgres on this machine")
    pytest.importorskip("psycopg")
    is_root = os.getuid() == 0
    folder = Path(tempfile.mkdtemp(prefix="privet-postgres-"))  # pytest's own folders are closed to other users
    if is_root:
        os.chown(folder, _NOBODY, _NOBODY)
    as_nobody = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if is_root else {}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    initdb = [str(Path(POSTGRES).with_name("initdb")), "-D", str(folder / "data"), "-U", "privet", "--auth=trust"]
    subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **as_nobody)
    listening = ["-h", "127.0.0.1", "-p", str(port), "-c", "unix_socket_directories=", "-c", "fsync=off"]
    command = [POSTGRES, "-D", str(folder / "data"), *listening]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder, **as_nobody) as server:
        try:
            assert server.stderr is not None
            said = ""
            while "ready to accept connections" not in said:
                line = server.stderr.readline()
                assert line, said
                said += line
            threading.Thread(target=server.stderr.read, daemon=True).start()
            yield f"postgresql+psycopg://privet@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # ends connections that are still open
            server.wait(20)
            shutil.rmtree(folder)


_names = itertools.count(1)


@pytest.fixture(params=["sqlite", "postgresql"], name="book")
def _book(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunBook]:
    """An empty book."""
    if request.param == "sqlite":
        engine = open_database(f"sqlite:///{tmp_path / 'server.sqlite'}")
    else:
        import psycopg

        url = request.getfixturevalue("postgres")
        name = f"book{next(_names)}"
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        engine = open_database(url.rsplit("/", 1)[0] + f"/{name}")
    yield RunBook(engine, lambda: MOMENT)
    engine.dispose()


def run(run_id: str = "run-1") -> NewRun:
    return NewRun(run_id, "digits", "training", "alice", 4)


def signed(content: bytes = b"{}", signature: bytes = b"signed") -> SignedSubmission:
    return SignedSubmission(content, signature, CERTIFICATES)


def in_state(book: RunBook, state: RunState, run_id: str = "run-1") -> None:
    """Lead a new run to a state by the shortest way."""
    book.add(run(run_id), signed())
    ways = {
        S.SUBMITTED: [],
        S.WAITING: [S.WAITING],
        S.RUNNING: [S.RUNNING],
        S.STOPPING: [S.STOPPING],
        S.STOPPED: [S.STOPPING, S.STOPPED],
        S.FINISHED: [S.RUNNING, S.FINISHED],
        S.FAILED: [S.FAILED],
    }
    for step in ways[state]:
        book.move(run_id, step)


def test_new_run_is_submitted_and_says_who_submitted_it(book: RunBook) -> None:
    assert book.add(run(), signed()) is True
    record = book.record("run-1")
    assert (record.state, record.operator, record.rounds, record.round) == (S.SUBMITTED, "alice", 4, 0)
    assert (record.created, record.started, record.ended) == ("2026-11-22T12:00:00.000Z", None, None)
    [event] = book.events("run-1")
    assert (event.number, event.kind, event.body) == (1, "submitted", {"operator": "alice"})
    assert book.signed("run-1") == signed()


def test_same_submission_again_is_no_news(book: RunBook) -> None:
    book.add(run(), signed())
    book.move("run-1", S.RUNNING)
    assert book.add(run(), signed(signature=b"another of the same")) is False
    assert book.record("run-1").state is S.RUNNING
    assert len(book.events("run-1")) == 2
    assert book.signed("run-1").signature == b"signed"


def test_other_submission_under_the_same_run_id_is_refused(book: RunBook) -> None:
    book.add(run(), signed())
    with pytest.raises(RefusedError, match="taken by another submission") as error:
        book.add(run(), signed(b'{"other":1}'))
    assert error.value.code == "other-submission"
    assert book.signed("run-1").submission == b"{}"


# What may follow what, written down a second time: table and book are compared with it.
ALLOWED = {
    (S.SUBMITTED, S.WAITING), (S.SUBMITTED, S.RUNNING), (S.SUBMITTED, S.STOPPING), (S.SUBMITTED, S.FAILED),
    (S.WAITING, S.RUNNING), (S.WAITING, S.STOPPING), (S.WAITING, S.FAILED), (S.WAITING, S.SUBMITTED),
    (S.RUNNING, S.WAITING), (S.RUNNING, S.FINISHED), (S.RUNNING, S.STOPPING), (S.RUNNING, S.FAILED),
    (S.RUNNING, S.SUBMITTED),
    (S.STOPPING, S.STOPPED), (S.STOPPING, S.FINISHED), (S.STOPPING, S.FAILED),
    (S.STOPPED, S.SUBMITTED), (S.FAILED, S.SUBMITTED),
}  # fmt: skip


def test_table_of_states_is_the_one_that_was_agreed() -> None:
    assert {(before, after) for before, following in MAY_FOLLOW.items() for after in following} == ALLOWED
    assert set(MAY_FOLLOW) == set(RunState)


def test_every_change_of_state_is_allowed_or_refused_as_agreed(book: RunBook) -> None:
    for number, (before, after) in enumerate(itertools.product(RunState, RunState)):
        run_id = f"run-{number}"
        in_state(book, before, run_id)
        events = len(book.events(run_id))
        if (before, after) in ALLOWED:
            assert book.move(run_id, after).state is after
            assert [event.kind for event in book.events(run_id)[events:]] == [after.value]
        else:
            with pytest.raises(UsageError, match=f"run {run_id} is {before}: it cannot become {after}"):
                book.move(run_id, after)
            assert book.record(run_id).state is before
            assert len(book.events(run_id)) == events, "what is refused leaves no event"


def test_failure_is_kept_until_the_run_is_resumed(book: RunBook) -> None:
    in_state(book, S.RUNNING)
    failure = RunError("federation", "1 nodes answer", "look there")
    record = book.move("run-1", S.FAILED, error=failure)
    assert (record.error, record.ended is not None) == (failure, True)
    assert book.events("run-1")[-1].body == {"code": "federation", "text": "1 nodes answer"}
    resumed = book.move("run-1", S.SUBMITTED)
    assert (resumed.error, resumed.ended) == (None, None)


def test_start_is_the_first_one(tmp_path: Path) -> None:
    moments = itertools.count()
    book = RunBook(
        open_database(f"sqlite:///{tmp_path / 'server.sqlite'}"), lambda: datetime.fromtimestamp(next(moments), UTC)
    )
    in_state(book, S.RUNNING)
    started = book.record("run-1").started
    for state in (S.SUBMITTED, S.WAITING, S.RUNNING):
        book.move("run-1", state)
    assert book.record("run-1").started == started


def test_event_of_a_round_brings_round_and_standing_with_it(book: RunBook) -> None:
    in_state(book, S.RUNNING)
    book.tell("run-1", "round", {"round": 3}, round_number=3, standing={"participations": {"a": 3}})
    record = book.record("run-1")
    assert (record.round, record.standing, record.events) == (3, {"participations": {"a": 3}}, 3)
    book.tell("run-1", "roll", {})
    assert book.record("run-1").round == 3


def test_events_are_numbered_without_gap_and_read_after_a_number(book: RunBook) -> None:
    in_state(book, S.RUNNING)
    for number in range(5):
        book.tell("run-1", "note", {"n": number})
    assert [event.number for event in book.events("run-1")] == list(range(1, 8))
    assert [event.body for event in book.events("run-1", after=5)] == [{"n": 3}, {"n": 4}]
    assert book.events("run-1", after=7) == []


def test_events_of_two_runs_are_kept_apart(book: RunBook) -> None:
    in_state(book, S.SUBMITTED, "run-1")
    in_state(book, S.FAILED, "run-2")
    assert [event.kind for event in book.events("run-1")] == ["submitted"]
    assert book.record("run-1").state is S.SUBMITTED


def test_long_log_is_read_in_pages(tmp_path: Path) -> None:
    book = RunBook(open_database(f"sqlite:///{tmp_path / 'server.sqlite'}"))
    in_state(book, S.RUNNING)
    for number in range(MOST_LISTED + 5):
        book.tell("run-1", "note", {"n": number})
    page = book.events("run-1")
    assert len(page) == MOST_LISTED
    assert [event.body["n"] for event in book.events("run-1", page[-1].number)] == list(
        range(MOST_LISTED - 2, MOST_LISTED + 5)
    )


def test_threads_that_change_one_run_at_once_never_both_succeed(book: RunBook) -> None:
    in_state(book, S.RUNNING)
    barrier, won = threading.Barrier(8), []

    def change(state: RunState) -> None:
        barrier.wait(20)
        try:
            book.move("run-1", state)
            won.append(state)
        except UsageError:
            pass

    threads = [threading.Thread(target=change, args=(s,)) for s in [S.STOPPING, S.FAILED] * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    # Stopping may become failed, nothing else may follow: at most one of each.
    assert won in ([S.FAILED], [S.STOPPING, S.FAILED]) or (set(won) == {S.STOPPING, S.FAILED} and len(won) == 2)
    assert [event.number for event in book.events("run-1")] == list(range(1, 3 + len(won)))


def test_unknown_run_is_an_error_that_names_no_other(book: RunBook) -> None:
    """Whoever asks may not know of the others: policy.py adds the nearest that it may watch."""
    in_state(book, S.SUBMITTED, "digits-20261122-a1b2")
    for ask in (book.record, book.signed, lambda run_id: book.move(run_id, S.STOPPING)):
        with pytest.raises(UsageError, match=r"no run digits-20261122-a1b3$"):
            ask("digits-20261122-a1b3")
    with pytest.raises(UsageError, match=r"no run nothing-like-it$"):
        book.tell("nothing-like-it", "note", {})
    assert book.events("nothing-like-it") == []
    known = ["hearts-20261122-ffff", "digits-20261122-a1b2"]
    assert unknown_run("digits-20261122-a1b3", known).message.endswith("; did you mean digits-20261122-a1b2?")


def test_runs_are_listed_newest_first_and_by_state(tmp_path: Path) -> None:
    moments = itertools.count()
    book = RunBook(
        open_database(f"sqlite:///{tmp_path / 'server.sqlite'}"), lambda: datetime.fromtimestamp(next(moments), UTC)
    )
    for run_id, state in (("a", S.FINISHED), ("c", S.FAILED), ("b", S.FINISHED)):
        in_state(book, state, run_id)
    assert [record.run_id for record in book.records()] == ["b", "c", "a"]
    assert [record.run_id for record in book.records(S.FINISHED)] == ["b", "a"]
    assert book.records(S.RUNNING, S.WAITING) == []


@pytest.mark.parametrize(
    "content",
    [
        SignedSubmission(b"x" * 65537, b"s", CERTIFICATES),
        SignedSubmission(b"{}", b"s" * 73, CERTIFICATES),
        SignedSubmission(b"{}", b"s", CERTIFICATES * 100),
        SignedSubmission(b"{}", b"", CERTIFICATES),
    ],
)
def test_oversized_or_missing_part_of_a_submission_is_refused(book: RunBook, content: SignedSubmission) -> None:
    with pytest.raises(RefusedError) as error:
        book.add(run(), content)
    assert error.value.code == "not-signed"
    assert book.records() == []


def test_oversized_event_keeps_its_numbers_and_says_that_it_was_shortened(book: RunBook) -> None:
    in_state(book, S.RUNNING)
    book.tell("run-1", "round", {"round": 7, "missing": {"node": "x" * BODY_BYTES}})
    assert book.events("run-1")[-1].body == {"round": 7, "is_shortened": True}


def test_text_of_any_kind_is_kept_as_it_was(book: RunBook) -> None:
    in_state(book, S.RUNNING)
    text = "\x00 \x1b[2J \ud800 ü 無"
    book.tell("run-1", "note", {"text": text})
    assert book.events("run-1")[-1].body == {"text": text}


def test_long_error_is_cut(book: RunBook) -> None:
    failure = RunError.of(PrivetError("m" * 10_000, "r" * 10_000))
    assert (len(failure.text), len(failure.remedy), failure.code) == (2000, 2000, "privet")


def test_what_was_entered_is_there_for_another_process(book: RunBook, tmp_path: Path) -> None:
    in_state(book, S.RUNNING)
    book.tell("run-1", "round", {"round": 1}, round_number=1)
    engine = open_database(book._engine.url.render_as_string(hide_password=False))
    again = RunBook(engine)
    assert again.record("run-1") == book.record("run-1")
    assert again.events("run-1") == book.events("run-1")
    engine.dispose()


def test_states_are_durable_again_after_an_event_that_waited_for_no_disk(book: RunBook) -> None:
    """The connection goes back to a pool that the whole server shares."""
    in_state(book, S.RUNNING)
    book.tell("run-1", "round", {"round": 1}, round_number=1)
    asked = "PRAGMA synchronous" if book._engine.dialect.name == "sqlite" else "SHOW synchronous_commit"
    with book._engine.connect() as connection:
        assert connection.exec_driver_sql(asked).scalar_one() in (2, "on")


def test_database_that_fails_is_a_clear_error(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'server.sqlite'}")
    book = RunBook(engine)
    in_state(book, S.RUNNING)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE run_events")
    with pytest.raises(FederationError, match="the server's database failed") as error:
        book.move("run-1", S.FAILED)
    assert "disk" in error.value.remedy
    assert book.record("run-1").state is S.RUNNING, "the state did not change without its event"
