"""Catalogs that others made: opened so that nothing in them acts, and read row by row.

An SQLite file holds more than rows: views that never end, triggers that write, generated columns,
values of any type. So such a file is copied and read with a connection that allows reading alone,
and only from tables that are what the migrations make. What a row may hold, `values` says.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from cogcache.catalog import schema
from cogcache.catalog.values import COLUMNS, MAX_JSON, misfits
from cogcache.errors import CatalogError

_LIMITS: Final = (
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
_LEAST_S: Final = 30.0
_BYTES_A_SECOND: Final = 500_000
"""SQLite's own check takes some 100 MB a second, that of the full text index a tenth."""
_PRAGMAS: Final = frozenset({"table_info", "table_xinfo", "user_version", "application_id"})
_SCHEMA: Final = frozenset({"sqlite_master", "sqlite_schema"})
_READS: Final = {sqlite3.SQLITE_SELECT: 0, sqlite3.SQLITE_READ: 1, sqlite3.SQLITE_PRAGMA: 2}
_HINT: Final = "`cogcache rebuild` on its cache makes the catalog anew"
_FIRST_ROW: Final = -(2**63)
_LAST_ROW: Final = 2**63 - 1
_FIRST_TRIGGERS: Final = ("captions_ai", "captions_ad", "captions_au")
"""Of version 1, which the second migration drops."""


DANGLING: Final = (
    "DELETE FROM clips WHERE video_digest NOT IN (SELECT digest FROM videos)",
    *(
        f"UPDATE {table} SET run = NULL WHERE run NOT IN (SELECT run FROM runs)"
        for table in ("clips", "captions", "failures")
    ),
)
"""Takes out, or leaves without a run, the rows that name a row which is not there."""


class Undecodable:
    """A text that is not UTF-8."""


def _decoded(data: bytes) -> str | Undecodable:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return Undecodable()


def harden(conn: sqlite3.Connection) -> None:
    """Have SQLite trust nothing in a catalog's file, and read nothing of boundless length."""
    conn.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2 * MAX_JSON)
    for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0"):
        conn.execute(f"PRAGMA {pragma}")
    if hasattr(conn, "setconfig"):  # Python 3.12
        conn.setconfig(_DEFENSIVE, True)


@contextmanager
def deadline(conn: sqlite3.Connection, size_bytes: int) -> Iterator[None]:
    """Break off what a `with` block asks of a catalog where it takes longer than any sound one.

    Args:
        conn: the connection.
        size_bytes: of the file.
    """
    ends_s = time.monotonic() + _LEAST_S + size_bytes / _BYTES_A_SECOND
    conn.set_progress_handler(lambda: time.monotonic() > ends_s, _STEP)
    try:
        yield
    finally:
        conn.set_progress_handler(None, 0)


def bound(conn: sqlite3.Connection, size_bytes: int) -> None:
    """Bound what a connection to somebody's catalog may take: values, and instructions in all.

    Args:
        conn: the connection.
        size_bytes: of the file.
    """
    harden(conn)
    for name, most in _LIMITS:
        conn.setlimit(getattr(sqlite3, name), most)
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
            bound(self._conn, path.stat().st_size)
            self._conn.set_authorizer(_may)
            (version,) = self._conn.execute("PRAGMA user_version").fetchone()
            schema.check_tables(self._conn, path, version)
        except BaseException:
            self._conn.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._conn.close()

    def misfits(self) -> Iterator[tuple[str, int, list[str]]]:
        """Yield the rows that do not fit: their table, their ROWID, and which columns do not."""
        return misfit_rows(self._conn)


def misfit_rows(conn: sqlite3.Connection) -> Iterator[tuple[str, int, list[str]]]:
    """Yield the rows of a catalog that do not fit: table, ROWID, and which columns do not.

    Args:
        conn: to the catalog; its tables must be those that the migrations make.
    """
    factory, conn.text_factory = conn.text_factory, _decoded
    try:
        for table in COLUMNS:
            names = [row[1] for row in conn.execute(f"PRAGMA main.table_info({table})")]
            known = [name for name in names if name in COLUMNS[table]]
            if not known:
                continue  # of an earlier version, which has no such table
            for number, row in _rows(conn, table, known):
                wrong = misfits(table, row) if row is not None else ["a value that is too long"]
                if wrong:
                    yield table, number, wrong
    finally:
        conn.text_factory = factory


def _rows(
    conn: sqlite3.Connection, table: str, names: list[str]
) -> Iterator[tuple[int, Mapping[str, Any] | None]]:
    """Yield ROWIDs and rows; None for one with a value that is too long to be read."""
    first = _FIRST_ROW
    # NOT INDEXED: an index may say otherwise than the table.
    sql = f"""SELECT rowid, {", ".join(names)} FROM main.{table} NOT INDEXED
        WHERE rowid >= ? ORDER BY rowid"""
    following = f"SELECT rowid FROM main.{table} NOT INDEXED WHERE rowid >= ? ORDER BY 1 LIMIT 1"
    while first <= _LAST_ROW:
        try:
            for number, *cells in conn.execute(sql, [first]):
                yield number, dict(zip(names, cells, strict=True))
                first = number + 1
            first = _LAST_ROW + 1
        except sqlite3.DataError:
            (number,) = conn.execute(following, [first]).fetchone()
            yield number, None
            first = number + 1


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
            lost = [conn.execute(statement).rowcount for statement in DANGLING]
            conn.execute("COMMIT")
    # SQLite quotes what it cannot read of a schema, which may be no text.
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise CatalogError(f"{copy.name} cannot be read as a catalog: {error}", _HINT) from error
    return Counter(table for table, _ in wrong) + Counter(clips=lost[0])


def _drop_what_acts(conn: sqlite3.Connection) -> None:
    (version,) = conn.execute("PRAGMA user_version").fetchone()
    for kind, name in schema.what_acts(conn, version):
        quoted = '"' + name.replace('"', '""') + '"'
        with suppress(sqlite3.OperationalError):  # dropped with the view that it is on
            conn.execute(f"DROP {kind} {quoted}")
    if version == 1:
        for name in _FIRST_TRIGGERS:
            conn.execute(f"CREATE TRIGGER {name} AFTER INSERT ON captions BEGIN SELECT 1; END")
