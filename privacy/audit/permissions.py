"""What the policy permitted and what not, in words: policies, counts, each denial, and what permitted each run.

Operators and parties are only as good as who names them: where a key was not pinned it was the coordinator.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .history import Approval, Decision, History
from .violations import shortened

_IN_WORDS = {"permitted": "permitted", "denied": "denied", "pending": "waiting for a person"}


@dataclass(frozen=True, slots=True)
class RunPermission:
    """What permitted a run, and who had approved it."""

    run: str
    decision: Decision
    approvals: tuple[Approval, ...]


def why(decision: Decision) -> str:
    """What decided."""
    if decision.error:
        return shortened(f"the policy could not be evaluated: {decision.error}")
    rules = ", ".join(decision.rules)
    if decision.verdict == "pending":
        return f"rule {rules} asks for the approval of {', '.join(decision.roles)}"
    if decision.verdict == "permitted":
        return f"permitted by rule {rules}"
    return f"forbidden by rule {rules}" if rules else "no rule permits it"


def by_verdict(history: History) -> Mapping[str, int]:
    """How many decisions of each verdict."""
    found = Counter(decision.verdict for decision in history.decisions)
    return {verdict: found[verdict] for verdict in _IN_WORDS}


def by_rule(history: History) -> Sequence[tuple[str, str, int]]:
    """Verdict, rule and how many decisions it made, the busiest first."""
    found = Counter((decision.verdict, rule) for decision in history.decisions for rule in decision.rules)
    return [(verdict, rule, count) for (verdict, rule), count in found.most_common()]


def not_permitted(history: History) -> Sequence[Decision]:
    """Denied and pending decisions, in order."""
    return [decision for decision in history.decisions if decision.verdict != "permitted"]


def run_permissions(history: History) -> Sequence[RunPermission]:
    """Of each run that was charged, and of each app's."""
    said = defaultdict(list)
    for approval in history.approvals:
        said[approval.submission].append(approval)
    return [
        RunPermission(run, decision, _approvals_of(decision, said[decision.submission]))
        for run, decision in history.permissions.items()
    ]


def trust_lines(history: History) -> Sequence[str]:
    """Who named the operators and the parties that the policy was told of."""
    if not history.decisions:
        return []
    pinned = Counter(decision.is_pinned for decision in history.decisions)
    counted = Counter(found.counts_pinned for found in history.decisions if found.counts_pinned is not None)
    lines = [f"operators in decisions: {_split(pinned, 'key pinned', 'coordinator trusted to name operators')}"]
    if counted:
        lines.append(f"cohorts in decisions: {_split(counted, 'pinned peers', 'coordinator trusted to name parties')}")
    return lines


def decision_line(decision: Decision) -> str:
    """One decision."""
    return (
        f"{decision.verdict}: entry {decision.entry}, {decision.time[:19]}, {decision.action} {decision.resource} for "
        f"run {decision.run} of {decision.operator}: {why(decision)}"
    )


def approval_line(approval: Approval) -> str:
    """What a person said."""
    return (
        f"{approval.verdict}: entry {approval.entry}, {approval.time[:19]}, run {approval.run}, by {approval.role}, "
        f"because: {shortened(' '.join(approval.because.split()))}"
    )


def permission_lines(history: History, most: int) -> Sequence[str]:
    """Policies, counts, denials, approvals and runs, a line each, of each kind the newest."""
    if not history.policies and not history.decisions:
        return ["decisions: none; the ledger holds no policy"]
    counts = ", ".join(f"{count} {_IN_WORDS[verdict]}" for verdict, count in by_verdict(history).items())
    policies = [
        f"policy {policy.hash[:12]}…: first used {policy.time[:19]}, {policy.decisions} decisions"
        for policy in history.policies.values()
    ]
    return [
        *_newest("policy", policies, most),
        f"decisions: {counts}",
        *(f"rule {rule}: {count} {_IN_WORDS[verdict]}" for verdict, rule, count in by_rule(history)[:most]),
        *trust_lines(history),
        *_newest("not permitted", [decision_line(found) for found in not_permitted(history)], most),
        *_newest("approval", [approval_line(found) for found in history.approvals], most),
        *_newest("run", [_run_line(found) for found in run_permissions(history)], most),
    ]


def permissions_json(history: History) -> dict[str, Any]:
    """All of it, for scripts."""
    return {
        "policies": [asdict(policy) for policy in history.policies.values()],
        "decisions": [asdict(decision) | {"why": why(decision)} for decision in history.decisions],
        "decisions_by_verdict": dict(by_verdict(history)),
        "decisions_by_rule": [
            {"verdict": verdict, "rule": rule, "decisions": count} for verdict, rule, count in by_rule(history)
        ],
        "approvals": [asdict(approval) for approval in history.approvals],
        "permissions": [asdict(permission) for permission in run_permissions(history)],
        "trusted": list(trust_lines(history)),
    }


def _approvals_of(decision: Decision, said: Iterable[Approval]) -> tuple[Approval, ...]:
    """The last word of each role before the decision, where it was an approval."""
    last = {one.role: one for one in said if one.entry < decision.entry}
    return tuple(one for one in last.values() if one.verdict == "approved")


def _run_line(permission: RunPermission) -> str:
    approved = "".join(
        f"; approved by {one.role}: {shortened(' '.join(one.because.split()))}" for one in permission.approvals
    )
    return f"run {permission.run}: {why(permission.decision)}, policy {permission.decision.policy[:12]}…{approved}"


def _split(counts: Mapping[bool, int], pinned: str, trusted: str) -> str:
    told = ((counts.get(True, 0), pinned), (counts.get(False, 0), trusted))
    return ", ".join(f"{count} with {words}" for count, words in told if count)


def _newest(kind: str, lines: Iterable[str], most: int) -> list[str]:
    known = list(lines)
    left = len(known) - most
    return [*([f"{kind}: {left} more before these"] if left > 0 else []), *known[-most:]]
