"""Processes that share the work of a simulation, and the shelf that their results lie on."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from privet.client.answers import Answer
from privet.privacy.budget.guard import Attempt
from privet.privacy.errors import LedgerError
from privet.simulations.crew import Crew, Order, Result
from privet.simulations.shelf import Shelf, ShelvedAnswer, ShelvedAnswers

HERE = os.getpid()
MODEL = {"b": np.zeros((2, 3), np.float32), "a": np.ones(2, np.float32)}
ATTEMPT = Attempt("train", 1, 1, "0" * 64)


def squared(order: Order) -> Result:
    """Its process is killed by an order that says so, unless it is the first."""
    if order.get("kill") and os.getpid() != HERE:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"square": order["number"] ** 2, "by": os.getpid()}


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_each_order_has_its_own_result(processes: int) -> None:
    with Crew(squared, processes) as crew:
        assert len(crew) == processes
        tickets = [crew.give({"number": number}) for number in range(20)]
        results = [crew.take(ticket) for ticket in tickets]
    assert [result["square"] for result in results] == [number**2 for number in range(20)]
    assert len({result["by"] for result in results}) <= processes
    assert (processes == 1) == all(result["by"] == HERE for result in results)


def test_others_do_what_a_killed_process_was_at() -> None:
    with Crew(squared, 3) as crew:
        tickets = [crew.give({"number": number, "kill": number in (0, 1)}) for number in range(12)]
        assert [crew.take(ticket)["square"] for ticket in tickets] == [number**2 for number in range(12)]
        assert len(crew) == 1
        assert crew.take(crew.give({"number": 5})) == {"square": 25, "by": HERE}


def test_interrupted_order_can_be_taken_again() -> None:
    interruptions = [KeyboardInterrupt()]

    def work(order: Order) -> Result:
        if interruptions:
            raise interruptions.pop()
        return order

    with Crew(work, 1) as crew:
        ticket = crew.give({"number": 1})
        with pytest.raises(KeyboardInterrupt):
            crew.take(ticket)
        assert crew.take(ticket) == {"number": 1}
        with pytest.raises(ValueError, match="nothing was ordered"):
            crew.take(ticket)


def test_processes_end_with_the_crew() -> None:
    crew = Crew(lambda order: {"by": os.getpid()}, 2)
    tickets = [crew.give({}) for _ in range(4)]
    others = {crew.take(ticket)["by"] for ticket in tickets} - {HERE}
    crew.close()
    for pid in others:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def shelved(shelf: Shelf, round_number: int, value: float) -> ShelvedAnswer:
    row = shelf.place(round_number)
    shelf.rows[row] = value
    return shelf.answer(row, shelf.hash_of(row))


def test_answer_is_found_by_its_hash_after_an_interruption(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "round.bin", MODEL, nodes=2)
    answers = ShelvedAnswers(tmp_path / "node-1", shelf)
    digest = answers.keep("run", ATTEMPT, shelved(shelf, 1, 2.5))
    sums = answers.keep("run", ATTEMPT, Answer(sums={"accuracy": 0.1 + 0.2}))
    again = Shelf(tmp_path / "round.bin", MODEL, nodes=2)
    other = shelved(again, 1, 7.0)  # a row that was in use is not taken
    found = ShelvedAnswers(tmp_path / "node-1", again)
    assert {n: a.tolist() for n, a in found.read("run", ATTEMPT, digest).parameters.items()} == {
        "b": [[2.5] * 3] * 2,
        "a": [2.5] * 2,
    }
    assert found.read("run", ATTEMPT, sums).sums == {"accuracy": 0.1 + 0.2}
    assert other.hash != digest


def test_what_was_changed_on_the_shelf_is_no_answer(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "round.bin", MODEL, nodes=2)
    answers = ShelvedAnswers(tmp_path / "node-1", shelf)
    digest = answers.keep("run", ATTEMPT, shelved(shelf, 1, 2.5))
    shelf.rows[0, 3] = 2.25
    with pytest.raises(LedgerError, match="not the answer that the ledger records"):
        answers.read("run", ATTEMPT, digest)


def test_rows_are_free_again_in_the_next_round(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "round.bin", MODEL, nodes=1)
    rows = [shelf.place(1) for _ in range(8)]
    assert rows == list(range(8))
    with pytest.raises(MemoryError):
        shelf.place(1)
    assert shelf.place(2) == 0


def test_file_of_another_model_is_begun_anew(tmp_path: Path) -> None:
    shelved(Shelf(tmp_path / "round.bin", MODEL, nodes=2), 1, 2.5)
    larger = Shelf(tmp_path / "round.bin", {"a": np.zeros(500, np.float32)}, nodes=2)
    assert larger.place(1) == 0
    assert not larger.rows.any()
