"""The book of runs: what was submitted, how far it is, what happened to it. A state is durable when it is entered.

    submitted -> waiting <-> running -> finished
                    |           |-----> failed ------------> submitted again (resume)
                    `-----------`-----> stopping -> stopped -> submitted again (resume)

The rules:
1. A change of state and the event that tells it stand in one transaction. `MAY_FOLLOW` says what may follow what, and
   the database itself compares: two who change a run at once cannot both succeed.
2. The book is for people. Where a run stands is what its newest checkpoint says; `round` here may lag behind it. So
   what is told of a round outlives the process and not a power cut, after which it is told again (training_run.py).
3. A submission is kept as it was signed. The same bytes again are no news; others under the same run id are refused.
"""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    ForeignKey,
    Integer,
    LargeBinary,
    Row,
    Select,
    String,
    Text,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Mapped, mapped_column

from ..privacy.budget.ledger import Clock, system_clock
from ..privacy.errors import FederationError, Refusal, RefusedError, UsageError
from ..privacy.signed import SignedSubmission, check_sizes
from .database import Base
from .run_record import ENDED, MAY_FOLLOW, NewRun, RunError, RunEvent, RunRecord, RunState

BODY_BYTES = 1024 * 1024  # of an event: a round of some ten thousand nodes
MOST_LISTED = 1000  # runs, or events, in one answer
_NAME = 64
# What makes commits wait for no disk, and what makes them wait again. Either way a commit outlives the process.
_HURRY = {
    "sqlite": ("PRAGMA synchronous = NORMAL", "PRAGMA synchronous = FULL"),
    "postgresql": ("SET synchronous_commit = off", "SET synchronous_commit = on"),
}


class _Run(Base):
    __tablename__ = "runs"

    run_id: Mapped[str] = mapped_column(String(_NAME), primary_key=True)
    name: Mapped[str] = mapped_column(String(_NAME))
    kind: Mapped[str] = mapped_column(String(_NAME))
    operator: Mapped[str] = mapped_column(String(_NAME))
    state: Mapped[str] = mapped_column(String(_NAME), index=True)
    submission: Mapped[bytes] = mapped_column(LargeBinary)
    signature: Mapped[bytes] = mapped_column(LargeBinary)
    certificates: Mapped[bytes] = mapped_column(LargeBinary)
    created: Mapped[str] = mapped_column(String(_NAME))
    started: Mapped[str | None] = mapped_column(String(_NAME))
    ended: Mapped[str | None] = mapped_column(String(_NAME))
    rounds: Mapped[int | None] = mapped_column(Integer)
    round: Mapped[int] = mapped_column(Integer, default=0)
    error: Mapped[str | None] = mapped_column(Text)
    standing: Mapped[str] = mapped_column(Text, default="{}")
    events: Mapped[int] = mapped_column(Integer, default=0)


