"""What a simulation writes line by line, when a power cut or a full disk has torn the last line off."""

from pathlib import Path

import numpy as np
import pytest
from privet.simulations.faults import Deeds
from privet.simulations.shelf import Shelf
from privet.simulations.views import RoundView, Views


def tear(path: Path) -> None:
    """As after a power cut: the last line has lost its end."""
    path.write_bytes(path.read_bytes()[:-5])


def view(number: int) -> RoundView:
    return RoundView(number, {"loss": 0.5}, None, 3, {})


def test_view_after_a_torn_one_is_not_lost_with_it(tmp_path: Path) -> None:
    path = tmp_path / "views.jsonl"
    for number in (1, 2):
        Views(path).add(view(number))
    tear(path)
    assert [kept.round for kept in Views(path).until(9)] == [1]
    Views(path).add(view(2))
    assert Views(path).until(9) == [view(1), view(2)]


def test_fault_after_a_torn_one_is_not_lost_with_it(tmp_path: Path) -> None:
    path = tmp_path / "faults.jsonl"
    for name in ("node-1", "node-2", "node-3"):
        deeds = Deeds(path)
        deeds.note(1, "drop", name)
        deeds.write()
        if name == "node-2":
            tear(path)
    assert Deeds(path).until(1) == {1: {"drop": ["node-1", "node-3"]}}


@pytest.mark.parametrize("value", [0.25, 1 / 3])
def test_released_sums_after_torn_ones_are_found(tmp_path: Path, value: float) -> None:
    def opened() -> Shelf:
        return Shelf(tmp_path / "round.bin", {"a": np.zeros(2, np.float32)}, nodes=1)

    first = opened().keep_sums({"accuracy": 1.0})
    opened().keep_sums({"accuracy": 2.0})
    tear(tmp_path / "round.sums.jsonl")
    second = opened().keep_sums({"accuracy": value})
    found = [opened().find(digest) for digest in (first, second)]
    assert [answer and answer.sums for answer in found] == [{"accuracy": 1.0}, {"accuracy": value}]
