"""Catalogs that others made: opened so that nothing in them acts, and read row by row.

An SQLite file holds more than rows: views that never end, triggers that write, generated columns,
values of any type. So such a file is copied and read with a connection that allows reading alone,
and only from tables that are what the migrations make. What a row may hold, `values` says.
"""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

from cogcache.catalog.values import COLUMNS, MAX_JSON, misfits
from cogcache.errors import CatalogError, DamagedCatalogError

_LIMITS: Final = (
    ("SQLITE_LIMIT_LENGTH", 2 * MAX_JSON),
    ("SQLITE_LIMIT_COLUMN", 100),
    ("SQLITE_LIMIT_EXPR_DEPTH", 50),
    ("SQLITE_LIMIT_COMPOUND_SELECT", 4),
    ("SQLITE_LIMIT_ATTACHED", 0),
    ("SQLITE_LIMIT_TRIGGER_DEPTH", 4),
)
_DEFENSIVE: Final = 1010
"""SQLITE_DBCONFIG_DEFENSIVE, for which Python 3.11 has no name."""
_STEP: Final = 10_000
"""Instructions of SQLite's machine between two looks at how many there were."""
_LEAST_STEPS: Final = 1_000
_BYTES_A_STEP: Final = 2_000
"""To read a row takes some twenty instructions, and a row that fits has a hundred bytes or more."""
_PRAGMAS: Final = frozenset({"table_info", "table_xinfo", "user_version", "application_id"})
_SCHEMA: Final = frozenset({"sqlite_master", "sqlite_schema"})
_READS: Final = {sqlite3.SQLITE_SELECT: 0, sqlite3.SQLITE_READ: 1, sqlite3.SQLITE_PRAGMA: 2}
_HINT: Final = "`cogcache rebuild` on its cache makes the catalog anew"
_FIRST_TRIGGERS: Final = ("captions_ai", "captions_ad", "captions_au")
"""Of version 1, which the second migration drops."""


class Undecodable:
    """A text that is not UTF-8."""


def _decoded(data: bytes) -> str | Undecodable:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return Undecodable()


