"""What every contender is asked, and how it answers: one JSON line, the last that it prints."""

import argparse
import itertools
import json
from collections.abc import Sequence


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--cohort", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--privacy", choices=("none", "hooks", "ghost", "own"), default="none")
    parser.add_argument("--processes", type=int, default=1, help="for privet 0: as it chooses")
    return parser.parse_args()


def answer(moments: Sequence[float], loss: float) -> None:
    """`moments`: when each round ended, in seconds, before it the moment when the first began."""
    times = [(after - before) * 1e3 for before, after in itertools.pairwise(moments)]
    print(json.dumps({"times_ms": times, "loss": loss}), flush=True)
