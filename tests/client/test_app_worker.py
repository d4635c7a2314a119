"""An unmodified Flower app in a process of its own. It is written as Flower's documentation teaches, without torch."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, Metadata, RecordDict
from privet.client.app_worker import AppReference, AppWorker
from privet.client.flower_app import frames_of, message_of
from privet.client.served import WorkerSettings
from privet.privacy.channel.flower import SERVER_NODE_ID, run_number
from privet.privacy.errors import ChannelError, TaskError

APP = """
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
number = 7


@app.train()
def train(msg: Message, context: Context) -> Message:
    print("training")
    if msg.content["config"]["fails"]:
        raise RuntimeError("patient 17")
    seen = context.state["seen"]["rounds"] if "seen" in context.state else 0
    context.state["seen"] = MetricRecord({"rounds": seen + 1})
    arrays = [array + context.run_config["step"] for array in msg.content["arrays"].to_numpy_ndarrays()]
    told = {"rounds": seen + 1, "partition": context.node_config["partition-id"], "node": context.node_id,
            "run": context.run_id}
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord(told)}), reply_to=msg)
"""
NODE = 12345
RUN = "run-1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("app")
    (made / "site" / "hospital_app").mkdir(parents=True)
    (made / "site" / "hospital_app" / "__init__.py").touch()
    (made / "site" / "hospital_app" / "client_app.py").write_text(APP)
    return made


def worker_of(folder: Path, reference: str = "hospital_app.client_app:app", inside: Path | None = None) -> AppWorker:
    settings = WorkerSettings(folder / "logs", environment={"PYTHONPATH": str(folder / "site")})
    allowed = AppReference(reference, inside or folder / "site", {"partition-id": 3})
    return AppWorker(allowed, RUN, NODE, {"step": 2}, settings)


@pytest.fixture(scope="module")
def worker(folder: Path) -> Iterator[AppWorker]:
    made = worker_of(folder)
    yield made
    made.close()


def asked(fails: bool = False) -> Message:
    content = RecordDict(
        {"arrays": ArrayRecord([np.arange(6.0).reshape(2, 3), np.array([5])]), "config": ConfigRecord({"fails": fails})}
    )
    return received(content)


def received(content: RecordDict) -> Message:
    """As a node gets it from its stream."""
    metadata = Metadata(run_number(RUN), "ab" * 16, SERVER_NODE_ID, NODE, "", "2", 1e9, 60.0, "train")
    return Message(content=content, metadata=metadata)


def test_app_answers_and_its_state_lives_between_rounds(worker: AppWorker, folder: Path) -> None:
    assert worker.open() == str(folder / "site" / "hospital_app" / "client_app.py")
    for number in (1, 2):
        request = asked()
        reply = worker.answer(request)
        first, second = reply.content["arrays"].to_numpy_ndarrays()
        assert np.array_equal(first, np.arange(6.0).reshape(2, 3) + 2)
        assert (second.dtype, second.item()) == (np.int64, 7)
        told = {"rounds": number, "partition": 3, "node": NODE, "run": run_number(RUN)}
        assert dict(reply.content["metrics"]) == told
        assert reply.metadata.reply_to_message_id == request.metadata.message_id
        assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (NODE, SERVER_NODE_ID)
        assert (reply.metadata.message_type, reply.metadata.group_id) == ("train", "2")


def test_app_that_raises_is_an_error_whose_text_stays_here(worker: AppWorker, folder: Path) -> None:
    """Its process ends, for what it had half done is not trusted; its state is that of the round before."""
    with pytest.raises(TaskError, match="patient 17"):
        worker.answer(asked(fails=True))
    log = (folder / "logs" / f"{RUN}.log").read_text()
    assert "training" in log
    assert "app hospital_app.client_app:app from" in log
    assert worker.answer(asked()).content["metrics"]["rounds"] == 3


def test_state_outlives_the_process_until_it_is_forgotten(folder: Path) -> None:
    made = worker_of(folder)
    assert made.answer(asked()).content["metrics"]["rounds"] == 1
    first = made.served.pid
    made.rest()
    assert made.served.pid is None
    assert made.answer(asked()).content["metrics"]["rounds"] == 2
    assert made.served.pid != first
    made.forget()
    assert not made.has_state
    assert made.answer(asked()).content["metrics"]["rounds"] == 1
    made.close()


@pytest.mark.parametrize(
    ("reference", "inside", "why"),
    [
        ("hospital_app.client_app:app", "elsewhere", "loaded from .*client_app.py, not from .*elsewhere"),
        ("hospital_app.client_app:number", "site", "not a ClientApp"),
        ("hospital_app.client_app:none", "site", "not a ClientApp"),
        ("hospital_app.absent:app", "site", "ModuleNotFoundError"),
    ],
)
def test_app_that_is_not_the_one_allowed_is_not_run(folder: Path, reference: str, inside: str, why: str) -> None:
    other = worker_of(folder, reference, folder / inside)
    with pytest.raises(TaskError, match=why):
        other.open()
    other.close()


def test_message_comes_back_from_its_bytes() -> None:
    content = frames_of(asked(), RUN)
    back = message_of(content, RUN, SERVER_NODE_ID, NODE)
    assert back.content == asked().content
    assert back.metadata.message_id == "ab" * 16


@pytest.mark.parametrize(
    "harm",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:3],
        lambda content: content + b"\0",
        lambda content: content + content,
        lambda content: b"\xff" * 100,
        lambda content: content[4 + int.from_bytes(content[:4], "little") :],
        lambda content: content[: 4 + int.from_bytes(content[:4], "little")],
        lambda content: content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
    ],
)
def test_attack_bytes_that_are_not_one_message(harm) -> None:
    with pytest.raises(ChannelError):
        message_of(harm(frames_of(asked(), RUN)), RUN, SERVER_NODE_ID, NODE)


def test_message_of_another_run_is_refused() -> None:
    with pytest.raises(ChannelError):
        message_of(frames_of(asked(), "run-2"), RUN, SERVER_NODE_ID, NODE)
