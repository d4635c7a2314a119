"""Unmodified Flower apps over privet: a real server and two real nodes, the app installed at all three."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from channel import wait_for
from deployment import Deployment, Party, Process, deployment
from flwr.app import Context, RecordDict
from plain_flower_app.client_app import app as plain_client_app
from plain_flower_app.server_app import app as plain_server_app
from privet.privacy.channel.flower import SERVER_NODE_ID
from privet.simulations.grid import LocalGrid

SUPPORT = Path(__file__).parents[1] / "support"
ROUNDS = 3
PLAIN = {"num-server-rounds": ROUNDS, "fraction-evaluate": 1, "local-epochs": 5, "lr": 0.05}
AT_THE_SERVER = {
    "plain": "plain_flower_app.server_app:app",
    "odd": "odd_flower_app:typed",
    "failures": "odd_flower_app:failures",
    "older": "odd_flower_app:older",
    "reserved": "odd_flower_app:reserved",
    "raising": "odd_flower_app:raising",
    "exiting": "odd_flower_app:exiting",
    "waiting": "odd_flower_app:waiting",
    "asking": "odd_flower_app:asking",
    "no-app": "odd_flower_app:NOT_AN_APP",
    "absent": "odd_flower_app.nowhere:app",
    "unloved": "plain_flower_app.server_app:app",
    "broken": "plain_flower_app.server_app:app",
}
AT_THE_NODES = {
    "plain": "plain_flower_app.client_app:app",
    "older": "odd_flower_app:older_node_app",
    "broken": "plain_flower_app.nowhere:app",
    "unknown": "plain_flower_app.client_app:app",
} | dict.fromkeys(
    ("odd", "failures", "reserved", "raising", "exiting", "waiting", "asking", "no-app", "absent"),
    "odd_flower_app:node_app",
)


@dataclass
class Meadow:
    """A federation whose nodes allow the apps."""

    deployment: Deployment
    folder: Path
    server: Process
    wards: dict[str, Party]

    def plan(self, app: str, **config: Any) -> Path:
        spelled = ", ".join(f"{key} = {json.dumps(value)}" for key, value in config.items())
        path = self.folder / f"{app}.toml"
        path.write_text(
            f'[run]\nname = "{app}"\n[app]\nname = "{app}"\nconfig = {{ {spelled} }}\n[privacy]\nunit = "none"\n'
        )
        return path

    def submitted(self, app: str, **config: Any) -> str:
        return self.deployment.submit(self.plan(app, **config))

    def finished(self, app: str, **config: Any) -> dict[str, Any]:
        page = self.ended(app, **config)
        assert page["state"] == "finished", self.server.text
        return page

    def failed(self, app: str, **config: Any) -> dict[str, Any]:
        page = self.ended(app, **config)
        assert page["state"] == "failed"
        return page

    def ended(self, app: str, **config: Any) -> dict[str, Any]:
        run_id = self.submitted(app, **config)
        self.deployment.coordinator.start("run", "watch", run_id).wait()
        return self.page(run_id)

    def page(self, run_id: str) -> dict[str, Any]:
        told: dict[str, Any] = self.deployment.coordinator.told("run", "show", run_id)
        return told

    def local_log(self, name: str, run_id: str) -> str:
        return (self.wards[name].home / "logs" / f"{run_id}.log").read_text()


@pytest.fixture(scope="module")
def meadow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Meadow]:
    folder = tmp_path_factory.mktemp("meadow")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", str(SUPPORT), prepend=os.pathsep if "PYTHONPATH" in os.environ else None)
        with deployment(folder) as made:
            server = made.serve()
            for name in ("plain", "odd"):
                made.coordinator.privet("federation", "allow-app", name, AT_THE_SERVER[name])
            others = [f'{name} = "{reference}"' for name, reference in AT_THE_SERVER.items()]
            (made.coordinator.home / "federation" / "apps.toml").write_text("\n".join(["[apps]", *others]))
            wards = {name: made.institution(name) for name in ("north", "south")}
            (folder / "rows.csv").touch()
            for number, ward in enumerate(wards.values()):
                ward.privet(
                    *("dataset", "add", "rows", "--path", str(folder / "rows.csv"), "--task", "synthetic"),
                    *("--declared-size", "100", "--epsilon", "1", "--delta", "1e-6"),
                )
                partition = ("--set", f"partition-id={number}", "--set", "num-partitions=2")
                ward.privet("node", "allow-app", "plain", AT_THE_NODES["plain"], *partition)
                _allow_the_others(ward)
            nodes = [ward.start("node") for ward in wards.values()]
            for node in nodes:
                node.wait_for("connected to")
            yield Meadow(made, folder, server, wards)
            for node in nodes:
                assert node.stop() == 0, node.text
            assert server.stop() == 0, server.text


def _allow_the_others(ward: Party) -> None:
    """By hand: a process for each command takes time."""
    with (ward.home / "node.toml").open("a", encoding="utf-8") as file:
        for name, reference in AT_THE_NODES.items():
            if name != "plain":
                file.write(f'[apps.{name}]\nclient-app = "{reference}"\nconfig = {{ partition-id = 0 }}\n')


def locally(folder: Path) -> dict[str, Any]:
    """The same app in one process: what it trained, and the metrics that its strategy has aggregated."""
    config = PLAIN | {"model-file": str(folder / "local.npz"), "metrics-file": str(folder / "local.json")}
    ours = {"num-partitions": 2}
    contexts = {
        node: Context(1, node, ours | {"partition-id": number}, RecordDict(), config)
        for number, node in enumerate((2, 3))
    }
    plain_server_app(LocalGrid(plain_client_app, contexts), Context(1, SERVER_NODE_ID, {}, RecordDict(), config))
    return {"model": np.load(folder / "local.npz"), "metrics": json.loads((folder / "local.json").read_text())}


@pytest.fixture(scope="module")
def plain_run(meadow: Meadow) -> dict[str, Any]:
    """The page of a run of the plain app, and what was printed while it was followed."""
    files = {"model-file": str(meadow.folder / "model.npz"), "metrics-file": str(meadow.folder / "metrics.json")}
    plan = meadow.plan("plain", **PLAIN, **files)
    followed = meadow.deployment.coordinator.start("run", "submit", str(plan), "--follow")
    assert followed.wait() == 0, followed.text
    run_id = followed.lines[0].removeprefix("submitted run ")
    return meadow.page(run_id) | {"followed": followed.text}


def test_app_trains_what_it_trains_in_one_process(meadow: Meadow, plain_run: dict[str, Any], tmp_path: Path) -> None:
    """Arrays and metrics, which the strategy has aggregated, equal to rounding: nodes are sampled in another order."""
    local = locally(tmp_path)
    with np.load(meadow.folder / "model.npz") as model:
        for name in local["model"].files:
            np.testing.assert_allclose(model[name], local["model"][name], rtol=1e-12)
    metrics = json.loads((meadow.folder / "metrics.json").read_text())
    assert [metrics["train"][str(number)]["rounds_seen"] for number in (1, 2, 3)] == [1, 2, 3]  # its state survived
    for kind, rounds in local["metrics"].items():
        for number, record in rounds.items():
            assert metrics[kind][number] == pytest.approx(record, rel=1e-9)


def test_page_of_an_app_says_who_took_part_and_claims_nothing(plain_run: dict[str, Any]) -> None:
    assert (plain_run["kind"], plain_run["app"], plain_run["claim"]) == ("app", "plain", None)
    assert plain_run["members"] == ["north", "south"]
    assert plain_run["refused"] == plain_run["not_asked"] == {}
    assert min(plain_run["traffic"].values()) > 1000


def test_follower_sees_what_the_strategy_says(meadow: Meadow, plain_run: dict[str, Any]) -> None:
    followed = plain_run["followed"]
    assert "no privacy claim" in followed
    assert "app plain begins, loaded from" in followed
    assert f"[ROUND {ROUNDS}/{ROUNDS}]" in followed
    assert "aggregate_train: Received 2 results and 0 failures" in followed
    kept = meadow.deployment.coordinator.home / "federation" / "runs" / plain_run["run_id"] / "app.log"
    assert "Aggregated MetricRecord" in kept.read_text()


def test_ledger_and_audit_name_the_app_with_its_operator(
    meadow: Meadow, plain_run: dict[str, Any], tmp_path: Path
) -> None:
    ward = meadow.wards["north"]
    key = tmp_path / "key"
    key.write_text(ward.privet("audit", "key"))
    root = str(ward.home / "identity" / "root.pem")
    audited = ward.privet("audit", "ledger", str(ward.home / "ledger.sqlite"), "--key", str(key), "--root", root)
    shown = meadow.deployment.coordinator.told("federation", "members")
    [coordinator] = [one for one in shown["members"] if one["name"] == "coordinator"]
    assert f"app plain: run {plain_run['run_id']} of coordinator: made no claim" in audited
    assert f"operator coordinator: 1 run, key {coordinator['key_fingerprint']}" in audited
    assert "holds: 7 entries" in audited


def test_privet_has_no_model_of_an_app(meadow: Meadow, plain_run: dict[str, Any], tmp_path: Path) -> None:
    out = str(tmp_path / "model")
    said = meadow.deployment.coordinator.privet("run", "model", plain_run["run_id"], "-o", out, code=2)
    assert "is an app's: privet has no model of it" in said


def test_every_kind_of_message_and_record_passes_as_over_flowers_own(meadow: Meadow) -> None:
    """And two runs of other apps are alive in the same process: each message has the number of its own run."""
    waits = [meadow.submitted("waiting", file=str(meadow.folder / f"waits-{number}")) for number in (1, 2)]
    file, gate = meadow.folder / "odd.json", meadow.folder / "gate"
    page = meadow.finished("odd", file=str(file), gate=str(gate))
    for run_id in waits:
        assert meadow.page(run_id)["state"] == "running"
        meadow.deployment.coordinator.privet("run", "stop", run_id)
    told = json.loads(file.read_text())
    for described in told["described"]:
        assert described["name"] == "a name of the app's own"
        assert described["numbers"] == [1, 2, 3]
        assert described["seen"] == []  # the submission that came along is not the app's
    assert told["ledgers"] == [{"head": "the app's own"}] * 2
    for custom in told["told"]:
        assert custom | {"message_id": "", "created_at": 0} == {
            "run_id": True,
            "dst_node_id": True,
            "src_node_id": SERVER_NODE_ID,
            "message_id": "",
            "reply_to": "",
            "group_id": "round-7",
            "message_type": "train.custom",
            "ttl": 500.0,
            "created_at": 0,
            "made_here": True,
        }
    assert told["came_back"] == told["sent_as"] == [True, True]
    assert told["content_is_untouched"] == ["config", "first", "metrics", "second"]
    assert told["large"] == [sum(range(500_000))] * 2  # far above what was sent
    assert told["pushed"] == [2, 2]
    assert told["untimely"] == 0
    assert told["expired"] == told["gone"] == [[4, "no-answer"]] * 2
    assert told["node_ids"] == [2, 2]
    assert page["refused"] == {"north": "no-answer", "south": "no-answer"}


def test_app_of_the_older_kind_runs_too(meadow: Meadow) -> None:
    """A client_fn, a server_fn, and a strategy of `flwr.server`."""
    file = meadow.folder / "older.json"
    meadow.finished("older", file=str(file))
    assert json.loads(file.read_text()) == {"round": 2, "parameters": [[2.0, 2.0, 2.0]]}


def test_app_that_fails_at_a_node_is_an_error_to_the_app_and_keeps_its_text(meadow: Meadow) -> None:
    """Raised, died, answered with nothing, or does not know the message: its state is that of its last answer.

    An error of its own is an answer.
    """
    file = meadow.folder / "failures.json"
    page = meadow.finished("failures", file=str(file))
    told = json.loads(file.read_text())
    failed = [[2, "app-failed"]] * 2
    assert told["count"] == [[1, 1], [3, 3]]
    assert told["raise"] == told["die"] == told["nothing"] == [failed]
    assert told["error"] == [[[77, "the app's own error"]] * 2]
    assert told["unheard"] == [2, 2]
    assert page["refused"] == {"north": "app-failed", "south": "app-failed"}
    assert "patient 17" in meadow.local_log("north", page["run_id"])
    assert "patient 17" not in meadow.server.text


@pytest.mark.parametrize(
    ("app", "text"),
    [
        ("unknown", "app unknown is not allowed at the server"),
        ("absent", "app absent: odd_flower_app.nowhere:app does not load: ModuleNotFoundError"),
        ("no-app", "app no-app: odd_flower_app:NOT_AN_APP is no ServerApp"),
        ("reserved", "the app sends a record named 'privet'"),
        ("raising", "app raising failed: RuntimeError"),
        ("exiting", "app exiting failed: SystemExit"),
    ],
)
def test_app_that_cannot_be_run_at_the_server_fails_its_run(meadow: Meadow, app: str, text: str) -> None:
    page = meadow.failed(app)
    assert text in page["error"]["text"]
    assert not meadow.server.has_ended_within(0)


def test_app_that_does_not_load_at_the_nodes(meadow: Meadow) -> None:
    """The strategy goes on without answers, as over Flower's own; the operator sees who gave none."""
    files = {"model-file": str(meadow.folder / "no.npz"), "metrics-file": str(meadow.folder / "no.json")}
    page = meadow.finished("broken", **PLAIN | {"num-server-rounds": 1}, **files)
    assert page["refused"] == {"north": "app-failed", "south": "app-failed"}
    assert "ModuleNotFoundError" in meadow.local_log("south", page["run_id"])


