"""Processes that share the work of a simulation, and the shelf that their results lie on."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from privet.client.answers import Answer
from privet.privacy.budget.guard import Attempt
from privet.privacy.errors import LedgerError
from privet.simulations.crew import Crew, Result
from privet.simulations.order_queue import Order
from privet.simulations.shelf import Shelf, ShelvedAnswer, ShelvedAnswers

HERE = os.getpid()
MODEL = {"b": np.zeros((2, 3), np.float32), "a": np.ones(2, np.float32)}
ATTEMPT = Attempt("train", 1, 1, "0" * 64)


def squared(order: Order) -> Result:
    return {"square": order["number"] ** 2, "by": os.getpid()}


class Meeting:
    """Of the first process and so many others: nobody leaves before all have come."""

    def __init__(self, others: int) -> None:
        self._come, self._gone = os.pipe(), os.pipe()
        self._others = self._missing = others

    def attend(self) -> None:
        if os.getpid() == HERE:
            self.wait()
            os.write(self._gone[1], b"." * self._others)
        else:
            self.come()
            os.read(self._gone[0], 1)

    def come(self) -> None:
        os.write(self._come[1], b".")

    def wait(self) -> None:
        while self._missing:
            os.read(self._come[0], 1)
            self._missing -= 1


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_each_order_has_its_own_result_and_all_take_part(processes: int) -> None:
    meeting = Meeting(processes - 1)

    def work(order: Order) -> Result:
        if order["number"] < processes:
            meeting.attend()
        return squared(order)

    with Crew(work, processes) as crew:
        assert len(crew) == processes
        tickets = [crew.give({"number": number}) for number in range(20)]
        results = [crew.take(ticket) for ticket in tickets]
    assert [result["square"] for result in results] == [number**2 for number in range(20)]
    assert len({result["by"] for result in results}) == processes


def test_what_a_killed_process_was_at_is_done_again() -> None:
    killed = Meeting(2)

    def work(order: Order) -> Result:
        if os.getpid() == HERE:
            killed.wait()  # of the first three orders the others have taken one each
            return squared(order)
        killed.come()
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    with Crew(work, 3) as crew:
        tickets = [crew.give({"number": number}) for number in range(12)]
        assert [crew.take(ticket)["square"] for ticket in tickets] == [number**2 for number in range(12)]
        assert len(crew) == 1
        assert crew.take(crew.give({"number": 5})) == {"square": 25, "by": HERE}


def test_what_a_living_process_is_at_is_not_done_again() -> None:
    meeting, has_met = Meeting(2), list[bool]()
    (lot, lots), (end, ends), (done, does) = os.pipe(), os.pipe(), os.pipe()
    os.write(lots, b"kw")  # one of the two others is killed, one waits

    def work(order: Order) -> Result:
        os.write(does, bytes([order["number"]]))
        if has_met:  # it is what the killed one was at
            os.write(ends, b".")
            return squared(order)
        meeting.attend()
        has_met.append(True)
        if os.getpid() != HERE and os.read(lot, 1) == b"k":
            os.kill(os.getpid(), signal.SIGKILL)
        if os.getpid() != HERE:
            os.read(end, 1)
        return squared(order)

    with Crew(work, 3) as crew:
        tickets = [crew.give({"number": number}) for number in range(3)]
        assert [crew.take(ticket)["square"] for ticket in tickets] == [0, 1, 4]
    assert sorted(os.read(done, 9)) in ([0, 0, 1, 2], [0, 1, 1, 2], [0, 1, 2, 2])


@pytest.mark.parametrize("length", [30_000, 150_000])  # more than lie in the queue, and too long ones
def test_orders_that_the_queue_does_not_take_are_carried_out_too(length: int) -> None:
    with Crew(lambda order: {"length": len(order["text"]), "number": order["number"]}, 2) as crew:
        tickets = [crew.give({"number": number, "text": "x" * length}) for number in range(40)]
        results = [crew.take(ticket) for ticket in tickets]
    assert results == [{"length": length, "number": number} for number in range(40)]


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
    meeting = Meeting(1)

    def work(order: Order) -> Result:
        meeting.attend()
        return {"by": os.getpid()}

    crew = Crew(work, 2)
    (other,) = {crew.take(ticket)["by"] for ticket in [crew.give({}), crew.give({})]} - {HERE}
    crew.close()
    with pytest.raises(ProcessLookupError):
        os.kill(other, 0)


def test_what_nobody_has_done_when_a_crew_ends_is_done_by_who_asks() -> None:
    crew = Crew(squared, 2)
    tickets = [crew.give({"number": number}) for number in range(50)]
    crew.close()
    assert [crew.take(ticket)["square"] for ticket in tickets] == [number**2 for number in range(50)]
    crew.close()


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
