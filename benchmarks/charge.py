"""A durable charge on an account with 100,000 entries, against a bare durable row of the same bytes in SQLite.

What is timed is `Guard.admit`: read and verify what is new, weigh the plan, ask the filter, sign, append, sync. The
peer inserts one row of as many bytes with full sync, and checks nothing. Interleaved; prints medians and the ratio.
Issue: under 10 ms.

    .venv/bin/python benchmarks/charge.py [--entries 100000] [--charges 200]
"""

import argparse
import sqlite3
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from audit import PLAN, POLICY, build
from privet.privacy.budget.accounts import AccountBook
from privet.privacy.budget.guard import Guard
from privet.privacy.budget.ledger import Ledger
from privet.privacy.plan_file import parse_plan
from privet.privacy.submission import resolve

NOW = datetime(2026, 11, 22, tzinfo=UTC)
PARAMETER_SETS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--charges", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite"
        print(f"writing {given.entries} entries …", file=sys.stderr)
        key = build(path, given.entries, plans=500, parameter_sets=PARAMETER_SETS, rules=POLICY)
        started = time.perf_counter()
        accounts = AccountBook(Ledger.open(path, purpose="deployment", owner="institution", key=key))
        opened = time.perf_counter() - started
        guard, peer = Guard(accounts, "digits"), bare_table(Path(folder) / "bare.sqlite")
        ours, theirs = [], []
        for number in range(given.charges):
            plan = parse_plan(PLAN.format(rounds=1, noise=20 + number % PARAMETER_SETS), "benchmark")
            submission = resolve(
                plan, federation="f", run_id=f"new-{number}", operator="o", now=NOW, validity=timedelta(days=1)
            )
            started = time.perf_counter()
            guard.admit(submission, NOW)
            ours.append(time.perf_counter() - started)
            started = time.perf_counter()
            peer.execute("INSERT INTO rows (body) VALUES (?)", (submission.canonical * 2,))
            theirs.append(time.perf_counter() - started)
        accounts.ledger.close()
    our, their = statistics.median(ours) * 1e3, statistics.median(theirs) * 1e3
    print(f"opening {given.entries} entries: {opened:.2f} s")
    print(f"privet {our:.2f} ms a charge; a bare durable row {their:.2f} ms; ratio {our / their:.1f}")


def bare_table(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE rows (body BLOB);")
    return connection


if __name__ == "__main__":
    main()
