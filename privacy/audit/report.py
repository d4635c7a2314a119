"""The page for a data protection officer: violations first if any, the claim, the picture, each release, evidence.

Rules. Every epsilon stands with its delta, unit and relation, and is rounded up. A claim that does not hold is not
shown as one: where there are violations the page says so before anything else. Words stand in `report.html.j2`,
drawings in `charts.py`.
"""

import math
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from importlib import metadata
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ... import __version__
from ..budget.accounting import ACCOUNTANT, shown
from ..page.drawing import Caption
from ..page.pages import rendered
from .charts import Point, budget_chart
from .claims import AccountClaim, Claims, operator_lines, verdict
from .history import Account, History
from .keyfile import fingerprint
from .permissions import by_rule, by_verdict, not_permitted, run_permissions, trust_lines, why
from .replay import Audit
from .violations import CODES

# Rows that a person still reads, and a browser still shows; --json has them all.
MOST_LISTED = 2000
MOST_OPEN = 12  # rows of a table that is open when the page is
MOST_VIOLATIONS_SHOWN = 200
_LIBRARIES = ("dp-accounting", "cryptography", "pydantic", "numpy", "scipy", "opacus")


def write_report(audit: Audit, claims: Claims, path: Path) -> None:
    """Write one self-contained HTML page about an audited ledger: no network, no script, every text escaped."""
    forms: dict[str, Callable[[Any], str]] = {
        "epsilon": shown,
        "day": _day,
        "moment": _moment,
        "number": _number,
        "count": _count,
        "why": why,
    }
    page = rendered(Path(__file__).parent / "report.html.j2", _view(audit, claims), forms)
    path.write_text(page, encoding="utf-8")


def _view(audit: Audit, claims: Claims) -> dict[str, object]:
    history = audit.history
    total = sum(audit.counts.values())
    return {
        "a": audit,
        "c": claims,
        "verdict": verdict(audit),
        "is_simulation": claims.purpose == "simulation",
        "total": total,
        "violations": audit.violations[:MOST_VIOLATIONS_SHOWN],
        "violations_left": total - len(audit.violations[:MOST_VIOLATIONS_SHOWN]),
        "by_code": [(code, count, CODES[code]) for code, count in Counter(audit.counts).most_common()],
        "accounts": [
            (claim, _chart(place, claim, history.accounts[claim.name], audit), claim.runs[:MOST_LISTED])
            for place, claim in enumerate(claims.accounts)
        ],
        "releases": history.releases[:MOST_LISTED],
        "releases_left": len(history.releases[MOST_LISTED:]),
        "apps": claims.apps[-MOST_LISTED:],
        "apps_left": max(0, len(claims.apps) - MOST_LISTED),
        "operators": [line.removeprefix("operator ") for line in operator_lines(audit)[:MOST_OPEN]],
        "refusals": history.refusals[-MOST_LISTED:],
        "refusals_left": max(0, len(history.refusals) - MOST_LISTED),
        **_permissions(history),
        "most_open": MOST_OPEN,
        "most_listed": MOST_LISTED,
        "trust": claims.trust,
        "fingerprint": fingerprint(audit.public_key) if audit.public_key else None,
        "server_fingerprint": fingerprint(audit.witness.server_key)
        if audit.witness and audit.witness.server_key
        else None,
        "accountant": ACCOUNTANT,
        "recorded_accountants": sorted({run.accountant for run in history.runs.values() if run.accountant}),
        "codes": _told(Counter(release.code for release in history.releases if release.code)),
        "versions_told": _told(Counter(release.versions for release in history.releases if release.versions)),
        "versions": {"privet": __version__, **_versions()},
    }


def _permissions(history: History) -> dict[str, object]:
    denied, runs = not_permitted(history), run_permissions(history)
    return {
        "policies": list(history.policies.values())[-MOST_LISTED:],
        "verdicts": by_verdict(history),
        "rules": by_rule(history)[:MOST_LISTED],
        "trusted": trust_lines(history),
        "denied": denied[-MOST_LISTED:],
        "denied_left": max(0, len(denied) - MOST_LISTED),
        "approvals": history.approvals[-MOST_LISTED:],
        "permissions": runs[-MOST_LISTED:],
        "permissions_left": max(0, len(runs) - MOST_LISTED),
    }


def _chart(place: int, claim: AccountClaim, account: Account, audit: Audit) -> Markup:
    names = {dataset.name for dataset in claim.datasets}
    points = [
        Point(moment, float(step.spent), float(step.limit))
        for step in account.steps
        if (moment := _parsed(step.time)) is not None and math.isfinite(float(step.limit))
    ]
    refused = [refusal.time for refusal in audit.history.refusals if refusal.told.dataset in names]
    moments = [moment for time in refused if (moment := _parsed(time)) is not None]
    spent = "void, infinite" if claim.is_void else f"{shown(claim.epsilon_spent)} {claim.terms}"
    words = f"Spent {spent}; limit {shown(claim.epsilon)} {claim.limit_terms}; {len(refused)} attempts refused."
    return budget_chart(Caption(f"budget-{place}", f"Epsilon over time, account {claim.name}", words), points, moments)


def _parsed(time: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def _told(counts: Counter[str]) -> list[tuple[str, int]]:
    return counts.most_common(10)


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _day(time: str) -> str:
    return time[:10]


def _moment(time: str) -> str:
    return time[:19].replace("T", " ")


def _number(value: Decimal | float | str) -> str:
    return f"{float(value):g}"


def _count(value: Any) -> str:
    return f"{value:,}"
