"""The server's database: one transaction at a time, bounded waiting, and no other kind than the two that are known."""

import socket
import threading
from pathlib import Path

import pytest
from privet.privacy.errors import FederationError, UsageError
from privet.server.database import open_database


def test_what_a_transaction_has_read_stays_true_until_it_ends(tmp_path: Path) -> None:
    """Two that read a number and write the next: each number is written once."""
    engine = open_database(f"sqlite:///{tmp_path / 'server.sqlite'}")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE numbers (number INTEGER)")
    start = threading.Barrier(4)

    def add() -> None:
        start.wait(20)
        for _ in range(10):
            with engine.begin() as connection:
                largest = connection.exec_driver_sql("SELECT coalesce(max(number), 0) FROM numbers").scalar()
                connection.exec_driver_sql("INSERT INTO numbers VALUES (?)", (largest + 1,))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with engine.connect() as connection:
        numbers = list(connection.exec_driver_sql("SELECT number FROM numbers ORDER BY number").scalars())
    assert numbers == list(range(1, 41))


def test_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'server.sqlite'}")
    with engine.connect() as connection, connection.begin() as transaction:
        connection.exec_driver_sql("CREATE TABLE numbers (number INTEGER)")
        transaction.rollback()
    with engine.connect() as connection:
        assert "numbers" not in connection.exec_driver_sql("SELECT name FROM sqlite_master").scalars()


@pytest.mark.parametrize("url", ["mysql://root@localhost/privet", "oracle://localhost/privet", "no address", ""])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="--database") as refused:
        open_database(url)
    assert "postgresql+psycopg://" in refused.value.remedy


def test_postgresql_that_says_nothing_is_not_waited_for_long() -> None:
    """A listener that takes the connection and never answers."""
    pytest.importorskip("psycopg")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port, raised = silent.getsockname()[1], list[FederationError]()

        def attempt() -> None:
            try:
                open_database(f"postgresql+psycopg://privet@127.0.0.1:{port}/privet")
            except FederationError as error:
                raised.append(error)

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(30)
    (error,) = raised
    assert "cannot be opened" in error.message
