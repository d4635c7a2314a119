"""The server's database: SQLite in its home by default, or PostgreSQL by URL. A commit is durable when it returns."""

import sqlite3

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase

from ..privacy.errors import FederationError, UsageError

_LOCK_SECONDS = 60.0  # how long one writer waits for another; each takes milliseconds


class Base(DeclarativeBase):
    """The tables of the server."""


def open_database(url: str) -> Engine:
    """The database at a URL, with every table made; raise UsageError or FederationError where it is not one."""
    try:
        engine = create_engine(url, pool_pre_ping=True, connect_args=_arguments(url))
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise UsageError(f"--database: {error}", "sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME") from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
    try:
        Base.metadata.create_all(engine)
    except SQLAlchemyError as error:
        raise FederationError(
            f"the database cannot be opened: {str(error).splitlines()[0]}",
            "see that it runs and that its address is right",
        ) from None
    return engine


def _arguments(url: str) -> dict[str, object]:
    return {"timeout": _LOCK_SECONDS, "check_same_thread": False} if url.startswith("sqlite") else {}


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