def bound(conn: sqlite3.Connection, size_bytes: int) -> None:
    """Bound what a connection to somebody's catalog may take: values, and instructions in all.

    Args:
        conn: the connection.
        size_bytes: of the file.
    """
    for name, most in _LIMITS:
        conn.setlimit(getattr(sqlite3, name), most)
    for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0"):
        conn.execute(f"PRAGMA {pragma}")
    if hasattr(conn, "setconfig"):  # Python 3.12
        conn.setconfig(_DEFENSIVE, True)
    left = iter(range(_LEAST_STEPS + size_bytes // _BYTES_A_STEP))
    conn.set_progress_handler(lambda: next(left, None) is None, _STEP)


def _may(action: int, first: str | None, second: str | None, _: str | None, by: str | None) -> int:
    """Allow to read tables of ours, and nothing that a view or a trigger does."""
    kind = _READS.get(action)
    allowed = kind == 0 or (kind == 1 and first in (COLUMNS.keys() | _SCHEMA))
    allowed = allowed or (kind == 2 and first in _PRAGMAS)
    return sqlite3.SQLITE_OK if allowed and by is None else sqlite3.SQLITE_DENY


class ForeignCatalog:
    """A catalog of somebody, open for reading alone; close it.

    Args:
        path: of a copy that nobody else uses, or of a catalog that nobody writes to.

    Raises:
        CatalogError: it is no catalog of cogcache.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        uri = f"{path.absolute().as_uri()}?mode=ro"
        self._conn = sqlite3.connect(uri, uri=True, isolation_level=None)
        try:
            self._conn.text_factory = _decoded
            bound(self._conn, path.stat().st_size)
            self._conn.set_authorizer(_may)
            check_tables(self._conn, path)
        except BaseException:
            self._conn.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._conn.close()

    def misfits(self) -> Iterator[tuple[str, int, list[str]]]:
        """Yield the rows that do not fit: their table, their ROWID, and which columns do not."""
        for table in COLUMNS:
            names = [row[1] for row in self._conn.execute(f"PRAGMA table_info({table})")]
            known = [name for name in names if name in COLUMNS[table]]
            if not known:
                continue  # of an earlier version, which has no such table
            for number, row in self._rows(table, known):
                wrong = misfits(table, row) if row is not None else ["a value that is too long"]
                if wrong:
                    yield table, number, wrong

    def _rows(self, table: str, names: list[str]) -> Iterator[tuple[int, Mapping[str, Any] | None]]:
        """Yield ROWIDs and rows; None for one with a value that is too long to be read."""
        last: int | None = -(2**63)
        # NOT INDEXED: an index may say otherwise than the table.
        sql = f"""SELECT rowid, {", ".join(names)} FROM {table} NOT INDEXED
            WHERE rowid > ? ORDER BY rowid"""
        following = f"SELECT rowid FROM {table} NOT INDEXED WHERE rowid > ? ORDER BY 1 LIMIT 1"
        while last is not None:
            try:
                for number, *cells in self._conn.execute(sql, [last]):
                    yield number, dict(zip(names, cells, strict=True))
                    last = number
                last = None
            except sqlite3.DataError:
                (last,) = self._conn.execute(following, [last]).fetchone()
                yield last, None


def check_tables(conn: sqlite3.Connection, path: Path) -> None:
    """Refuse a catalog whose tables are not what the migrations make.

    Raises:
        DamagedCatalogError: one is a view or a virtual table, or lacks or computes columns. It is
            somebody else's, or its schema is damaged.
    """
    rows = conn.execute("SELECT name, type, sql FROM sqlite_master").fetchall()
    found = {name: f"{kind} {made}" for name, kind, made in map(tuple, rows)}
    for table, checks in COLUMNS.items():
        made = found.get(table, "")
        if not made:
            continue  # of an earlier version, or of a catalog that is not made yet
        plain = re.match(r"table create table\b", made, re.IGNORECASE)
        columns = conn.execute(f"PRAGMA table_xinfo({table})").fetchall() if plain else []
        names = {row[1] for row in columns if not row[6]}
        needed = {name for name in checks if name not in ("uid",)}
        if not plain or len(names) != len(columns) or not needed <= names:
            problem = f"{path} is no catalog of cogcache: its {table} are no table of that kind"
            raise DamagedCatalogError(problem, _HINT)


def cleansed(copy: Path) -> Counter[str]:
    """Make a copy of somebody's catalog harmless: no view, no trigger, no row that does not fit.

    Returns:
        How many rows were left out, by table.

    Raises:
        CatalogError: it is no catalog of cogcache, or cannot be read.
    """
    try:
        with closing(ForeignCatalog(copy)) as theirs:
            wrong = [(table, number) for table, number, _ in theirs.misfits()]
        with closing(sqlite3.connect(copy, isolation_level=None)) as conn:
            bound(conn, copy.stat().st_size)
            _drop_what_acts(conn)
            conn.execute("BEGIN")
            for table, number in wrong:
                conn.execute(f"DELETE FROM {table} WHERE rowid = ?", [number])
            conn.execute("COMMIT")
    except sqlite3.DatabaseError as error:
        raise CatalogError(f"{copy.name} cannot be read as a catalog: {error}", _HINT) from error
    return Counter(table for table, _ in wrong)


def _drop_what_acts(conn: sqlite3.Connection) -> None:
    (version,) = conn.execute("PRAGMA user_version").fetchone()
    sql = "SELECT type, name FROM sqlite_master WHERE type IN ('trigger', 'view')"
    for kind, name in conn.execute(sql).fetchall():
        quoted = '"' + str(name).replace('"', '""') + '"'
        with suppress(sqlite3.OperationalError):  # dropped with the view that it is on
            conn.execute(f"DROP {kind} {quoted}")
    if version == 1:
        for name in _FIRST_TRIGGERS:
            conn.execute(f"CREATE TRIGGER {name} AFTER INSERT ON captions BEGIN SELECT 1; END")
