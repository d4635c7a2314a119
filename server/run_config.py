"""What `flwr run --run-config` says to privet's apps: which plan, which folder, how long to wait."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ..privacy.errors import UsageError

Value = bool | float | int | str
# Flower waits for all answers of a round together, however few processes share its nodes.
REQUEST_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class RunConfig:
    """`plan`: a TOML file. `out`: the run's folder. `request_seconds`: how long a round's answers may take."""

    plan: Path
    out: Path
    request_seconds: float = REQUEST_SECONDS

    @classmethod
    def of(cls, values: Mapping[str, Value]) -> Self:
        """The run config of a Flower context; raise UsageError where it cannot be meant."""
        return cls(_path(values, "plan"), _path(values, "out"), _seconds(values))


def _path(values: Mapping[str, Value], key: str) -> Path:
    """An absolute path: what it would be relative to is the SuperLink's folder, of which the caller knows nothing."""
    value = values.get(key, "")
    if not isinstance(value, str) or not Path(value).is_absolute():
        raise UsageError(f"run config {key}: {value!r} is not an absolute path", _EXAMPLE)
    return Path(value)


def _seconds(values: Mapping[str, Value]) -> float:
    value = values.get("request-seconds", REQUEST_SECONDS)
    if isinstance(value, bool | str) or not value > 0:
        raise UsageError(f"run config request-seconds: {value!r} is not a number of seconds above 0", _EXAMPLE)
    return float(value)


_EXAMPLE = """flwr run . --run-config "plan='$PWD/plan.toml' out='$PWD/run'" """.strip()
