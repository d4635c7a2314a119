"""The server's memory does not grow with the cohort."""

import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_nodes import FakeNode, grid_of, update_of
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid
from privet.privacy.channel import words
from privet.privacy.submission import Submission
from privet.server.checkpoints import Checkpoints
from privet.server.federation import Federation
from privet.server.strategies import ChosenNodes

VALUES = 2_000_000
UPDATE_BYTES = 4 * VALUES
NODES = 25


SENT = Array(np.ones(VALUES, np.float32))


def arrived() -> Array:
    """A new copy of the same bytes, as a network stack hands over; making it takes no more than it holds."""
    content = memoryview(SENT.data)
    return Array(SENT.dtype, SENT.shape, SENT.stype, b"".join((content[:128], content[128:])))


class LargeUpdates(ChosenNodes):
    """A grid whose nodes answer with one large array, made anew for each reply: a stream, as from a wire."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        for message in messages:
            reply = next(iter(super().send_and_receive([message], timeout=timeout)))
            if message.metadata.message_type in (words.INITIAL, words.TRAIN):
                reply.content[words.ARRAYS] = ArrayRecord({"w": arrived()})
            yield reply
            del reply


def small_reply(model: dict[str, np.ndarray], number: int, attempt: int) -> RecordDict:
    return update_of({"w": np.ones(1, np.float32)})


class NoCheckpoints(Checkpoints):
    """Aggregation is measured here; a checkpoint's copy is freed before the next round."""

    def save(self, state: object) -> None:
        return


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox"])
def test_aggregation_stays_under_four_updates(
    make_submission: Callable[..., Submission], tmp_path: Path, strategy: str
) -> None:
    extra = ["aggregation.proximal-mu=0.1"] if strategy == "fedprox" else []
    submission = make_submission("run.rounds=3", f"aggregation.strategy={strategy}", *extra)
    inner = grid_of([FakeNode(f"node-{n:02}", train=small_reply) for n in range(NODES)])
    grid: Grid = LargeUpdates(inner, inner.get_node_ids())
    peaks: list[float] = []
    begun = 0

    def watch(state: object) -> None:
        """After each round: its peak, above what was there when it began (the model and its encoded form)."""
        nonlocal begun
        current, peak = tracemalloc.get_traced_memory()
        peaks.append((peak - begun) / UPDATE_BYTES)
        begun = current
        tracemalloc.reset_peak()

    tracemalloc.start()
    Federation(submission, grid, NoCheckpoints(tmp_path, submission.hash), watch).run()
    tracemalloc.stop()
    assert len(peaks) == 4
    assert max(peaks[2:]) < 4, peaks  # the first round also encodes the initial model
