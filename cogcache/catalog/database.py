"""One SQLite file that is a catalog: read and written, statement by statement.

Every transaction is on the disk when it returns. ``catalog`` says what the tables mean, and
``opening`` how the file is opened.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

from cogcache.catalog.file_uris import uri_of
from cogcache.catalog.opening import OpenFile
from cogcache.catalog.rows import NEXT_NUMBERS
from cogcache.catalog.values import json_text
from cogcache.catalog.whole_rows import Damage, has_row_checks

Row: TypeAlias = Mapping[str, object]

_JSON_COLUMNS: Final = frozenset(
    {"settings", "flags", "split", "counts", "report", "value", "tags", "details"}
)
_PARSE: Final = json.JSONDecoder().raw_decode
_LIST: Final = "(SELECT value FROM json_each(:{0}))"  # any number of values for one parameter


class CatalogFile:
    """An open catalog file, for any number of threads and processes.

    Read rows from the views ``whole_captions``, ``whole_clips``, …, which leave damaged rows out;
    ``damage`` has those that were met. Write to the tables. See `whole_rows`. Rows that no listing
    could show are left out of all that is read, and as long as there are any, nothing is written.

    Args:
        path: the SQLite file; made if absent. Who may not write it can read it, as one can on a
            disk without room.
        checked: have SQLite check the file first if it is not as it was left, see `integrity`.
        derived: then also hold the full text index and the sums against the captions.
        cleansed: it is a copy of which `cleansed` has taken what acts, triggers among it.

    Raises:
        CatalogError: it is no catalog, is of a newer version, or cannot be opened.
        DamagedCatalogError: it is damaged.
    """

    def __init__(
        self, path: Path, *, checked: bool = True, derived: bool = False, cleansed: bool = False
    ) -> None:
        self.path = path
        self._open = OpenFile(path, checked=checked, derived=derived, cleansed=cleansed)

    @property
    def damage(self) -> Damage:
        """The damaged rows that were met."""
        return self._open.damage

    @property
    def misfits(self) -> Mapping[str, list[int]]:
        """Numbers of the rows that no listing could show, by table."""
        return self._open.misfits

    def close(self) -> None:
        """Close the file; what was written is on the disk already."""
        self._open.close()

    def transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        """Do all that is inside, or nothing; it is on the disk afterwards.

        Raises:
            DamagedCatalogError: the catalog has rows that no listing could show.
        """
        return self._open.transaction()

    @contextmanager
    def attached(self, path: Path, name: str) -> Iterator[None]:
        """Have another catalog's tables at hand as ``name.table`` while a `with` block runs."""
        with self.reading() as conn:
            conn.execute(f"ATTACH ? AS {name}", (str(path),))
            try:
                yield
            finally:
                conn.execute(f"DETACH {name}")

    @property
    def can_write(self) -> bool:
        """Whether the file can be written, and not only read."""
        return not self._open.num_refused and "mode=ro" not in uri_of(self.path)

    def reading(self) -> AbstractContextManager[sqlite3.Connection]:
        """Give the connection to a `with` block alone, to read from the views of whole rows."""
        return self._open.reading()

    def write(self, sql: str, values: Row) -> int:
        """Execute one statement in a transaction of its own; return the rows it changed."""
        with self.transaction() as conn:
            return conn.execute(sql, cells_of(values)).rowcount

    def insert(self, table: str, row: Row) -> int:
        """Add a row and return its number."""
        with self.transaction() as conn:
            return int(conn.execute(insertion(table, row), cells_of(row)).lastrowid or 0)

    def upsert(self, table: str, key: str, rows: Iterable[Row], *, replace: bool = True) -> int:
        """Add rows of equal columns in one transaction; return how many were written.

        Args:
            table: its name.
            key: the unique column.
            rows: by column.
            replace: overwrite rows of the same key; else those that are there stay.
        """
        cells = [cells_of(row) for row in rows]
        if not cells:
            return 0
        # An update in place, not REPLACE: the full text index hears of it.
        action = f"UPDATE SET {excluded(cells[0].keys() - {key})}" if replace else "NOTHING"
        sql = f"{insertion(table, cells[0])} ON CONFLICT ({key}) DO {action}"
        with self.transaction() as conn:
            return conn.executemany(sql, cells).rowcount

    def delete(self, table: str, column: str, values: Collection[str | int]) -> int:
        """Delete the rows whose ``column`` is among ``values``; return how many."""
        sql = f"DELETE FROM {table} WHERE {column} IN {_LIST.format(column)}"
        return self.write(sql, {column: json.dumps([*values])})

    def select(
        self,
        table: str,
        order: str = "1",
        *,
        equal: Row | None = None,
        among: Mapping[str, Collection[str] | None] | None = None,
    ) -> list[dict[str, Any]]:
        """Return rows as dictionaries, JSON columns read.

        Args:
            table: its name; of a table of the catalog, the whole rows.
            order: columns to sort by.
            equal: what columns have to be; None: anything.
            among: what columns have to be one of; None: anything.
        """
        values = {name: value for name, value in (equal or {}).items() if value is not None}
        lists = {name: [*some] for name, some in (among or {}).items() if some is not None}
        tests = [f"{name} = :{name}" for name in values]
        tests += [f"{name} IN {_LIST.format(name)}" for name in lists]
        where = f"WHERE {' AND '.join(tests)}" if tests else ""
        cells = cells_of({**values, **{name: json.dumps(some) for name, some in lists.items()}})
        with self.reading() as conn:
            source = f"whole_{table}" if has_row_checks(table) else table
            rows = conn.execute(f"SELECT * FROM {source} {where} ORDER BY {order}", cells)
            return _read(rows)

    def query(self, sql: str, values: Row | None = None) -> list[sqlite3.Row]:
        """Return the rows of any query; JSON columns as they lie there."""
        with self.reading() as conn:
            return conn.execute(sql, cells_of(values or {})).fetchall()

    def known(self, table: str, column: str, values: Collection[str]) -> set[str]:
        """Return those of ``values`` that are in ``column``."""
        sql = f"SELECT {column} FROM whole_{table} WHERE {column} IN {_LIST.format(column)}"
        with self.reading() as conn:
            rows = conn.execute(sql, {column: json.dumps([*values])})
            return {row[0] for row in rows}


