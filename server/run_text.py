"""A run and its events as lines for people. Texts of the server were cleaned where they came in."""

from collections.abc import Mapping
from typing import Any

from ..privacy.budget.accounting import shown
from ..privacy.budget.statement_text import terms
from ..privacy.channel.words import DISCLOSED

View = Mapping[str, Any]
_MOST_NAMES = 12  # in one line; --json has them all


def run_line(run: View) -> str:
    """A run in a list."""
    return f"{run['run_id']}  {run['state']}  {_of_rounds(run)}  {run['created']}  by {run['operator']}"


def page_lines(run: View) -> list[str]:
    """All of a run."""
    what = f"app {run['app']}" if run.get("app") else f"task {run.get('task')}, data set {run.get('dataset')}"
    project = f" of project {run['project']}" if run.get("project") else ""
    lines = [
        f"run {run['run_id']}{project}: {run['state']}, {_of_rounds(run)}",
        f"{what}; submitted by {run['operator']} at {run['created']}, valid until {run['valid_until']}",
        *epsilon_lines(run),
        *_named("takes part", dict.fromkeys(run["members"], "")),
        *_named("refused", run["refused"]),
        *_named("not asked", run["not_asked"]),
        *_named("waits for", run["waits_for"]),
        *_named("left out", run["excluded"]),
    ]
    if run["metrics"]:
        lines.append(metrics_text(run["metrics"]))
    lines.append(f"sent {size_text(run['traffic']['sent'])}, received {size_text(run['traffic']['received'])}")
    if run["model"]:
        lines.append(f"model: {size_text(run['model']['bytes'])}, SHA-256 {run['model']['sha256']}")
    if run["error"]:
        lines.append(f"failed: {run['error']['code']}: {run['error']['text']}; try: {run['error']['try']}")
    return lines


def epsilon_lines(run: View) -> list[str]:
    """What each node is charged and what was carried out so far; or that no claim is made."""
    claim, spent = run.get("claim"), run.get("epsilon")
    if claim is None:
        return ["no privacy claim"]
    limit = terms(claim["unit"], claim["relation"], claim["delta"])
    lines = [f"claimed: at most epsilon {claim['epsilon']:g} {limit} for each node"]
    if spent and spent["executed"]:
        most = max(spent["executed"], key=lambda name: spent["executed"][name])
        lines.append(f"charged {shown(claim['epsilon'])}, executed {shown(spent['executed'][most])} ({most}) {limit}")
    return lines


def event_line(event: View) -> str:
    """An event of a run's log."""
    return f"{event['time']}  {_told(event['kind'], event['body'])}"


def _told(kind: str, body: View) -> str:
    if kind == "round":
        return _round_text(body)
    if kind == "roll":
        parts = [
            *_named("takes part", dict.fromkeys(body.get("members", []), "")),
            *_named("refused", body.get("refused", {})),
            *_named("not asked", body.get("not_asked", {})),
        ]
        return "; ".join(parts)
    if kind == "waits":
        return "; ".join(_named("waits for", body.get("nodes", {}))) or "waits for nobody any more"
    if kind == "failed":
        return f"failed: {body.get('code')}: {body.get('text')}"
    if kind == "app":
        anew = "begins anew, without a checkpoint" if body.get("is_anew") else "begins"
        return f"app {body.get('app')} {anew}, loaded from {body.get('loaded_from')}"
    if kind == "refused":
        return f"no answer from {body.get('node')}: {why_text(body)}"
    if kind == "app-ended":
        return "the app has ended"
    by = body.get("by") or body.get("operator")
    return f"{kind} by {by}" if by else kind


def _round_text(body: View) -> str:
    took = f" in {body['seconds']:.1f} s" if "seconds" in body else ""
    parts = [f"round {body.get('round')}: {body.get('answered')} answered{took}"]
    if body.get("metrics"):
        parts.append(metrics_text(body["metrics"]))
    return "; ".join([*parts, *_named("missing", body.get("missing", {}))])


def why_text(body: View) -> str:
    """A code, and what an institution lets be told of it."""
    disclosed = body.get("disclosed")
    return f"{body.get('code')}{DISCLOSED}{disclosed}" if disclosed else str(body.get("code"))


def metrics_text(metrics: View) -> str:
    """Released metrics: means over the declared records of those who answered."""
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def size_text(count: int) -> str:
    """Bytes for people.

    >>> size_text(2_500_000)
    '2.5 MB'
    """
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _of_rounds(run: View) -> str:
    return f"round {run['round']} of {run['rounds']}" if run["rounds"] is not None else "an app"


def _named(what: str, names: Mapping[str, str]) -> list[str]:
    """Names, each with its reason; nothing where there are none."""
    if not names:
        return []
    told = [f"{name} {why}".strip() for name, why in sorted(names.items())[:_MOST_NAMES]]
    more = [f"{len(names) - _MOST_NAMES} more"] if len(names) > _MOST_NAMES else []
    return [f"{what}: {', '.join([*told, *more])}"]