def test_operator_sees_that_an_app_is_not_allowed_by_name(meadow: Meadow) -> None:
    """The run waits until both institutions allow it."""
    files = {"model-file": str(meadow.folder / "late.npz"), "metrics-file": str(meadow.folder / "late.json")}
    run_id = meadow.submitted("unloved", **PLAIN, **files)
    why = "does not allow app unloved"
    wait_for(lambda: meadow.page(run_id)["not_asked"] == {"north": why, "south": why}, "the operator sees why", 60)
    assert meadow.page(run_id)["state"] == "waiting"
    for number, ward in enumerate(meadow.wards.values()):
        partition = ("--set", f"partition-id={number}", "--set", "num-partitions=2")
        ward.privet("node", "allow-app", "unloved", "plain_flower_app.client_app:app", *partition)
    page = meadow.deployment.follow(run_id)
    assert (page["state"], page["not_asked"]) == ("finished", {})


def test_institution_takes_an_app_back_or_withdraws_while_it_runs(meadow: Meadow) -> None:
    """Both hold for the next request of the run; the operator sees who and why."""
    file, answered = meadow.folder / "asking.json", meadow.folder / "answered"
    run_id = meadow.submitted("asking", file=str(file), answered=str(answered))
    wait_for(answered.exists, "an answer", 60)
    north, south = meadow.wards["north"], meadow.wards["south"]
    settings = north.home / "node.toml"
    changed = settings.with_suffix(".new")
    changed.write_text(settings.read_text().replace("[apps.asking]", "[apps.no-longer-asking]"))
    changed.replace(settings)  # at once: the node reads it whenever it is asked
    south.privet("node", "withdraw", run_id)
    page = meadow.deployment.follow(run_id)
    assert json.loads(file.read_text()) == [[1000, "app-not-allowed"], [1000, "withdrawn"]]
    assert page["refused"] == {"north": "app-not-allowed", "south": "withdrawn"}


def test_stopped_app_begins_anew(meadow: Meadow) -> None:
    """Also one that no exception stops, and that waits in a loop of its own."""
    file = meadow.folder / "waiting"
    run_id = meadow.submitted("waiting", file=str(file))
    watching = meadow.deployment.coordinator.start("run", "logs", run_id, "--follow")
    seen = watching.wait_for("app waiting begins, loaded from")
    meadow.deployment.coordinator.privet("run", "stop", run_id)
    assert watching.wait() == 1
    assert meadow.page(run_id)["state"] == "stopped"
    said = meadow.deployment.coordinator.privet("run", "resume", run_id)
    assert "begins anew: privet keeps no checkpoint of an app" in said
    watching = meadow.deployment.coordinator.start("run", "logs", run_id, "--follow")
    watching.wait_for("app waiting begins anew, without a checkpoint", after=seen)
    meadow.deployment.coordinator.privet("run", "stop", run_id)
    assert watching.wait() == 1
    assert file.read_text() == "2\n2\n"
