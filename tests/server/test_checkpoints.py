"""Checkpoints: whole or not at all, and of one submission only."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from privet.privacy.errors import CheckpointError
from privet.server.checkpoints import KEPT, Checkpoints, RoundReport, State
from safetensors import safe_open
from safetensors.numpy import load, save

HASH = "a" * 64


def state_of(number: int) -> State:
    model = {"w": np.full((2, 3), number, np.float32), "a.bias": np.float32(number).reshape(())}
    strategy = {"m_t/w": np.full((2, 3), 0.1, np.float64)}
    history = tuple(RoundReport(n, 2, {"node-3": "no-answer"}, {"accuracy": 0.5}) for n in range(1, number + 1))
    return State(number, model, strategy, {"node-1": number}, {"node-4": "delta-too-large"}, history, ("node-1",))


def test_state_reads_back_as_it_was_written(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, HASH)
    checkpoints.save(state_of(3))
    read, written = checkpoints.newest(), state_of(3)
    assert read is not None
    assert list(read.model) == list(written.model)
    for name, array in written.model.items():
        np.testing.assert_array_equal(read.model[name], array)
        assert read.model[name].shape == array.shape
    assert read.strategy["m_t/w"].dtype == np.float64
    assert (read.round, read.history, read.participations, read.excluded, read.trained) == (
        3,
        written.history,
        written.participations,
        written.excluded,
        written.trained,
    )


@pytest.mark.parametrize("lasts", [True, False])
def test_history_reads_back_from_every_round_of_a_run(tmp_path: Path, lasts: bool) -> None:
    """Reports are written once and kept as text; a state of another past is written anew."""
    checkpoints = Checkpoints(tmp_path, HASH, survives_power_cut=lasts)
    history: tuple[RoundReport, ...] = ()
    for number in range(1, 6):
        history = (*history, RoundReport(number, number, {f"node-{number}": 'a "reason"'}, {"accuracy": 1 / number}))
        checkpoints.save(replace(state_of(number), history=history))
        newest = checkpoints.newest()
        assert newest is not None
        assert newest.history == history
    for another in (history[:2], (), (*history[:2], RoundReport(3, 0), history[4]), history):
        checkpoints.save(replace(state_of(6), history=another))
        newest = checkpoints.newest()
        assert newest is not None
        assert newest.history == another


def test_older_checkpoint_says_who_was_asked_and_not_who_trained(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, HASH)
    checkpoints.save(replace(state_of(3), participations={"node-1": 3, "node-2": 1}))
    [path] = tmp_path.iterdir()
    content = load(path.read_bytes())
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    told = json.loads(metadata["state"])
    del told["trained"]
    path.write_bytes(save(content, metadata | {"state": json.dumps(told)}))
    older = checkpoints.newest()
    assert older is not None
    assert older.trained == ("node-1", "node-2")


def test_no_checkpoint_is_no_state(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "new", HASH).newest() is None


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, HASH)
    for number in range(12):
        checkpoints.save(state_of(number))
    assert len(list(tmp_path.iterdir())) == KEPT
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.round == 11


@pytest.mark.parametrize("kept_bytes", [0, 7, 100, -1])
def test_torn_checkpoint_gives_way_to_the_one_before(tmp_path: Path, kept_bytes: int) -> None:
    checkpoints = Checkpoints(tmp_path, HASH)
    checkpoints.save(state_of(1))
    checkpoints.save(state_of(2))
    newest = sorted(tmp_path.glob("round-*"))[-1]
    newest.write_bytes(newest.read_bytes()[:kept_bytes])
    state = checkpoints.newest()
    assert state is not None
    assert state.round == 1


def test_half_written_file_is_never_taken_for_a_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, HASH)
    checkpoints.save(state_of(1))
    (tmp_path / "round-000002.partial").write_bytes(b"half")
    state = checkpoints.newest()
    assert state is not None
    assert state.round == 1


def test_checkpoint_of_another_submission_is_refused(tmp_path: Path) -> None:
    Checkpoints(tmp_path, HASH).save(state_of(1))
    with pytest.raises(CheckpointError, match="belongs to submission aaaaaaaaaaaa"):
        Checkpoints(tmp_path, "b" * 64).newest()


def test_folder_below_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError) as error:
        Checkpoints(tmp_path / "file" / "checkpoints", HASH)
    assert "give a folder" in error.value.remedy
