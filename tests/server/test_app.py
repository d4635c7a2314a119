"""The ServerApp's own part: what the run config may say, and how long it waits for nodes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from privet.privacy.errors import FederationError, UsageError
from privet.server.app import wait_for_nodes
from privet.server.run_config import REQUEST_SECONDS, RunConfig


class Arriving(Grid):
    """A grid on which nodes come one by one: at each look, as many more as it is told."""

    def __init__(self, *arrivals: int) -> None:
        self._arrivals = list(arrivals)
        self.present = 0

    def get_node_ids(self) -> Iterable[int]:
        self.present += self._arrivals.pop(0) if self._arrivals else 0
        return range(self.present)

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError


def test_the_run_begins_when_no_more_nodes_come() -> None:
    grid = Arriving(0, 1, 1, 1, 1)
    wait_for_nodes(grid, least=2)
    assert grid.present == 4


def test_a_federation_that_stays_too_small_is_given_up() -> None:
    with pytest.raises(FederationError, match=r"^1 nodes after 0.2 s, the plan needs 2$") as caught:
        wait_for_nodes(Arriving(1), least=2, patience=0.2)
    assert "num-supernodes" in caught.value.remedy


def test_the_run_config_names_plan_and_folder() -> None:
    config = RunConfig.of({"plan": "/a/plan.toml", "out": "/b", "something": "else"})
    assert config == RunConfig(Path("/a/plan.toml"), Path("/b"), REQUEST_SECONDS)
    assert RunConfig.of({"plan": "/a", "out": "/b", "request-seconds": 5}).request_seconds == 5.0


@pytest.mark.parametrize(
    ("key", "value"),
    [("plan", ""), ("plan", "plan.toml"), ("plan", 3), ("out", "~/run"), ("out", False)]
    + [("request-seconds", value) for value in ("60", True, 0, -1.0, float("nan"))],
)
def test_a_run_config_that_cannot_be_meant_is_refused(key: str, value: bool | float | int | str) -> None:
    with pytest.raises(UsageError, match=f"run config {key}: {value!r} is not"):
        RunConfig.of({"plan": "/a/plan.toml", "out": "/b", key: value})


@pytest.mark.parametrize("key", ["plan", "out"])
def test_a_run_config_without_plan_or_folder_is_refused(key: str) -> None:
    given: dict[str, bool | float | int | str] = {"plan": "/a", "out": "/b"}
    del given[key]
    with pytest.raises(UsageError, match=f"run config {key}: '' is not an absolute path") as caught:
        RunConfig.of(given)
    assert caught.value.remedy.startswith("flwr run . --run-config")