class _Event(Base):
    __tablename__ = "run_events"

    run_id: Mapped[str] = mapped_column(String(_NAME), ForeignKey("runs.run_id"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    time: Mapped[str] = mapped_column(String(_NAME))
    kind: Mapped[str] = mapped_column(String(_NAME))
    body: Mapped[str] = mapped_column(Text)


class _OfProject(Base):
    """A table of its own: a database that was made before there were projects has it too (`create_all`)."""

    __tablename__ = "run_projects"

    run_id: Mapped[str] = mapped_column(String(_NAME), ForeignKey("runs.run_id"), primary_key=True)
    project: Mapped[str] = mapped_column(String(_NAME))


_LISTED = [column for column in _Run.__table__.columns if not isinstance(column.type, LargeBinary)]


def _listed() -> Select[Any]:
    """Runs without their submissions, each with its project."""
    return select(*_LISTED, _OfProject.project).outerjoin(_OfProject, _OfProject.run_id == _Run.run_id)


class RunBook:
    """The runs of a server, in its database. Threads may share it."""

    def __init__(self, engine: Engine, clock: Clock = system_clock) -> None:
        self._engine = engine
        self._clock = clock

    def add(self, run: NewRun, signed: SignedSubmission) -> bool:
        """Enter a run as submitted: True, or False where this very submission was entered before.

        Raises RefusedError: other-submission where the run id is another's, not-signed where it is too large.
        """
        check_sizes(signed)
        try:
            with self._transaction() as connection:
                connection.execute(insert(_Run), [self._row(run, signed)])
                if run.project is not None:
                    connection.execute(insert(_OfProject), [{"run_id": run.run_id, "project": run.project}])
                self._enter(connection, run.run_id, 1, RunState.SUBMITTED, {"operator": run.operator})
        except IntegrityError:
            if self.signed(run.run_id).submission == signed.submission:
                return False
            raise RefusedError(
                Refusal.OTHER_SUBMISSION,
                f"run id {run.run_id} is taken by another submission",
                "submit the plan again: it gets a run id of its own",
            ) from None
        return True

    def record(self, run_id: str) -> RunRecord:
        """One run; raise UsageError where there is none of that id."""
        with self._transaction() as connection:
            row = connection.execute(_listed().where(_Run.run_id == run_id)).one_or_none()
        if row is None:
            raise unknown_run(run_id)
        return _record_of(row)

    def records(self, *states: RunState) -> list[RunRecord]:
        """The newest `MOST_LISTED` runs, newest first; of these states, or of any."""
        query = _listed().order_by(_Run.created.desc(), _Run.run_id).limit(MOST_LISTED)
        if states:
            query = query.where(_Run.state.in_(states))
        with self._transaction() as connection:
            return [_record_of(row) for row in connection.execute(query)]

    def counts(self) -> dict[RunState, int]:
        """How many runs are in each state that any is in."""
        query = select(_Run.state, func.count()).group_by(_Run.state)
        with self._transaction() as connection:
            return {RunState(state): count for state, count in connection.execute(query)}

    def signed(self, run_id: str) -> SignedSubmission:
        """The submission, as it was signed."""
        columns = (_Run.submission, _Run.signature, _Run.certificates)
        with self._transaction() as connection:
            row = connection.execute(select(*columns).where(_Run.run_id == run_id)).one_or_none()
        if row is None:
            raise unknown_run(run_id)
        return SignedSubmission(*(bytes(value) for value in row))

    def move(
        self,
        run_id: str,
        state: RunState,
        body: Mapping[str, Any] | None = None,
        *,
        error: RunError | None = None,
        standing: Mapping[str, Any] | None = None,
    ) -> RunRecord:
        """The run in its new state, told by an event of that name; raise UsageError where it may not follow."""
        now = self._now()
        changes: dict[str, Any] = {"state": state}
        if state is RunState.RUNNING:
            changes["started"] = func.coalesce(_Run.started, now)
        if state is RunState.SUBMITTED:
            changes |= {"ended": None, "error": None}
        if state in ENDED:
            changes["ended"] = now
        if error is not None:
            changes["error"] = _json({"code": error.code, "text": error.text, "remedy": error.remedy})
        if standing is not None:
            changes["standing"] = _json(standing)
        before = [previous for previous, following in MAY_FOLLOW.items() if state in following]
        told = dict(body or {}) | ({"code": error.code, "text": error.text} if error else {})
        if not self._change(run_id, _Run.state.in_(before), changes, state, told):
            now_in = self.record(run_id).state
            raise UsageError(f"run {run_id} is {now_in}: it cannot become {state}", f"privet run show {run_id}")
        return self.record(run_id)

    def tell(
        self,
        run_id: str,
        kind: str,
        body: Mapping[str, Any],
        *,
        round_number: int | None = None,
        standing: Mapping[str, Any] | None = None,
    ) -> None:
        """Enter an event that changes no state, with the round and the standing it leads to. It waits for no disk."""
        changes: dict[str, Any] = {}
        if round_number is not None:
            changes["round"] = round_number
        if standing is not None:
            changes["standing"] = _json(standing)
        if not self._change(run_id, _Run.run_id == run_id, changes, kind, body, is_durable=False):
            raise unknown_run(run_id)

    def events(self, run_id: str, after: int = 0) -> list[RunEvent]:
        """The first `MOST_LISTED` events after a number, in order; none for a run that is unknown."""
        columns = (_Event.number, _Event.time, _Event.kind, _Event.body)
        query = select(*columns).where(_Event.run_id == run_id, _Event.number > after).order_by(_Event.number)
        with self._transaction() as connection:
            rows = connection.execute(query.limit(MOST_LISTED)).all()
        return [RunEvent(number, time, kind, json.loads(body)) for number, time, kind, body in rows]

    def _change(
        self,
        run_id: str,
        only_if: ColumnElement[bool],
        changes: dict[str, Any],
        kind: str,
        body: Mapping[str, Any],
        *,
        is_durable: bool = True,
    ) -> bool:
        """Change the run and enter the event, both or none; False where no run is as `only_if` says.

        The update comes first: it takes the row's lock, so that the event's number is nobody else's.
        """
        change = update(_Run).where(_Run.run_id == run_id, only_if).values(events=_Run.events + 1, **changes)
        with self._transaction(is_durable) as connection:
            number = connection.execute(change.returning(_Run.events)).scalar_one_or_none()
            if number is not None:
                self._enter(connection, run_id, number, kind, body)
        return number is not None

    def _enter(self, connection: Connection, run_id: str, number: int, kind: str, body: Mapping[str, Any]) -> None:
        row = {"run_id": run_id, "number": number, "time": self._now(), "kind": str(kind), "body": _json(body)}
        connection.execute(insert(_Event), [row])

    def _row(self, run: NewRun, signed: SignedSubmission) -> dict[str, Any]:
        return {
            "run_id": run.run_id,
            "name": run.name,
            "kind": run.kind,
            "operator": run.operator,
            "rounds": run.rounds,
            "state": RunState.SUBMITTED,
            "submission": signed.submission,
            "signature": signed.signature,
            "certificates": signed.certificates,
            "created": self._now(),
            "events": 1,
        }

    def _now(self) -> str:
        return time_text(self._clock())

    @contextmanager
    def _transaction(self, is_durable: bool = True) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection, _hurried(connection, not is_durable), connection.begin():
                yield connection
        except IntegrityError:
            raise  # a key that is there already: for who entered it to understand
        except SQLAlchemyError as error:
            raise FederationError(
                f"the server's database failed: {str(error).splitlines()[0]}",
                "see that it runs and that its disk has room; runs go on when the server is started again",
            ) from None


def unknown_run(run_id: str, known: Iterable[str] = ()) -> UsageError:
    """What is said where there is no run of that id. `known`: the runs of which whoever asks may know."""
    nearest = difflib.get_close_matches(run_id[:_NAME], list(known), n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return UsageError(f"no run {run_id[:_NAME]}{hint}", "privet run list")


def time_text(moment: datetime) -> str:
    """A moment as events tell it: UTC, milliseconds.

    >>> from datetime import UTC, datetime
    >>> time_text(datetime(2026, 11, 22, 12, 0, tzinfo=UTC))
    '2026-11-22T12:00:00.000Z'
    """
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@contextmanager
def _hurried(connection: Connection, is_hurried: bool) -> Iterator[None]:
    """Commits wait for no disk. The connection goes back to its pool as it came."""
    if not is_hurried:
        yield
        return
    hurry, rest = _HURRY[connection.dialect.name]
    _set(connection, hurry)
    try:
        yield
    finally:
        _set(connection, rest)


def _set(connection: Connection, statement: str) -> None:
    """Through the driver: SQLite changes this outside a transaction only, and SQLAlchemy would begin one."""
    driver = connection.connection
    driver.cursor().execute(statement)
    driver.commit()


def _json(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, separators=(",", ":"))
    if len(text) <= BODY_BYTES:
        return text
    kept = {name: value for name, value in body.items() if isinstance(value, int | float)}
    return json.dumps(kept | {"is_shortened": True})


def _record_of(row: Row[Any]) -> RunRecord:
    told = dict(row._mapping)
    error = json.loads(told["error"]) if told["error"] else None
    return RunRecord(
        run_id=told["run_id"],
        name=told["name"],
        kind=told["kind"],
        operator=told["operator"],
        rounds=told["rounds"],
        state=RunState(told["state"]),
        created=told["created"],
        started=told["started"],
        ended=told["ended"],
        round=told["round"],
        error=RunError(**error) if error else None,
        standing=json.loads(told["standing"]),
        events=told["events"],
        project=told["project"],
    )
