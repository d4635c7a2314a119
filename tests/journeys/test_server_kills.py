"""The server is killed again and again, in every phase of a run, which ends with the model that it would have given."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from channel import wait_for
from deployment import Deployment, Party, Process, deployment
from digit_shares import arrays_in, write_shares
from privet.privacy.plan_file import read_plan

KILLS = 54
ROUNDS = 120  # more than the lives below can do, so that the last life has some left
# Of six lives: one ends while the server starts, one when the nodes have come back, four within a round.
PHASES = ("starting", "connecting", "round", "round", "round", "round")
PLAN = f"""
[run]
name = "kills"
task = "digits"
seed = 5
rounds = {ROUNDS}
[model]
kind = "features"
features = 256
[aggregation]
min-nodes = 2
[training]
local-steps = 2
learning-rate = 1.0
[privacy]
unit = "none"
sampling-rate = 0.2
[evaluation]
every = 3
metrics = ["accuracy"]
[simulation]
nodes = 2
"""


@dataclass
class Killed:
    """A federation whose server is to be killed. `round_seconds`: as measured."""

    deployment: Deployment
    wards: list[Party]
    run_id: str
    round_seconds: float = 0.1

    @property
    def round(self) -> int:
        """The newest checkpoint's."""
        folder = self.deployment.coordinator.home / "federation" / "runs" / self.run_id / "checkpoints"
        return max((int(path.stem.removeprefix("round-")) for path in folder.glob("round-*.safetensors")), default=0)

    def live(self, phase: str, rng: random.Random) -> None:
        """One life of the server, to its kill."""
        before = self.round
        server = self.deployment.serve(is_ready=False)
        if phase == "starting":
            delay = rng.uniform(0.0, 0.25)
        else:
            server.wait_for("connected from", server.wait_for("connected from"))
            delay = rng.uniform(0.0, 2 * self.round_seconds)
        if phase == "round":
            wait_for(lambda: self.round > before, "a round in this life", 60)
            delay = rng.uniform(0.0, self.round_seconds)
        assert not server.has_ended_within(delay), server.text
        server.kill()


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Killed]:
    (tmp_path / "plan.toml").write_text(PLAN)
    shares = write_shares(read_plan(tmp_path / "plan.toml"), tmp_path / "data")
    with deployment(tmp_path) as made:
        server = made.serve()
        wards = [made.institution(name) for name in shares]
        for ward, (path, size) in zip(wards, shares.values(), strict=True):
            limits = ("--declared-size", str(size), "--epsilon", "4", "--delta", "1e-4", "--allow-none")
            ward.privet("dataset", "add", "digits", "--path", str(path), "--task", "digits", *limits)
        nodes = [ward.start("node") for ward in wards]
        for node in nodes:
            node.wait_for("connected to")
        run_id = made.submit(tmp_path / "plan.toml")
        killed = Killed(made, wards, run_id)
        killed.round_seconds = measured(killed, server)
        yield killed


def measured(killed: Killed, server: Process) -> float:
    """Seconds of a round, of the first few; the server is killed then."""
    watching = killed.deployment.coordinator.start("run", "logs", killed.run_id, "--follow", "--json")
    watching.wait_for('"round": 6,')
    server.kill()
    watching.kill()
    told = [json.loads(line).get("event", {}) for line in watching.lines]
    rounds = [event["body"]["seconds"] for event in told if event.get("kind") == "round"]
    return float(min(rounds[1:]))


@pytest.mark.slow
def test_fifty_kills_of_the_server_change_nothing(killed: Killed, tmp_path: Path) -> None:
    """No round is lost or done twice: the same model, one event a round, one attempt a round in every ledger."""
    rng = random.Random(4)
    within = 0
    for number in range(KILLS):
        killed.live(PHASES[number % len(PHASES)], rng)
        within += any(len(ward.attempts("begin")) > killed.round for ward in killed.wards)
    assert within >= KILLS // 10, "hardly any kill came within a round"
    assert killed.round < ROUNDS, "the run was over before the last kill"
    server = killed.deployment.serve()
    page = killed.deployment.follow(killed.run_id)
    assert (page["state"], page["round"]) == ("finished", ROUNDS)

    events = [json.loads(line) for line in logged(killed)]
    assert [e["body"]["round"] for e in events if e["kind"] == "round"] == list(range(1, ROUNDS + 1))
    assert page["participations"] == {ward.name: ROUNDS for ward in killed.wards}
    for ward in killed.wards:
        assert ward.attempts("begin") == Counter({(number, 1): 1 for number in range(1, ROUNDS + 1)})
        assert ward.violations() == []

    killed.deployment.coordinator.privet("run", "model", killed.run_id, "-o", str(tmp_path / "deployed.safetensors"))
    simulated = tmp_path / "simulated"
    arguments = ("--out", str(simulated), "--engine", "sequential")  # a node trains alone, to the last bit
    killed.deployment.coordinator.privet("simulate", str(tmp_path / "plan.toml"), *arguments)
    assert arrays_in(tmp_path / "deployed.safetensors") == arrays_in(simulated / "model.safetensors")
    assert server.stop() == 0


def logged(killed: Killed) -> list[str]:
    return killed.deployment.coordinator.privet("run", "logs", killed.run_id, "--json").splitlines()
