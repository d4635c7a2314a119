"""The server's database: SQLite in its home by default, or PostgreSQL by URL. A commit is durable when it returns."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Session

from ..privacy.errors import DatabaseError, FederationError, UsageError

_LOCK_SECONDS = 60.0  # how long one writer waits for another; each takes milliseconds
# A PostgreSQL that cannot be reached, or that stands still, is an error and no thread that waits for ever.
_POSTGRESQL = {"connect_timeout": 10, "options": "-c statement_timeout=30000"}
_ADDRESSES = "sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME"


class Base(DeclarativeBase):
    """The tables of the server."""


def open_database(url: str) -> Engine:
    """The database at a URL, with every table made; raise UsageError or FederationError where it is not one."""
    try:
        engine = create_engine(url, pool_pre_ping=True, connect_args=_arguments(make_url(url).get_backend_name()))
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise UsageError(f"--database: {error}", _ADDRESSES) from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    try:
        Base.metadata.create_all(engine)
    except SQLAlchemyError as error:
        raise FederationError(
            f"the database cannot be opened: {str(error).splitlines()[0]}",
            "see that it runs and that its address is right",
        ) from None
    return engine


def _arguments(backend: str) -> dict[str, object]:
    if backend == "sqlite":
        # Without an isolation level the driver begins no transaction by itself, which it does only at the first write.
        return {"timeout": _LOCK_SECONDS, "check_same_thread": False, "isolation_level": None}
    if backend == "postgresql":
        return {**_POSTGRESQL}
    raise UsageError(f"--database: {backend} is no database that the server can use", _ADDRESSES)


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    """What a transaction reads stays true until it ends: one at a time, whatever the number of processes."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """A session; raise DatabaseError where the database cannot be asked."""
    try:
        with Session(engine) as session:
            yield session
    except SQLAlchemyError as error:
        raise DatabaseError(
            f"the database cannot be asked: {str(error).splitlines()[0]}",
            "see that its disk has room and that it runs",
        ) from None


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """One transaction; raise DatabaseError where the database cannot be asked."""
    with reading(engine) as session, session.begin():
        yield session
