"""A process that serves a run, and everything that can happen to it. Processes are real; the code in them is odd."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from privet.client.child import Child, environment_of
from privet.client.logs import LocalLog
from privet.client.pipe import Packet, Pipe
from privet.client.served import Served, WorkerSettings
from privet.privacy.errors import TaskError

SUPPORT = Path(__file__).parents[1] / "support"
ENVIRONMENT = {"PYTHONPATH": str(SUPPORT)}
LONG = 60.0  # seconds: a test that waits so long has failed

Make = Callable[..., Served]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    made: list[Served] = []

    def make(name: str = "run-1", seconds: float | None = LONG, memory: int | None = None, **head: object) -> Served:
        settings = WorkerSettings(
            tmp_path / "logs", seconds=seconds, memory_bytes=memory, environment=ENVIRONMENT, module="odd_child"
        )
        made.append(Served(name, head, settings))
        return made[-1]

    yield make
    for served in made:
        served.close()


def do(served: Served, what: str, **more: object) -> Packet:
    return served.ask(Packet({"do": what, **more}))


def is_gone(pid: int) -> bool:
    """Waits for the end of a process that need not be ours; a zombie has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], LONG)[0])
    finally:
        os.close(descriptor)


def log_of(tmp_path: Path, name: str = "run-1") -> str:
    return (tmp_path / "logs" / f"{name}.log").read_text()


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    found: list[object] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def fifo(tmp_path: Path) -> Path:
    path = tmp_path / f"fifo-{os.urandom(4).hex()}"
    os.mkfifo(path)
    return path


def test_warm_process_is_the_same_one(make: Make) -> None:
    served = make()
    assert served.pid is None
    assert served.open() is not None
    assert served.open() is None, "it is open already"
    first, second = (do(served, "echo").head["pid"] for _ in range(2))
    assert first == second == served.pid != os.getpid()


def test_arrays_and_bytes_come_back_as_they_were(make: Make) -> None:
    served, random = make(), np.random.default_rng(1)
    arrays = {
        "weight": random.standard_normal((300, 70)).astype(np.float32),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "scalar": np.array(np.nan, dtype=np.float32),
        "empty": np.empty((0, 4), dtype=np.float32),
        "ä/ü": np.array([-0.0, np.inf], dtype=np.float32),
    }
    back = served.ask(Packet({"do": "echo"}, arrays)).arrays
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert (back[name].shape, back[name].tobytes()) == (array.shape, array.tobytes())
    raw = os.urandom(3_000_001)
    assert bytes(served.ask(Packet({"do": "echo"}, raw=raw)).raw) == raw
    assert bytes(served.ask(Packet({"do": "echo"})).raw) == b""


@pytest.mark.parametrize(
    ("deed", "why"),
    [
        ("raise", "RuntimeError: patient 17"),
        ("exit", "it ended with exit status 7"),
        ("leave", "it ended with exit status 5"),
        ("segfault", "it was killed by signal 11 (SIGSEGV)"),
        ("kill", "it was killed by signal 9: out of memory?"),
        ("close", "it ended with exit status 1"),
        ("speak out of turn", "it did not keep to the protocol: not a packet"),
        ("answer twice", "its process did not keep to the protocol"),
    ],
)
def test_process_that_fails_is_an_error_and_the_next_request_starts_another(make: Make, deed: str, why: str) -> None:
    served = make()
    served.open()
    pid = served.pid
    with pytest.raises(TaskError) as caught:
        do(served, deed)
    assert why in caught.value.message
    assert pid is not None
    assert is_gone(pid)
    assert served.pid is None
    assert do(served, "echo").head["pid"] != pid


