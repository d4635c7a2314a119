"""One decision of a node's policy with 200 rules, against cedarpy used as its documentation begins: text and all.

What is timed is what a node does for a request: gather the facts, ask, and write down what the ledger will hold. The
peers decide the same question: `text` parses policies and schema at each call, `handles` has parsed them before and is
given the request ready-made. Interleaved in blocks of 20; prints medians and the ratios. Issue: under 0.5 ms (median).

    .venv/bin/python benchmarks/policy.py [--rules 200] [--decisions 400]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import cedarpy
from audit import PLAN
from privet.client.policy import NodePolicy, question_of
from privet.client.settings import NodeSettings
from privet.privacy.budget.admission import Charge
from privet.privacy.budget.book import Account, Book, DeclaredDataset
from privet.privacy.budget.decisions import Asker, Case
from privet.privacy.plan_file import parse_plan
from privet.privacy.policy.policy_file import PolicyFile
from privet.privacy.policy.rules import END, schema, schema_text
from privet.privacy.submission import resolve

NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)
KEY = "5e" * 32
BLOCK = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", type=int, default=200)
    parser.add_argument("--decisions", type=int, default=400)
    given = parser.parse_args()
    text, case = policy_of(given.rules), the_case()
    settings = NodeSettings(operators={"operator-0": KEY})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.cedar"
        path.write_text(text)
        policy = NodePolicy(PolicyFile(path), lambda: settings)
        times = interleaved(
            {"privet": lambda: policy(case), "handles": handles(text, case), "text": plain(text, case)},
            given.decisions,
        )
    ours = times["privet"]
    print(f"{given.rules} rules, {given.decisions} decisions of each, medians")
    print(f"privet  {ours * 1e3:.3f} ms a decision, facts and entry included (aim: under 0.5)")
    for peer in ("handles", "text"):
        print(f"cedarpy with {peer:<7} {times[peer] * 1e3:.3f} ms; ratio {ours / times[peer]:.2f}")


def policy_of(count: int) -> str:
    """Five rules an operator, as `privet policy allow` writes them."""
    rules = []
    for number in range(-(-count // 5)):
        who = f'principal == Operator::"operator-{number}", action in Action::"participate"'
        rules += [
            f'@id("o{number}") permit ({who}, resource == Dataset::"digits") when {{ principal.key == "{KEY}" }};',
            f'@id("o{number}-epsilon") forbid ({who}, resource) '
            "unless { context.account.epsilonOfOperator <= 9000000 };",
            f'@id("o{number}-noise") forbid ({who}, resource) unless {{ context.plan.noiseMultiplier >= 500000 }};',
            f'@id("o{number}-hours") forbid ({who}, resource) '
            "unless { context.time.hour >= 8 && context.time.hour < 18 };",
            f'@id("o{number}-until") forbid ({who}, resource) unless {{ context.time.date <= 20270630 }};',
        ]
    return "\n".join([*rules[:count], END, ""])


def the_case() -> Case:
    plan = parse_plan(PLAN.format(rounds=20, noise=20), "benchmark")
    submission = resolve(
        plan, federation="f", run_id="run-1", operator="operator-0", now=NOW, validity=timedelta(days=1)
    )
    account = Account("ward7", "record", "add-or-remove-one", Decimal(10), Decimal("1e-4"), "additive", None, False)
    dataset = DeclaredDataset("digits", "digits", "/data", 1200, "ward7")
    charge = Charge(Decimal("0.5"), Decimal("1e-5"), Decimal(0), ())
    asker = Asker("operator-0", KEY, NOW - timedelta(hours=2))
    return Case(submission, "admit", asker, NOW, Book(), dataset, account, charge)


def request_of(case: Case) -> tuple[dict[str, object], list[dict[str, object]]]:
    question = question_of(case, NodeSettings())
    named = {"principal": question.principal.uid, "resource": question.resource.uid}
    request: dict[str, object] = {key: {"type": kind, "id": name} for key, (kind, name) in named.items()}
    request |= {"action": {"type": "Action", "id": question.action}, "context": dict(question.context)}
    return request, [one.as_json() for one in (question.principal, question.resource, *question.others)]


def handles(text: str, case: Case) -> Callable[[], object]:
    request, entities = request_of(case)
    policies, parsed = cedarpy.PolicySet.from_str(text), schema()
    return lambda: cedarpy.is_authorized(request, policies, entities, parsed)


def plain(text: str, case: Case) -> Callable[[], object]:
    request, entities = request_of(case)
    told = schema_text()
    return lambda: cedarpy.is_authorized(request, text, entities, told)


def interleaved(contenders: dict[str, Callable[[], object]], count: int) -> dict[str, float]:
    """The median seconds of each, asked in turn."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(-(-count // BLOCK)):
        for name, decide in contenders.items():
            decide()  # the caches are another contender's
            for _ in range(BLOCK):
                started = time.perf_counter()
                decide()
                taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in taken.items()}


if __name__ == "__main__":
    main()
