"""Files that lie in memory when the disk is full, and rows that are looked for by their hash."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from privet.privacy.errors import CheckpointError
from privet.privacy.plan import Plan
from privet.privacy.plan_file import plan_text
from privet.simulations.mapped import MappedFile
from privet.simulations.shelf import Shelf

MODEL = {"a": np.zeros(25_000, np.float32)}
# In a file system of 4 MiB; each row is 100 kB. Without room made first, a write ends the process with SIGBUS.
SHELF = """
import sys
from pathlib import Path
import numpy as np
from privet.privacy.errors import CheckpointError
from privet.simulations.shelf import Shelf
path = Path(sys.argv[1]) / "answers" / "round.bin"
model = {"a": np.zeros(25_000, np.float32)}
shelf = Shelf(path, model, nodes=100)
written = 0
try:
    while True:
        row = shelf.place(1)
        shelf.rows[row] = written = written + 1
except CheckpointError as error:
    print(error.message, "|", error.remedy)
assert 20 < written < 41, written
assert [float(row[0]) for row in shelf.rows[:written]] == list(range(1, written + 1))
try:
    Shelf(path, model, nodes=100).expect(2, 60)
except CheckpointError:
    print("expected")
"""
VARIATES = """
import sys
from pathlib import Path
import numpy as np
from privet.privacy.errors import CheckpointError
from privet.privacy.plan import TrainingSection
from privet.simulations.variates import Variates
names = [f"node-{number}" for number in range(100)]
model = {"a": np.zeros(25_000, np.float32)}
section = TrainingSection.model_construct(local_steps=1, learning_rate=1.0)
variates = Variates(Path(sys.argv[1]) / "variates.bin", model, names, section)
try:
    for name in names:
        variates.make_room([name])
        variates.note([name], np.ones(25_000, np.float32), np.zeros((1, 25_000), np.float32))
except CheckpointError as error:
    print(error.message, "|", error.remedy)
print(name)
"""
# A round of 60 nodes has updates of 5.8 MB. Then the disk grows.
RUN = """
import subprocess, sys
from contextlib import closing
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[2])
from cohorts import CPU, AnyTask
from privet.privacy.errors import CheckpointError
from privet.privacy.plan_file import parse_plan
from privet.server.run_folder import RunFolder
from privet.simulations.scenario import Scenario
from privet.simulations.world import World
class Wide(AnyTask):
    def __init__(self):
        super().__init__(lambda: torch.nn.Linear(5, 4000), (5,))
    def shipped(self, options):
        return self.records(120)
torch.set_num_threads(1)
plan = parse_plan(sys.argv[3], "test.toml")
folder, world = RunFolder(Path(sys.argv[1]) / "run"), World.of(plan, Wide())
elsewhere = Path(sys.argv[4])
scenario = Scenario.begun(plan, folder, world, CPU, elsewhere, engine="cohort", processes=2)
with closing(scenario):
    try:
        scenario.run(lambda view: None)
    except CheckpointError as error:
        print(error.message.removeprefix(sys.argv[1]), "|", error.remedy)
subprocess.run(["mount", "-o", "remount,size=64m", sys.argv[1]], check=True)
again = Scenario(plan, scenario.submission, folder, world, CPU, elsewhere, engine="cohort", processes=2)
with closing(again):
    state = again.run(lambda view: None)
    standings = again.standings()
    print(state.round, {standing.attempts for standing in standings}, {standing.answered for standing in standings})
"""
# No room at all: the file cannot have its length.
LIMITED = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from privet.privacy.errors import CheckpointError
from privet.simulations.shelf import Shelf
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    Shelf(Path(sys.argv[1]) / "round.bin", {"a": np.zeros(25_000, np.float32)}, nodes=100)
except CheckpointError as error:
    print(error.message, "|", error.remedy)
"""