def insertion(table: str, row: Row) -> str:
    """Return the statement that adds ``row``, its values named parameters."""
    values = NEXT_NUMBERS.get(table, {}) | {name: f":{name}" for name in row}
    return f"INSERT INTO {table} ({', '.join(values)}) VALUES ({', '.join(values.values())})"


def excluded(columns: Iterable[str]) -> str:
    """Return the assignments that give ``columns`` the values that met a conflict."""
    return ", ".join(f"{name} = excluded.{name}" for name in columns)


def cells_of(row: Row) -> dict[str, Any]:
    """Return what SQLite is handed for the values of a row: JSON as text, text as UTF-8."""
    return {name: _cell(name, value) for name, value in row.items()}


def _cell(name: str, value: object) -> object:
    if name in _JSON_COLUMNS:
        value = json_text(value)
    if isinstance(value, str):
        # SQLite holds UTF-8 only, and a message may quote a file name that is not.
        return value.encode(errors="backslashreplace").decode()
    return value


def json_read(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its JSON columns read."""
    read = {name: json.loads(row[name]) for name in row.keys() & _JSON_COLUMNS if row[name]}
    return {**row, **read}


def _read(cursor: sqlite3.Cursor) -> list[dict[str, Any]]:
    """Return the rows of a query as dictionaries, JSON columns read."""
    cursor.row_factory = None  # plain tuples are read quicker
    names = [column[0] for column in cursor.description]
    read = [name for name in names if name in _JSON_COLUMNS]
    rows = []
    for cells in cursor:
        row = dict(zip(names, cells, strict=True))
        for name in read:
            row[name] = _PARSE(row[name])[0]  # json.loads looks for blanks around it, too
        rows.append(row)
    return rows
