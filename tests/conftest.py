"""What many tests need: a plan, a submission, and a federation of small numpy nodes over the in-process Grid."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import settings
from privet.privacy.plan import Plan
from privet.privacy.plan_file import parse_plan
from privet.privacy.submission import Submission, resolve

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
# On a developer's machine every run looks for new examples; CI repeats the same ones, so that a red one can be found.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

PLAN = """
[run]
name = "test"
task = "synthetic"
seed = 3
rounds = 4
spare-rounds = 1
[model]
records = 120
features = 3
[training]
local-steps = 2
learning-rate = 0.5
[privacy]
unit = "none"
sampling-rate = 0.5
[simulation]
nodes = 3
"""
PRIVATE = (
    "privacy.unit=record",
    "privacy.noise-multiplier=4.0",
    "privacy.delta=1e-5",
    "privacy.clip-norm=1.0",
)
MOMENT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., Plan]:
    """A small plan without privacy, changed by `section.key=value` assignments; `private=True` adds a claim."""

    def make(*assignments: str, private: bool = False) -> Plan:
        return parse_plan(PLAN, "test.toml", [*(PRIVATE if private else ()), *assignments])

    return make


@pytest.fixture(scope="session")
def make_submission(make_plan: Callable[..., Plan]) -> Callable[..., Submission]:
    """The small plan, resolved at a fixed moment."""

    def make(*assignments: str, private: bool = False, run_id: str = "run-1", now: datetime = MOMENT) -> Submission:
        plan = make_plan(*assignments, private=private)
        return resolve(plan, federation="test", run_id=run_id, operator="tester", now=now)

    return make


@pytest.fixture(autouse=True)
def _fresh_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees or leaves anything in the user's home, or prints tracebacks by a variable of the environment."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PRIVET_DEBUG", raising=False)
