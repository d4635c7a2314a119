"""Lines that are added to a file: whole ones, behind whole ones."""

import subprocess
import sys
from pathlib import Path

import pytest
from privet.privacy.channel.files import append_lines

# The second line does not fit. Part of it does, and a plain write would leave that.
FULL = """
import errno, resource, signal, sys
from pathlib import Path
from privet.privacy.channel.files import append_lines
path = Path(sys.argv[1])
append_lines(path, b"first\\n")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
try:
    append_lines(path, b"second, which is longer\\n")
except OSError as error:
    assert error.filename == str(path), error
    print(path.read_bytes())
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
append_lines(path, b"third\\n")
print(path.read_bytes())
"""


@pytest.mark.parametrize("kept", [b"", b"one\n", b"one\ntwo\n"])
@pytest.mark.parametrize("torn", [b"t", b"x" * 200_000])
def test_line_behind_a_torn_one_is_not_lost_with_it(tmp_path: Path, kept: bytes, torn: bytes) -> None:
    path = tmp_path / "lines"
    path.write_bytes(kept + torn)
    append_lines(path, b"next\nand next\n")
    assert path.read_bytes() == kept + b"next\nand next\n"


def test_full_disk_leaves_no_torn_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(tmp_path / "lines")]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert told.splitlines() == [r"b'first\n'", r"b'first\nthird\n'"]


def test_lines_of_a_folder_that_is_not_there_begin_one(tmp_path: Path) -> None:
    append_lines(tmp_path / "new" / "lines", b"one\n", survives_power_cut=True)
    assert (tmp_path / "new" / "lines").read_bytes() == b"one\n"