def test_end_of_a_process_is_reaped_and_logged_with_its_reason(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    served = make()
    served.open()
    pid = served.pid
    with pytest.raises(TaskError):
        do(served, "kill")
    with pytest.raises(ChildProcessError):  # no zombie is left
        os.waitpid(pid or 0, os.WNOHANG)
    assert "run-1: its process is gone: it was killed by signal 9: out of memory?" in caplog.text


DEEDS_AND_TRACES = [
    ("raise", "RuntimeError: patient 17"),
    ("segfault", "Segmentation fault"),
    ("print and die", "last words"),
]


@pytest.mark.parametrize(("deed", "trace"), DEEDS_AND_TRACES)
def test_traceback_of_a_crash_stands_in_the_local_log(make: Make, tmp_path: Path, deed: str, trace: str) -> None:
    with pytest.raises(TaskError):
        do(make(), deed)
    assert trace in log_of(tmp_path)


def test_what_cannot_be_opened_is_an_error_with_its_remedy(make: Make) -> None:
    served = make(fails=True)
    with pytest.raises(TaskError) as caught:
        served.open()
    assert (caught.value.message, caught.value.remedy) == ("unfit", "mend it")
    assert served.pid is None


def test_what_is_printed_goes_to_the_local_log_and_no_further(make: Make, tmp_path: Path) -> None:
    served = make()
    do(served, "print")
    assert do(served, "echo").head["pid"] == served.pid
    served.close()
    text = log_of(tmp_path)
    assert all(f"printed {where}" in text for where in ("to 1", "to stdout", "to stderr", "by another"))


def test_task_that_writes_to_low_descriptors_does_not_reach_the_socket(make: Make) -> None:
    served = make()
    do(served, "write to descriptors")
    assert do(served, "echo").head["pid"] == served.pid


def test_process_gets_no_secret_and_no_socket_but_its_own(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "PRIVET_PASSPHRASE": "s3cret-1",
        "PRIVET_HOME": "/s3cret-2",
        "AWS_SECRET_ACCESS_KEY": "s3cret-3",
        "HF_TOKEN": "s3cret-4",
        "DATABASE_URL": "postgresql://u:s3cret-5@db",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    ours, theirs = socket.socketpair()
    ours.set_inheritable(True)
    with ours, theirs:
        served = make()
        seen = do(served, "look").head
    assert "s3cret" not in json.dumps(seen)
    assert b"s3cret" not in Path(f"/proc/{served.pid}/environ").read_bytes()
    assert seen["environment"]["OMP_NUM_THREADS"] == "1"
    assert seen["environment"]["PATH"] == os.environ["PATH"]
    assert len(seen["descriptors"]) == 1
    assert seen["descriptors"][0] >= 200
    assert seen["core"] == 0, "a core file would hold records"
    assert int(seen["score"]) > int(Path("/proc/self/oom_score_adj").read_text())


def test_module_is_not_taken_from_the_folder_that_a_node_runs_in(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('a trap')")
    monkeypatch.chdir(tmp_path)
    served = make()
    assert not {"", str(tmp_path)} & set(do(served, "look").head["path"])


def test_environment_of_a_child_is_a_list_of_what_may_pass() -> None:
    given = {"PATH": "a", "LC_ALL": "b", "CUDA_VISIBLE_DEVICES": "0", "SSH_AUTH_SOCK": "c", "PRIVET_PASSPHRASE": "d"}
    assert environment_of(given) == {"PATH": "a", "LC_ALL": "b", "CUDA_VISIBLE_DEVICES": "0"}


def test_process_that_writes_to_too_much_memory_fails_and_the_node_lives_on(make: Make) -> None:
    served = make(memory=400 * 2**20)
    with pytest.raises(TaskError, match="MemoryError"):
        do(served, "hog")
    assert do(make("free"), "hog").head, "without a limit it may"


def test_request_that_takes_too_long_ends_with_its_process(make: Make, tmp_path: Path) -> None:
    served, path = make(seconds=0.2), fifo(tmp_path)
    served.open()
    pid = served.pid
    with pytest.raises(TaskError, match=r"it did not answer within 0\.2 seconds"):
        do(served, "wait", fifo=str(path))
    assert pid is not None
    assert is_gone(pid)


def test_time_given_with_a_request_counts_for_it(make: Make, tmp_path: Path) -> None:
    served = make(seconds=None)
    served.open()
    with pytest.raises(TaskError, match=r"within 0\.1 seconds"):
        served.ask(Packet({"do": "wait", "fifo": str(fifo(tmp_path))}), seconds=0.1)


def test_large_request_to_a_process_that_does_not_read_is_ended_in_time(make: Make, tmp_path: Path) -> None:
    """The socket's buffers are full long before the arrays are sent."""
    served = make(seconds=0.3)
    served.open()
    assert served.pid is not None
    os.kill(served.pid, signal.SIGSTOP)
    with pytest.raises(TaskError, match="seconds"):
        served.ask(Packet({"do": "echo"}, {"w": np.zeros(10_000_000, np.float32)}))


@pytest.mark.parametrize("way", ["cancel", "close"])
def test_request_is_ended_from_another_thread(make: Make, tmp_path: Path, way: str) -> None:
    served, path = make(seconds=None), fifo(tmp_path)
    thread, found = in_thread(lambda: do(served, "wait", fifo=str(path)))
    with path.open():  # it has begun
        assert served.is_busy
        assert not served.rest(), "who is asked does not rest"
        pid = served.pid
        served.cancel("the run was withdrawn") if way == "cancel" else served.close()
        thread.join(LONG)
    assert isinstance(found[0], TaskError)
    assert ("the run was withdrawn" if way == "cancel" else "it was let go") in found[0].message
    assert pid is not None
    assert is_gone(pid)
    if way == "cancel":
        assert do(served, "echo").head["pid"] != pid
    else:
        with pytest.raises(TaskError, match="let go"):
            do(served, "echo")


def test_killed_in_the_middle_of_a_request(make: Make, tmp_path: Path) -> None:
    served, path = make(seconds=None), fifo(tmp_path)
    thread, found = in_thread(lambda: do(served, "wait", fifo=str(path)))
    with path.open():
        assert served.pid is not None
        os.kill(served.pid, signal.SIGKILL)
        thread.join(LONG)
    assert isinstance(found[0], TaskError)
    assert "signal 9: out of memory?" in found[0].message


def test_process_that_falls_silent_and_stays_is_ended(make: Make, tmp_path: Path) -> None:
    served, path = make(seconds=None), fifo(tmp_path)
    thread, found = in_thread(lambda: do(served, "fall silent", fifo=str(path)))
    with path.open():
        pid = served.pid
        thread.join(LONG)
    assert "it closed its socket" in str(found[0])
    assert pid is not None
    assert is_gone(pid)


def test_rest_lets_the_process_go_until_it_is_needed(make: Make) -> None:
    served = make()
    pid = do(served, "echo").head["pid"]
    assert served.rest()
    assert is_gone(pid)
    assert served.pid is None
    assert do(served, "echo").head["pid"] != pid


def test_process_that_does_not_end_when_asked_is_ended(make: Make) -> None:
    served = make()
    pid = do(served, "echo").head["pid"]
    os.kill(pid, signal.SIGSTOP)
    served.close()
    assert is_gone(pid)
    served.close()


@pytest.mark.parametrize("deed", ["leave a child behind", "fork"])
@pytest.mark.parametrize("end", ["close", "crash"])
def test_what_a_process_left_behind_ends_with_it(make: Make, deed: str, end: str) -> None:
    """A fork holds the socket too: its end must not be waited for."""
    served = make(seconds=None)
    left = do(served, deed).head["left"]
    if end == "close":
        served.close()
    else:
        with pytest.raises(TaskError):
            do(served, "exit")
    assert is_gone(left)


def test_end_of_a_process_is_seen_though_another_holds_its_socket(make: Make, tmp_path: Path) -> None:
    """One that left the group and stays cannot be ended from here, and must not be waited for."""
    served, left = make(seconds=None), tmp_path / "left"
    try:
        with pytest.raises(TaskError, match="exit status 3"):
            do(served, "fork away and die", file=str(left), fifo=str(fifo(tmp_path)))
    finally:
        os.kill(int(left.read_text()), signal.SIGKILL)


def test_two_runs_at_once_do_not_wait_for_each_other(make: Make, tmp_path: Path) -> None:
    first, second, path = make("run-1", seconds=None), make("run-2", seconds=None), fifo(tmp_path)
    thread, found = in_thread(lambda: do(first, "wait", fifo=str(path)))
    with path.open():
        assert do(second, "echo").head["pid"] != first.pid
        first.cancel("enough")
        thread.join(LONG)
    assert do(second, "echo").head["pid"] == second.pid
    assert found


PARENT = """
import sys
from pathlib import Path
from privet.client.pipe import Packet, Pipe
from privet.client.served import Served, WorkerSettings
served = Served("run-1", {{}}, WorkerSettings(Path({logs!r}), environment={environment!r}, module="odd_child"))
served.open()
print(served.pid, flush=True)
served.ask(Packet({{"do": {deed!r}, "fifo": {fifo!r}}}))
"""


@pytest.mark.parametrize("deed", ["wait", "hold the interpreter"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_process_ends_with_its_parent(tmp_path: Path, deed: str, number: int) -> None:
    """Also while it computes, and where no thread of Python could tell it to."""
    path = fifo(tmp_path)
    program = PARENT.format(logs=str(tmp_path / "logs"), environment=ENVIRONMENT, deed=deed, fifo=str(path))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        with path.open():
            os.kill(parent.pid, number)
            parent.wait(LONG)
            assert is_gone(pid)


@pytest.mark.parametrize("busy", [True, False])
def test_process_ends_with_its_socket(tmp_path: Path, busy: bool) -> None:
    """Whatever the system does about orphans."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = by_hand(theirs, os.getpid())
    pipe, path = Pipe(ours), fifo(tmp_path)
    pipe.send(Packet({"memory_bytes": None}))
    assert pipe.receive() is not None
    pipe.send(Packet({"do": "wait" if busy else "echo", "fifo": str(path)}))
    if busy:
        with path.open():
            pipe.close()
            assert process.wait(LONG) == 0
    else:
        assert pipe.receive() is not None
        pipe.close()
        assert process.wait(LONG) == 0


def test_process_whose_parent_is_another_ends_at_once() -> None:
    """Its parent died before the system could be asked to end it with its parent."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert by_hand(theirs, os.getppid()).wait(LONG) == 1


def by_hand(end: socket.socket, parent: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "odd_child", str(end.fileno()), str(parent)]
    return subprocess.Popen(command, pass_fds=(end.fileno(),), env={**os.environ, **ENVIRONMENT})


def test_process_outlives_the_thread_that_asked_for_it(make: Make) -> None:
    """The system ends a child with the thread that started it: no thread of the node's may be that one."""
    served = make()
    thread, _ = in_thread(served.open)
    thread.join(LONG)
    pid = served.pid
    assert pid is not None
    assert do(served, "echo").head["pid"] == pid


def test_log_is_bounded_and_keeps_the_newest_words(tmp_path: Path) -> None:
    log = LocalLog(tmp_path / "logs" / "run.log", most_bytes=1000)
    for number in range(200):
        log.add(f"line {number}\n".encode())
    log.add(b"x" * 5000 + b"end")
    files = sorted(log.path.parent.iterdir())
    assert [file.name for file in files] == ["run.log", "run.log.1"]
    assert all(file.stat().st_size <= 1000 for file in files)
    assert files[0].read_bytes().endswith(b"xend")
    assert files[1].read_text().endswith("line 199\n")
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    assert log.path.parent.stat().st_mode & 0o777 == 0o700


def test_child_that_cannot_be_started_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    served = Served("run-1", {}, WorkerSettings(tmp_path / "logs"))
    with pytest.raises(TaskError, match="no process could be started"):
        served.open()


def test_closed_child_can_be_closed_again(tmp_path: Path) -> None:
    child = Child("odd_child", tmp_path / "a.log", environment=ENVIRONMENT)
    child.close()
    child.close()
    child.kill("again")
    assert not child.is_alive