def on_a_small_disk(folder: Path, script: str, *arguments: str) -> str:
    """What it prints, where `folder` is a file system of 4 MiB."""
    own = ["unshare", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "--mount"]
    mount = "mount -t tmpfs -o size=4m small "
    is_able = (
        shutil.which("unshare")
        and not subprocess.run(
            [*own, "sh", "-c", f'{mount} "$1"', "sh", folder], check=False, capture_output=True
        ).returncode
    )
    if not is_able:
        pytest.skip("no small file system can be made here")
    inside = (
        f'{mount} "$1" && folder="$1" python="$2" script="$3" && shift 3 && exec "$python" -c "$script" "$folder" "$@"'
    )
    command = [*own, "sh", "-c", inside, "sh", str(folder), sys.executable, script, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done
    return done.stdout


def test_shelf_on_a_full_disk_is_an_error_with_a_remedy_and_no_bus_error(tmp_path: Path) -> None:
    refused, expected = on_a_small_disk(tmp_path, SHELF).splitlines()
    said = f"{tmp_path}/answers/round.bin: cannot be written: No space left on device | free space, then resume"
    assert refused == said
    assert expected == "expected"


def test_variates_on_a_full_disk_are_an_error_with_a_remedy_and_no_bus_error(tmp_path: Path) -> None:
    refused, name = on_a_small_disk(tmp_path, VARIATES).splitlines()
    said = f"{tmp_path}/variates.bin: cannot be written: No space left on device | free space, then resume"
    assert refused == said
    assert name in ("node-18", "node-19", "node-20")  # of those before, both c_i have their room


def test_run_whose_disk_is_full_ends_with_a_remedy_before_a_node_begins_and_can_be_resumed(
    make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    """A node that had begun would have spent its attempt."""
    small, support = tmp_path / "small", Path(__file__).parent.parent / "support"
    small.mkdir()
    plan = plan_text(make_plan("run.rounds=2", "simulation.nodes=60"))
    refused, resumed = on_a_small_disk(small, RUN, str(support), plan, str(tmp_path / "ledgers")).splitlines()
    assert refused == "/run/answers/round.bin: cannot be written: No space left on device | free space, then resume"
    assert resumed == "2 {2} {2}"


def test_shelf_that_cannot_have_its_length_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == f"{tmp_path}/round.bin: cannot be written: File too large | free space, then resume\n"


def test_room_that_is_made_changes_nothing_that_is_there(tmp_path: Path) -> None:
    """Neither where the system can reserve, nor where it must be written."""
    from privet.simulations import mapped

    file = MappedFile(tmp_path / "mapped", 3_000_000)
    file.memory[5:8], file.memory[2_500_000:2_500_003] = b"one", b"two"
    before = bytes(file.memory)
    file.make_room(3, 3_000_000)
    with (tmp_path / "mapped").open("r+b") as same:
        mapped._write_back(same.fileno(), 3, 2_999_997)
    assert bytes(file.memory) == before
    assert (tmp_path / "mapped").stat().st_size == 3_000_000


def test_rows_that_nobody_takes_have_no_place_on_the_disk(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "round.bin", MODEL, nodes=1000)
    shelf.expect(1, 3)
    shelf.rows[shelf.place(1)] = 1.0
    assert (tmp_path / "round.bin").stat().st_size > 800_000_000
    assert (tmp_path / "round.bin").stat().st_blocks * 512 < 2_000_000


def test_finding_every_row_takes_one_pass_over_them(tmp_path: Path) -> None:
    """Each pass is 400 hashes of 100 kB; by a pass for each row it took a hundred times as long."""
    written = Shelf(tmp_path / "round.bin", MODEL, nodes=50)
    digests = []
    for number in range(400):
        row = written.place(1)
        written.rows[row] = number
        digests.append(written.hash_of(row))
    begun = time.process_time()
    for row in range(400):
        written.hash_of(row)
    a_pass = time.process_time() - begun
    shelf, begun = Shelf(tmp_path / "round.bin", MODEL, nodes=50), time.process_time()
    for number, digest in enumerate(digests):
        found = shelf.find(digest)
        assert found is not None
        assert found.parameters["a"][-1] == number
    assert time.process_time() - begun < 20 * a_pass


def test_row_changed_after_rows_were_looked_for_is_no_answer(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "round.bin", MODEL, nodes=1)
    rows = [shelf.place(1) for _ in range(2)]
    shelf.rows[rows] = [[1.0], [2.0]]
    digests = [shelf.hash_of(row) for row in rows]
    assert shelf.find(digests[0]) is not None
    shelf.rows[rows[1], 7] = 3.0
    assert shelf.find(digests[1]) is None


def test_answers_made_after_rows_were_looked_for_are_found(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "round.bin", MODEL, nodes=1)
    assert shelf.find(hashlib.sha256(b"none").hexdigest()) is None
    for round_number in (1, 2):
        row = shelf.place(round_number)
        shelf.rows[row] = round_number
        answer = shelf.answer(row, shelf.hash_of(row))
        sums = shelf.keep_sums({"accuracy": round_number / 3})
        found, released = shelf.find(answer.hash), shelf.find(sums)
        assert found is not None
        assert found.parameters["a"][0] == round_number
        assert released is not None
        assert released.sums == {"accuracy": round_number / 3}


def test_a_full_disk_is_said_of_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError, match="cannot be written"):
        MappedFile(tmp_path / "file" / "round.bin", 100)
