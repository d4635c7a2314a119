"""A statement in words and as JSON. Every epsilon goes with its delta, unit and relation; spent up, left down."""

from decimal import ROUND_FLOOR, Decimal

from .accounting import shown
from .statement import AccountStatement, RefusalStatement, RunStatement, delta_left


def lines(statement: AccountStatement) -> list[str]:
    """For a person: one fact a line."""
    account = statement.account
    order = f", order {account.alpha}" if account.alpha is not None else ""
    state = " closed," if account.is_closed else ""
    spent_terms = terms(account.unit, account.relation, statement.delta_spent)
    limit_terms = terms(account.unit, account.relation, account.delta)
    told = [
        f"account {account.name}:{state} {account.filter} filter{order}; limit epsilon {account.epsilon} {limit_terms}",
        f"data sets: {', '.join(statement.datasets) or 'none'}",
        f"epsilon spent {shown(statement.epsilon_spent)} of {shown_left(account.epsilon)} {spent_terms}",
    ]
    if account.is_void:
        told.append("void: a run without a claim was admitted; epsilon is infinite, and nothing more is admitted")
    else:
        reserved = statement.delta_reserved if account.alpha is None else account.delta
        told += [
            f"epsilon reserved {shown(statement.epsilon_reserved)} "
            f"{terms(account.unit, account.relation, reserved)}, charged and not yet begun",
            f"epsilon left {shown_left(account.epsilon_left)} "
            f"{terms(account.unit, account.relation, delta_left(account))}"
            + (", indicative: the filter decides by divergence" if account.alpha is not None else ""),
        ]
    if statement.runs_left is not None:
        told.append(f"at this rate: {statement.runs_left} more runs like the last one")
    told += [_run_line(run, account.relation) for run in statement.runs]
    told += [
        f"raised on {entry['time']}: epsilon {entry['from']} to {entry['epsilon']} {limit_terms}, {entry['because']}"
        for entry in statement.raises
    ]
    told += [
        f"refused run {refusal.run} of {refusal.operator} on {refusal.time}: {refusal.code}: {refusal.why}"
        for refusal in statement.refusals
    ]
    return told


def _run_line(run: RunStatement, relation: str) -> str:
    told = (
        f"run {run.run} of {run.operator}: plan {run.plan} on {run.dataset}, {run.state}, "
        f"{run.rounds_begun} of {run.rounds_charged} rounds begun"
    )
    if run.evaluations_charged:
        told += f", {run.evaluations_begun} of {run.evaluations_charged} evaluations"
    if not run.epsilon.is_finite():
        return f"{told}, no claim"
    told += f", epsilon charged {shown(run.epsilon)} {terms(run.unit, relation, run.delta)}"
    if run.epsilon_executed is None:
        return f"{told}, what was executed is unknown"
    return f"{told}, executed {shown(run.epsilon_executed)} if the schedule was fixed in advance"


def terms(unit: str, relation: str, delta: Decimal | float) -> str:
    """What belongs behind every epsilon.

    >>> terms("record", "add-or-remove-one", Decimal("0.00001"))
    'at delta 1e-5 (unit: record, add-or-remove-one)'
    """
    return f"at delta {delta_text(delta)} (unit: {unit}, {relation})"


def delta_text(delta: Decimal | float) -> str:
    """A delta as a short exact text.

    >>> delta_text(Decimal("0.00002")), delta_text(Decimal(0))
    ('2e-5', '0')
    """
    value = Decimal(repr(delta)) if isinstance(delta, float) else delta
    return f"{value.normalize():e}" if value else "0"


def shown_left(epsilon: Decimal) -> str:
    """Two places, rounded down: what is printed as left is never more than what is.

    >>> shown_left(Decimal("2.849"))
    '2.84'
    """
    return f"{epsilon.quantize(Decimal('0.01'), rounding=ROUND_FLOOR)}"


def as_json(statement: AccountStatement) -> dict[str, object]:
    """For `--json`. Infinite numbers are null, `is_void` says why."""
    account = statement.account
    return {
        "account": account.name,
        "unit": account.unit,
        "relation": account.relation,
        "filter": account.filter,
        "alpha": account.alpha,
        "allows_none": account.allows_none,
        "is_void": account.is_void,
        "is_closed": account.is_closed,
        "datasets": list(statement.datasets),
        "epsilon": _number(account.epsilon),
        "delta": _number(account.delta),
        "epsilon_spent": _number(statement.epsilon_spent),
        "delta_spent": _number(statement.delta_spent),
        "epsilon_reserved": _number(statement.epsilon_reserved),
        "delta_reserved": _number(statement.delta_reserved),
        "epsilon_left": _number(account.epsilon_left),
        "delta_left": _number(delta_left(account)),
        "runs_left": statement.runs_left,
        "runs": [_fields(run) for run in statement.runs],
        "refused": [_fields(refusal) for refusal in statement.refusals],
        "raises": [dict(entry) for entry in statement.raises],
    }


def _fields(told: RunStatement | RefusalStatement) -> dict[str, object]:
    values = {name: getattr(told, name) for name in type(told).__slots__}
    return {name: _number(value) if isinstance(value, Decimal) else value for name, value in values.items()}


def _number(value: Decimal) -> float | None:
    return float(value) if value.is_finite() else None
