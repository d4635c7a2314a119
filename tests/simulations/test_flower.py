"""The apps that stock Flower loads, over the in-process Grid: one ServerApp, one ClientApp, a run config for both."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from privet.client.app import client_app
from privet.client.tasks.registry import load_task
from privet.privacy.channel import words
from privet.privacy.errors import CheckpointError, FederationError, UsageError
from privet.privacy.plan import Plan
from privet.privacy.plan_file import plan_text
from privet.server import app as server
from privet.server.run_folder import RunFolder
from privet.simulations import flower
from privet.simulations.grid import Fault, LocalGrid
from privet.simulations.scenario import Scenario
from privet.simulations.world import World
from safetensors.numpy import load_file
from signed_ledgers import DECLARED, read

Make = Callable[..., Plan]


@pytest.fixture(autouse=True)
def _own_process() -> Iterator[None]:
    """Nothing of another test is remembered, and the number of threads is given back."""
    threads = torch.get_num_threads()
    flower.run_nodes.cache_clear()
    yield
    flower.run_nodes.cache_clear()
    torch.set_num_threads(threads)


def config_of(plan: Plan, root: Path) -> dict[str, bool | float | int | str]:
    (root / "asked.toml").write_text(plan_text(plan), encoding="utf-8")
    return {"plan": str(root / "asked.toml"), "out": str(root / "run"), "request-seconds": 600.0}


def flwr_run(plan: Plan, root: Path, nodes: int = 3, fault: Fault | None = None) -> Path:
    """What `flwr run` does, in this process: random-looking node ids, contexts as stock Flower makes them."""
    config = config_of(plan, root)
    contexts = {
        2**60 - 7 * n: Context(1, 2**60 - 7 * n, {"partition-id": n, "num-partitions": nodes}, RecordDict(), config)
        for n in range(nodes)
    }
    server.app(LocalGrid(flower.app, contexts, fault), Context(1, 0, {}, RecordDict(), config))
    return root / "run"


def model_of(folder: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in load_file(folder / "model.safetensors").items()}


def kinds_in(ledger: Path) -> list[str]:
    """What happened since the share was declared, beside the server's countersignatures."""
    kinds = [entry.kind for entry in read(ledger, owner=ledger.stem)]
    assert kinds[:3] == DECLARED
    return [kind for kind in kinds[3:] if kind != "witnessed"]


@pytest.mark.parametrize("private", [False, True])
def test_the_apps_give_the_model_of_the_simulator(make_plan: Make, tmp_path: Path, private: bool) -> None:
    plan = make_plan(private=private)
    out = flwr_run(plan, tmp_path)

    world, here = World.of(plan, load_task("synthetic")), RunFolder(tmp_path / "here")
    scenario = Scenario.begun(plan, here, world, torch.device("cpu"), engine="sequential")  # bit for bit
    scenario.run(lambda view: None)
    assert model_of(out) == model_of(tmp_path / "here")
    outcome = json.loads((out / server.OUTCOME).read_text(encoding="utf-8"))
    assert [told["answered"] for told in outcome["history"]] == [3, 3, 3, 3]
    if private:
        assert scenario.submission.claim is not None
        assert outcome["claim"] == {
            "epsilon": scenario.submission.claim.epsilon,
            "delta": 1e-5,
            "unit": "record",
            "relation": "add-or-remove-one",
            "mechanism": "local",
            "noise_multiplier": 4.0,
        }
    else:
        assert outcome["claim"] is None


def test_any_process_may_serve_any_node(make_plan: Make, tmp_path: Path) -> None:
    """After every reply all that the process knew is forgotten, as if another one served the next message."""

    def forget(_: Message, reply: Message) -> Message:
        flower.run_nodes.cache_clear()
        return reply

    (tmp_path / "same").mkdir()
    plan = make_plan("run.rounds=2", private=True)
    out = flwr_run(plan, tmp_path, fault=forget)
    assert model_of(out) == model_of(flwr_run(plan, tmp_path / "same"))
    assert kinds_in(out / "ledgers" / "node-1.sqlite") == ["charge", *["begin", "answer"] * 2]


def test_a_failed_run_goes_on_where_it_stood_and_spends_nothing_twice(make_plan: Make, tmp_path: Path) -> None:
    plan = make_plan("aggregation.min-nodes=3", private=True)
    (tmp_path / "undisturbed").mkdir()

    def cut(asked: Message, reply: Message) -> Message | None:
        """No reply arrives in round 3."""
        config = asked.content.get(words.CONFIG)
        return None if config and config[words.ROUND] == 3 else reply

    with pytest.raises(FederationError, match="answer in round 3"):
        flwr_run(plan, tmp_path, fault=cut)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    out = flwr_run(plan, tmp_path)
    assert model_of(out) == model_of(flwr_run(plan, tmp_path / "undisturbed"))
    assert kinds_in(out / "ledgers" / "node-2.sqlite") == ["charge", *["begin", "answer"] * 4]


def test_another_plan_in_a_begun_folder_is_refused(make_plan: Make, tmp_path: Path) -> None:
    flwr_run(make_plan("run.rounds=1"), tmp_path)
    with pytest.raises(CheckpointError, match="a run of another plan was begun here"):
        flwr_run(make_plan("run.rounds=2"), tmp_path)


def test_another_number_of_partitions_than_nodes_is_told(
    make_plan: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(FederationError, match="0 nodes say who they are"):
        flwr_run(make_plan(), tmp_path, nodes=4)
    assert "partition 0 of 4, the plan simulates 3 nodes; try: flwr run --federation-config" in caplog.text


def test_an_error_is_logged_where_flower_shows_it(
    make_plan: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(make_plan(), tmp_path) | {"plan": str(tmp_path / "nowhere.toml")}
    with caplog.at_level(logging.ERROR, "flwr"), pytest.raises(UsageError):
        server.app(LocalGrid(flower.app, {}), Context(1, 0, {}, RecordDict(), config))
    shown = [record.getMessage() for record in caplog.records if record.name.startswith("flwr.")]
    assert [line.split(":")[0] for line in shown] == ["error", "try"]


def test_a_context_without_a_partition_is_refused() -> None:
    with pytest.raises(UsageError, match="no partition-id and num-partitions"):
        flower.node_of(Context(1, 2, {}, RecordDict(), {"plan": "/a", "out": "/b"}))


def test_text_of_an_exception_never_leaves(caplog: pytest.LogCaptureFixture) -> None:
    """Stock Flower puts an exception's text into the reply; so none may reach it."""

    def broken(_: Context) -> None:
        raise OSError("record 17 of patient Smith")

    context = Context(1, 2, {}, RecordDict(), {})
    grid: Grid = LocalGrid(client_app(broken), {2: context})  # type: ignore[arg-type]
    for kind in (words.DESCRIBE, words.INITIAL, words.TRAIN, words.EVALUATE):
        (reply,) = grid.send_and_receive([Message(RecordDict(), 2, kind)])
        assert reply.error.reason == "app-failed"
    assert "Smith" in caplog.text
