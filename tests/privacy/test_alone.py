"""One process at a time, as long as it lives."""

import subprocess
import sys
from pathlib import Path

import pytest
from privet.privacy.alone import is_held, only_one
from privet.privacy.errors import UsageError

HOLD = """
import sys
from pathlib import Path
from privet.privacy.alone import only_one
with only_one(Path(sys.argv[1]), "", ""):
    print("held", flush=True)
    sys.stdin.read()
"""

# The first process waits to be killed, its child for the end of what both read.
FORK = """
import os, signal, sys
from pathlib import Path
from privet.privacy.alone import only_one
with only_one(Path(sys.argv[1]), "", "", with_children=False):
    if os.fork() == 0:
        print("held", flush=True)
        sys.stdin.read()
        print("child", flush=True)
        os._exit(0)
    signal.pause()
"""


def test_second_process_is_refused_until_the_first_is_gone_however_it_ends(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_held(lock)
        with pytest.raises(UsageError, match="runs already"), only_one(lock, "runs already", "stop it"):
            raise AssertionError("two hold one lock")
        holder.kill()
        holder.wait(20)
    assert not is_held(lock)
    with only_one(lock, "runs already", "stop it"):
        assert is_held(lock)


def test_lock_that_nobody_has_made_is_not_held_and_is_not_made_by_looking(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "lock")
    assert not (tmp_path / "lock").exists()


def test_lock_of_a_process_alone_is_free_when_it_is_killed_though_its_child_lives(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    command = [sys.executable, "-c", FORK, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        refused = pytest.raises(UsageError, match="runs already")
        with refused, only_one(lock, "runs already", "stop it", with_children=False):
            raise AssertionError("two hold one lock")
        holder.kill()
        holder.wait(20)
        with only_one(lock, "runs already", "stop it", with_children=False):
            holder.stdin.close()
            assert holder.stdout.read() == "child\n"  # it had lived all the while
