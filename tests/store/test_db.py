# SPDX-License-Identifier: Apache-2.0
"""The database: transactions, threads, errors."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from chantier.errors import StoreError
from chantier.store import Db


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Db]:
    made = Db(tmp_path / "db")
    made.ensure("CREATE TABLE IF NOT EXISTS t (a INTEGER PRIMARY KEY, b TEXT); CREATE INDEX IF NOT EXISTS t_b ON t (b)")
    yield made
    made.close()


def test_a_transaction_is_whole_or_nothing(db: Db) -> None:
    with pytest.raises(RuntimeError), db.write() as cursor:
        cursor.execute("INSERT INTO t VALUES (1, 'x')")
        with db.write() as inner:  # joins the outer one
            inner.execute("INSERT INTO t VALUES (2, 'y')")
        raise RuntimeError
    assert db.read("SELECT * FROM t") == []
    with db.write() as cursor:
        cursor.execute("INSERT INTO t VALUES (1, 'x')")
    assert db.read("SELECT * FROM t") == [(1, "x")]


def test_threads_take_turns(db: Db) -> None:
    with db.write() as cursor:
        cursor.execute("INSERT INTO t VALUES (1, '0')")

    def add() -> None:
        for _ in range(25):
            with db.write() as cursor:
                (value,) = cursor.execute("SELECT b FROM t").fetchone()
                cursor.execute("UPDATE t SET b = ?", (str(int(value) + 1),))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert db.read("SELECT b FROM t") == [("100",)]


def test_a_callers_mistake_is_not_called_damage(db: Db) -> None:
    with db.write() as cursor:
        cursor.execute("INSERT INTO t VALUES (1, 'x')")
    with pytest.raises(sqlite3.IntegrityError), db.write() as cursor:
        cursor.execute("INSERT INTO t VALUES (1, 'x')")
    with db.write() as cursor:  # and leaves nothing open
        cursor.execute("INSERT INTO t VALUES (2, 'x')")


def test_what_is_no_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"something else entirely" * 100)
    with pytest.raises(StoreError, match="damaged"):
        Db(tmp_path / "db").read("SELECT 1")
