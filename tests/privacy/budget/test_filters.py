"""Admission by both filters, against computations that share no code with privet."""

import math
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant
from opacus.accountants.analysis.rdp import compute_rdp
from privet.privacy.budget.accounts import AccountBook, AccountTerms
from privet.privacy.budget.book import DeclaredDataset
from privet.privacy.budget.charge import charged_events
from privet.privacy.budget.events import SampledGaussian
from privet.privacy.budget.filters import best_alpha, renyi_cost, renyi_epsilon, renyi_limit
from privet.privacy.budget.guard import Guard
from privet.privacy.budget.keys import SigningKey
from privet.privacy.budget.ledger import Ledger
from privet.privacy.errors import Refusal, RefusedError
from privet.privacy.plan_file import parse_plan
from privet.privacy.submission import Submission, resolve

NOW = datetime(2026, 11, 22, tzinfo=UTC)
POOL = 30
SEQUENCES = 500
PLANS_A_SEQUENCE = 12
# Decisions closer to the limit than this are not compared: the other computation rounds elsewhere.
TOO_CLOSE = 1e-4
PLAN = """
[run]
name = "pool"
task = "fake"
rounds = {rounds}
[training]
local-steps = {steps}
learning-rate = 1.0
[privacy]
unit = "record"
noise-multiplier = {noise}
delta = 1e-6
clip-norm = 1.0
sampling-rate = {rate}
"""
DELTA, ACCOUNT_DELTA = 1e-6, 1e-5
EPSILON = 4.0


def pool() -> list[dict[str, Any]]:
    rng = random.Random(30)
    return [
        {
            "rounds": rng.choice((1, 5, 10)),
            "steps": rng.choice((1, 4)),
            "noise": round(rng.uniform(1.5, 12.0), 2),
            "rate": rng.choice((0.05, 0.2, 1.0)),
        }
        for _ in range(POOL)
    ]


def submission_of(plan: dict[str, Any], run_id: str) -> Submission:
    parsed = parse_plan(PLAN.format(**plan), "pool.toml")
    return resolve(parsed, federation="test", run_id=run_id, operator="alice", now=NOW, validity=timedelta(days=1))


def independent_epsilon(plan: dict[str, Any]) -> float:
    """dp-accounting called directly."""
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    gaussian = dp_accounting.GaussianDpEvent(plan["noise"])
    event = gaussian if plan["rate"] == 1.0 else dp_accounting.PoissonSampledDpEvent(plan["rate"], gaussian)
    accountant.compose(event, plan["rounds"] * plan["steps"])
    return float(accountant.get_epsilon(DELTA))


def independent_divergence(plan: dict[str, Any], alpha: int) -> float:
    """Opacus' own RDP."""
    steps = plan["rounds"] * plan["steps"]
    return float(compute_rdp(q=plan["rate"], noise_multiplier=plan["noise"], steps=steps, orders=[alpha])[0])


def guard_of(folder: Path, number: int, terms: AccountTerms, key: SigningKey) -> tuple[Guard, AccountBook]:
    accounts = AccountBook(Ledger.open(folder / f"{number}.sqlite", purpose="simulation", owner="ward", key=key))
    accounts.open_account("ward", terms)
    accounts.add_dataset(DeclaredDataset("fake", "fake", "/data/ward", 1000, "ward"))
    return Guard(accounts, "fake"), accounts


def admitted(guard: Guard, submission: Submission) -> bool:
    try:
        guard.admit(submission, NOW)
    except RefusedError as refusal:
        assert refusal.code == Refusal.BUDGET_EXHAUSTED  # noqa: PT017
        return False
    return True


def replay(
    folder: Path, terms: AccountTerms, cost: Callable[[dict[str, Any]], float], limit: float, sequences: int
) -> list[list[dict[str, Any]]]:
    """Run random sequences through the guard, comparing every decision with `spent + cost <= limit`."""
    rng, plans, key = random.Random(7), pool(), SigningKey.generate()
    costs = [cost(plan) for plan in plans]
    compared, accepted = 0, []
    for number in range(sequences):
        guard, accounts = guard_of(folder, number, terms, key)
        spent, chosen = 0.0, []
        for step in range(PLANS_A_SEQUENCE):
            place = rng.randrange(POOL)
            decision = admitted(guard, submission_of(plans[place], f"run-{step}"))
            if abs(spent + costs[place] - limit) > TOO_CLOSE:
                assert decision == (spent + costs[place] <= limit), (number, step, plans[place], spent)
                compared += 1
            if decision:
                spent += costs[place]
                chosen.append(plans[place])
        accounts.ledger.close()
        accepted.append(chosen)
    assert compared > 0.99 * sequences * PLANS_A_SEQUENCE
    return accepted


