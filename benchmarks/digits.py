"""Milliseconds until the first round of the plan `digits` is done, once torch and flwr are loaded, as JSON.

Everything else counts: what is imported later, the data, the ledgers, the calibration of the noise.
"""

import json
import tempfile
import time
from pathlib import Path

import privet.client.device
import privet.simulations.scenario  # noqa: F401 -- torch, flwr, and what `privet simulate` loads with them
from ours import Clock
from privet.simulations import cli, summary


def main() -> None:
    summary.RoundProgress = Clock
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        cli.simulate("digits", out=Path(folder) / "run")
    print(json.dumps({"times_ms": [(Clock.moments[1] - started) * 1e3], "loss": 0.0}))


if __name__ == "__main__":
    main()
