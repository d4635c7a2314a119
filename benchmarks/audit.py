"""Replay of a ledger of 100,000 entries (500 plans of 20 parameter sets), against verifying the same signatures alone.

Before each request and each answer stands a decision of the policy, which the audit makes again: half of the entries.
With --hours a rule speaks of the time of day, so that no question is the same as another.

The peer is `cryptography`: one Ed25519 verification for each entry, with nothing parsed, hashed or added up. Prints the
seconds of both and their ratio. Issue: under 30 s. The accountants are part of the replay: PLD and RDP, once for each
parameter set.

    .venv/bin/python benchmarks/audit.py [--entries 100000] [--plans 500] [--parameter-sets 20] [--hours]
"""

import argparse
import sqlite3
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from privet.client.policy import NodePolicy
from privet.client.settings import NodeSettings
from privet.privacy.audit.claims import claims_of, verdict
from privet.privacy.audit.replay import audit_ledger
from privet.privacy.budget.accounts import AccountBook, AccountTerms
from privet.privacy.budget.book import DeclaredDataset
from privet.privacy.budget.guard import Attempt, Guard
from privet.privacy.budget.keys import SigningKey
from privet.privacy.budget.ledger import ENTRY, Ledger
from privet.privacy.plan_file import parse_plan
from privet.privacy.policy.policy_file import PolicyFile
from privet.privacy.policy.rules import END
from privet.privacy.submission import resolve

PLAN = """
[run]
name = "study"
task = "digits"
rounds = {rounds}
[training]
local-steps = 2
learning-rate = 1.0
[privacy]
unit = "record"
noise-multiplier = {noise}
delta = 1e-9
clip-norm = 1.0
sampling-rate = 0.01
"""
POLICY = """
@id("study") permit (principal, action in Action::"participate", resource)
when { context.plan.task == "digits" && context.account.epsilonAfter <= 900000000 };
@id("least-noise") forbid (principal, action in Action::"participate", resource)
unless { context.plan.noiseMultiplier >= 500000 };
@id("only-records") forbid (principal, action in Action::"participate", resource)
unless { context.plan.unit == "record" };
"""
HOURS = (
    '@id("hours") forbid (principal, action in Action::"participate", resource) unless { context.time.hour >= 0 };\n'
)
START = datetime(2026, 1, 1, tzinfo=UTC)


def build(path: Path, entries: int, plans: int, parameter_sets: int, rules: str) -> SigningKey:
    """A ledger whose every run is carried out to its last round."""
    key, moment = SigningKey.generate(), [START]

    def clock() -> datetime:
        moment[0] += timedelta(seconds=1)
        return moment[0]

    ledger = Ledger.open(path, purpose="deployment", owner="institution", key=key, clock=clock)
    accounts = AccountBook(ledger)
    accounts.open_account("ward", AccountTerms("record", Decimal(1000), Decimal("1e-4")))
    accounts.add_dataset(DeclaredDataset("digits", "digits", "/data/digits.csv", 100_000, "ward"))
    policy = path.with_name("policy.cedar")
    policy.write_text(f"{rules}{END}\n")
    guard = Guard(accounts, "digits", NodePolicy(PolicyFile(policy), NodeSettings))
    rounds = max(1, (entries - 4 - 2 * plans) // plans // 4)
    for run in range(plans):
        plan = parse_plan(PLAN.format(rounds=rounds, noise=2 + run % parameter_sets / 10), "benchmark")
        submission = resolve(plan, federation="f", run_id=f"run-{run}", operator="o", now=moment[0])
        guard.admit(submission, moment[0])
        done = {"noise_multiplier": repr(plan.privacy.noise_multiplier), "clip_norm": "1.0", "sampling_rate": "0.01"}
        done |= {"steps": "2", "task": "digits", "task_version": "1", "code": "c" * 64, "versions": '{"torch":"2.9.0"}'}
        for number in range(1, rounds + 1):
            attempt = Attempt("train", number, 1, "a" * 64)
            guard.begin(submission, attempt)
            guard.answered(submission, attempt, "b" * 64, done)
    ledger.close()
    return key


def peer_seconds(path: Path, public: str) -> float:
    """Verify every signature, and nothing else."""
    rows = sqlite3.connect(path).execute("SELECT hash, signature FROM entries").fetchall()
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
    framed = b"privet/" + ENTRY.encode() + b"/v1\0"
    start = time.perf_counter()
    for digest, signature in rows:
        key.verify(bytes.fromhex(signature), framed + bytes.fromhex(digest))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--plans", type=int, default=500)
    parser.add_argument("--parameter-sets", type=int, default=20)
    parser.add_argument("--hours", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite"
        print(f"writing {given.entries} entries …", file=sys.stderr)
        key = build(path, given.entries, given.plans, given.parameter_sets, POLICY + HOURS * given.hours)
        start = time.perf_counter()
        audit = audit_ledger(path, public_key=key.public)
        replayed = time.perf_counter() - start
        claims_of(audit)
        claimed = time.perf_counter() - start - replayed
        peer = peer_seconds(path, key.public)
    print(verdict(audit))
    print(f"privet replay of {audit.entries} entries: {replayed:.1f} s, and {claimed:.1f} s for the claims")
    print(f"cryptography, the signatures alone: {peer:.1f} s")
    print(f"ratio: {replayed / peer:.2f}")


if __name__ == "__main__":
    main()