@pytest.mark.slow
def test_additive_admission_equals_an_independent_sum(tmp_path: Path) -> None:
    terms = AccountTerms("record", Decimal(str(EPSILON)), Decimal("1e-4"))
    accepted = replay(tmp_path, terms, independent_epsilon, EPSILON, SEQUENCES // 2)
    assert {len(chosen) for chosen in accepted} != {PLANS_A_SEQUENCE}, "some plan must have been refused"


@pytest.mark.slow
def test_renyi_admission_equals_an_independent_sum(tmp_path: Path) -> None:
    typical = charged_events(parse_plan(PLAN.format(**pool()[0]), "pool.toml"), pool()[0]["noise"])
    delta = Decimal(repr(ACCOUNT_DELTA))
    terms = AccountTerms("record", Decimal(str(EPSILON)), delta, "renyi", typical)
    alpha = best_alpha(typical, Decimal(str(EPSILON)), delta)
    limit = EPSILON - math.log((alpha - 1) / alpha) + (math.log(ACCOUNT_DELTA) + math.log(alpha)) / (alpha - 1)
    replay(tmp_path, terms, lambda plan: independent_divergence(plan, alpha), limit, SEQUENCES // 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Optimal order is the largest alpha")  # Opacus, looking for a safe domain
@pytest.mark.parametrize("kind", ["additive", "renyi"])
def test_no_admitted_sequence_exceeds_the_account_by_a_tight_accountant(tmp_path: Path, kind: Any) -> None:
    """PRV's lower estimate of everything that an account admitted, at the account's delta, stays below its epsilon."""
    typical = charged_events(parse_plan(PLAN.format(**pool()[0]), "pool.toml"), pool()[0]["noise"])
    terms = AccountTerms("record", Decimal(str(EPSILON)), Decimal(repr(ACCOUNT_DELTA)), kind, typical)
    rng, plans, key = random.Random(11), pool(), SigningKey.generate()
    for number in range(6):
        guard, accounts = guard_of(tmp_path, number, terms, key)
        accountant = PRVAccountant()
        for step in range(40):
            plan = plans[rng.randrange(POOL)]
            if admitted(guard, submission_of(plan, f"run-{step}")):
                rate = min(plan["rate"], 0.9999)  # PRV cannot take 1; a smaller rate keeps it a lower estimate
                accountant.history.append((plan["noise"], rate, plan["rounds"] * plan["steps"]))
        accounts.ledger.close()
        discrete = accountant._get_dprv(eps_error=0.05, delta_error=ACCOUNT_DELTA / 1000)
        lower, _, _ = discrete.compute_epsilon(ACCOUNT_DELTA, ACCOUNT_DELTA / 1000, 0.05)
        assert lower <= EPSILON, accountant.history


@given(alpha=st.integers(2, 128), epsilon=st.decimals(1, 50, places=3), delta=st.sampled_from(["1e-3", "1e-5", "1e-9"]))
def test_spending_the_whole_renyi_limit_gives_the_accounts_epsilon(alpha: int, epsilon: Decimal, delta: str) -> None:
    limit = renyi_limit(epsilon, Decimal(delta), alpha)
    if limit > 0:
        assert epsilon - Decimal("1e-6") <= renyi_epsilon(limit, Decimal(delta), alpha) <= epsilon + Decimal("1e-8")


@given(noise=st.floats(0.8, 20.0), rate=st.sampled_from([0.01, 0.1, 0.5, 1.0]), count=st.integers(1, 500))
def test_divergence_is_never_below_opacus_own(noise: float, rate: float, count: int) -> None:
    ours = renyi_cost((SampledGaussian(noise, rate, count),), 8)
    theirs = compute_rdp(q=rate, noise_multiplier=noise, steps=count, orders=[8])[0]
    assert float(ours) >= theirs * (1 - 1e-9)
    assert float(ours) <= theirs * (1 + 1e-6) + 2e-9


def test_divergence_of_a_plain_gaussian_is_in_closed_form() -> None:
    """Mironov 2017, corollary 3: alpha / (2 sigma^2), times the number of releases."""
    assert float(renyi_cost((SampledGaussian(2.0, 1.0, 10),), 6)) == pytest.approx(10 * 6 / 8, abs=1e-8)


def test_many_small_runs_fit_better_under_renyi(tmp_path: Path) -> None:
    """What the filter is for: forty runs of epsilon 0.2 each."""
    small = {"rounds": 1, "steps": 1, "noise": 20.0, "rate": 1.0}
    typical = charged_events(parse_plan(PLAN.format(**small), "pool.toml"), 20.0)
    counts = {}
    for number, kind in enumerate(("additive", "renyi")):
        delta = Decimal("1e-3") if kind == "additive" else Decimal("1e-5")
        terms = AccountTerms("record", Decimal(2), delta, kind, typical)  # type: ignore[arg-type]
        guard, _ = guard_of(tmp_path, number, terms, SigningKey.generate())
        counts[kind] = sum(admitted(guard, submission_of(small, f"run-{n}")) for n in range(200))
    assert counts["renyi"] > 3 * counts["additive"]
