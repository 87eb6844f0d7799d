"""Rows that bear a checksum of their values, held against them whenever they are read.

SQLite has no checksums: a bit that flips on the disk changes a cell, or leads an index to another
row, and nothing is said. So each table of `TABLES` has a column ``checksum``. Temporary triggers of
each connection fill it in whatever way a row is written; temporary views ``whole_captions``,
``whole_clips``, … show those rows alone whose checksum fits. **Read from the views, write to the
tables.** SQLite may take a column from an index instead of the row: then it is the index that the
checksum is held against, so that an entry which leads to another row does not fit either.

**A new table** is made part of all this by three things, and then every command knows it: `verify`
holds its rows, `rebuild` saves them, `merge` takes them over, a backup has them, and, if they are
of captions, `export` and `import` carry them.

1. A step in `migrations` makes it, with a last column ``checksum INTEGER`` and a UNIQUE or PRIMARY
   KEY over the columns by which a row is known anywhere (not a number that only this catalog
   gives). `opening.VERSION` is the number of the last step.
2. A line in `TABLES`, whose ``since`` is the number of that step.
3. A line in `values.COLUMNS`: what its cells may hold, whoever wrote them.

A column that is named ``run`` is the number of a run, and is translated where catalogs are merged.
Columns of JSON are named in `database`. **A new column** of a table that is here already is added
by `add_column`, in a step of its own, and may be null.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cogcache.errors import CogcacheError
from cogcache.keys import digest

logger = logging.getLogger("cogcache.damage")
"""Told of each damaged row; the command line counts them, and ends with 1."""

SEPARATOR: Final = b"\x1f"
_MOST_NAMED: Final = 100
"""Damaged rows that are named one by one."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose rows bear checksums, are saved by `rebuild` and taken over by `merge`."""

    name: str
    key: tuple[str, ...]
    """Columns by which a row is known in any catalog."""
    number: str | None = None
    """Column that numbers the rows; another catalog may number them otherwise."""
    merged: bool = True
    """Whether `merge` takes the rows that are missing over as they are; else it has rules of its
    own for them."""
    exported_as: str | None = None
    """Name under which `export` adds a caption's rows to its line of JSONL, and `import` takes them
    back, see `carried`; the table then has a column ``caption_key``."""
    since: int = 1
    """Version of the catalog from which on there is this table."""


TABLES: Final = (
    # Those that others refer to come first.
    Table("runs", ("uid",), number="run", merged=False),
    Table("files", ("path",), merged=False),
    Table("memory", ("name",), merged=False),
    Table("videos", ("digest",), merged=False),
    Table("clips", ("feature_key",), merged=False),
    Table("failures", ("video", "start_s", "end_s", "stage"), merged=False),
    Table("captions", ("caption_key",), number="id", merged=False),
    Table("edits", ("uid",), exported_as="edits", since=9),
    Table("scores", ("name", "feature_key", "caption_key"), merged=False, since=9),
    Table("forgotten", ("caption_key", "forgotten_at"), since=10),
    Table("cuts", ("feature_key", "cut"), since=11),
)


def has_row_checks(table: str) -> bool:
    """Say whether the rows of a table bear checksums, so that they are read from a view."""
    return any(each.name == table for each in TABLES)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table, as SQLite declares it."""

    name: str
    kind: str
    """``TEXT``, ``INTEGER``, ``REAL`` or ``BLOB``."""
    is_plain: bool
    """Whether it is never null and no REAL: then its bytes are digested as they are."""


class Checksums:
    """The checksums of one table.

    Args:
        table: its name.
        columns: in the order of the table; ``checksum`` is none that is digested.

    Example:
        >>> checksums = Checksums("memory", columns_of(connection, "memory"))
        >>> checksums.of((b"name", b"{}"))
        2433634617
    """

    def __init__(self, table: Table, columns: Sequence[Column]) -> None:
        self.table, self.stored = table, [*columns]
        self.columns = [c for c in columns if c.name != "checksum"]
        plain = [column for column in self.columns if column.is_plain]
        self.ordered = plain + [column for column in self.columns if not column.is_plain]
        self._num_plain = len(plain)
        self._seed = zlib.crc32(table.name.encode())

    def of(self, cells: Sequence[Any]) -> int:
        """Return the checksum of a row's cells, which are in the order of `ordered`.

        It is the CRC-32 of the table's name, the plain cells with 0x1F between them, and Python's
        ``repr`` of the tuple of the others, one after the other.

        Args:
            cells: bytes; a REAL is a float, and what is null is None.

        Raises:
            TypeError: a cell is null that may not be.
        """
        plain = zlib.crc32(SEPARATOR.join(cells[: self._num_plain]), self._seed)
        return zlib.crc32(repr(tuple(cells[self._num_plain :])).encode(), plain)

    def fits(self, checksum: object, cells: Sequence[Any]) -> bool:
        """Say whether a row is as it was written."""
        try:
            return self.of(cells) == checksum
        except TypeError:
            return False

    def test_or(self, otherwise: Callable[[Sequence[Any]], bool]) -> Callable[..., bool]:
        """Return `fits` as a function of a checksum and cells, quicker: it is called for each row.

        Args:
            otherwise: is called with the cells of a row that does not fit.
        """
        crc32, join, seed, plain = zlib.crc32, SEPARATOR.join, self._seed, self._num_plain

        def fits(checksum: object, *cells: Any) -> bool:
            try:
                first = crc32(join(cells[:plain]), seed)
                if crc32(repr(cells[plain:]).encode(), first) == checksum:
                    return True
            except TypeError:  # a cell is null that may not be
                pass
            return otherwise(cells)

        return fits

    def key_of(self, cells: Sequence[Any]) -> str:
        """Return what a row is called in messages."""
        named = dict(zip((column.name for column in self.ordered), cells, strict=True))
        parts = (named[name] for name in self.table.key if named[name] is not None)
        return " ".join(
            part.decode(errors="replace") if isinstance(part, bytes) else str(part)
            for part in parts
        )

    def arguments(self, row: str = "") -> str:
        """Return the SQL of a row's cells in the order of `ordered`.

        A text goes as its bytes: one that is no UTF-8 any more could not be handed to Python.
        """
        prefix = f"{row}." if row else ""
        return ", ".join(
            f"CAST({prefix}{column.name} AS BLOB)"
            if column.is_plain
            else f"iif(typeof({prefix}{column.name}) = 'real', {prefix}{column.name},"
            f" CAST({prefix}{column.name} AS BLOB))"
            for column in self.ordered
        )

    def test(self, row: str = "") -> str:
        """Return the SQL that says whether a row is as it was written."""
        checksum = f"{row}.checksum" if row else "checksum"
        # A damaged one may be a text that is no UTF-8, which could not be handed to Python.
        return f"fits_{self.table.name}(CAST({checksum} AS INTEGER), {self.arguments(row)})"


def columns_of(conn: sqlite3.Connection, table: str, schema: str = "main") -> list[Column]:
    """Return the columns of a table, without ``checksum``."""
    return [each for each in stored_columns(conn, table, schema) if each.name != "checksum"]


def stored_columns(conn: sqlite3.Connection, table: str, schema: str = "main") -> list[Column]:
    """Return the columns of a table as its rows have them, in this order."""
    rows = conn.execute(f"PRAGMA {schema}.table_info({table})").fetchall()
    return [
        Column(name, kind, is_plain=(not_null or is_key) and kind != "REAL")
        for _, name, kind, not_null, _, is_key in map(tuple, rows)
    ]


def add_column(conn: sqlite3.Connection, table: Table, declaration: str) -> None:
    """Add a column to a table whose rows bear checksums: a part of a step of `migrations`.

    Rows that are damaged do not get a checksum that fits.

    Args:
        conn: to a catalog, in a transaction.
        table: the table.
        declaration: of the column, as SQL has it; it may be null.
    """
    before = Checksums(table, columns_of(conn, table.name))
    define(conn, before, Damage())
    conn.execute(f"UPDATE {table.name} SET checksum = NULL WHERE NOT {before.test()}")
    conn.execute(f"ALTER TABLE {table.name} ADD COLUMN {declaration}")
    after = Checksums(table, columns_of(conn, table.name))
    define(conn, after, Damage())
    conn.execute(
        f"UPDATE {table.name} SET checksum = checksum_{table.name}({after.arguments()})"
        " WHERE checksum IS NOT NULL"
    )


def key_fits(caption_key: str | bytes, settings: str | bytes) -> bool:
    """Say whether a caption's key is the digest of its settings, see `cogcache.keys`.

    Where there are no settings, nothing speaks against the key. That a caption was tried twice
    stands beside what its key is made of.
    """
    try:
        key = caption_key.decode() if isinstance(caption_key, bytes) else caption_key
        fields = json.loads(settings)
        fields.pop("retried", None)
        return not fields or digest(fields) == key
    except (ValueError, TypeError, AttributeError, CogcacheError):
        return False


class Damage:
    """The damaged rows that a connection has come upon; each is logged once."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.rows: dict[tuple[str, str], None] = {}
        self._most_named = 0 if quiet else _MOST_NAMED

    def __len__(self) -> int:
        return len(self.rows)

    def note(self, table: str, key: str) -> None:
        """Note a row that is left out."""
        if (table, key) not in self.rows:
            self.rows[table, key] = None
            if len(self.rows) <= self._most_named:
                logger.warning("left out: the row %r of %s is damaged", key, table)

    def note_misfit(self, table: str, number: int, columns: Sequence[str]) -> None:
        """Note a row that is left out because no listing could show it."""
        key = f"number {number}"
        if (table, key) not in self.rows:
            self.rows[table, key] = None
            if len(self.rows) <= self._most_named:
                said = "left out: row %d of %s cannot be shown, because of its %s"
                logger.warning(said, number, table, ", ".join(columns))


_REVIEWED: Final = (
    """CREATE TEMP VIEW current_edits AS SELECT e.* FROM whole_edits e
        WHERE NOT EXISTS (SELECT 1 FROM whole_edits later
            WHERE later.caption_key = e.caption_key AND later.set_name = e.set_name
            AND (later.created_at, later.uid) > (e.created_at, e.uid))""",
    # A caption that was rejected, and the one that it was edited into.
    """CREATE TEMP VIEW rejected_captions AS
        SELECT caption_key FROM current_edits WHERE state = 'rejected'
        UNION ALL SELECT edited_key FROM current_edits WHERE state = 'rejected'""",
)
"""Views of what people did last with each caption, see `cogcache.catalog.reviews`."""


def add_row_checks(
    conn: sqlite3.Connection, damage: Damage, misfits: Mapping[str, Collection[int]] | None = None
) -> None:
    """Have a connection fill in and hold checksums, see above.

    Args:
        conn: to a catalog of the newest version.
        damage: is told of each row that does not fit.
        misfits: by table, the numbers of rows that are left out of what is read whatever their
            checksums say. ``shown_captions``, ``shown_clips``, … are the tables without them, for
            counting, where checksums would take too long.
    """
    conn.execute("PRAGMA temp_store = MEMORY")  # the disk of TMPDIR may be full
    misfits = misfits or {}
    if misfits:
        conn.execute("CREATE TEMP TABLE misfits (name TEXT, number INTEGER)")
        rows = [(name, number) for name, numbers in misfits.items() for number in numbers]
        conn.executemany("INSERT INTO temp.misfits VALUES (?, ?)", rows)
    for table in TABLES:
        checksums = Checksums(table, columns_of(conn, table.name))
        define(conn, checksums, damage)
        for statement in _objects(checksums, with_misfits=bool(misfits.get(table.name))):
            conn.execute(statement)
    for statement in _REVIEWED:
        conn.execute(statement)
    for name, table_of, made_anew in _TOTALS:
        source = made_anew if misfits.get(table_of) else f"SELECT * FROM main.{name}"
        conn.execute(f"CREATE TEMP VIEW shown_{name} AS {source}")


_TOTALS: Final = (
    (
        "caption_totals",
        "captions",
        """SELECT model, prompt_name, quantization, flags, num_tokens / 10 * 10 AS tokens_from,
            count(*) AS captions, sum(seconds) AS seconds FROM temp.shown_captions
            GROUP BY model, prompt_name, quantization, flags, tokens_from""",
    ),
    (
        "clip_totals",
        "clips",
        """SELECT model, family, decoder, count(*) AS clips, sum(num_frames) AS num_frames,
            sum(size_bytes) AS size_bytes FROM temp.shown_clips GROUP BY model, family, decoder""",
    ),
)
"""Sums that triggers keep, of which table, and how they are made where rows of it are left out."""


def is_whole(conn: sqlite3.Connection, table: str, number: int) -> bool:
    """Say whether a row is as it was written; nobody is told if it is not."""
    (kind,) = (each for each in TABLES if each.name == table)
    checksums = Checksums(kind, columns_of(conn, table))
    define(conn, checksums, Damage(quiet=True))
    sql = f"SELECT {checksums.test()} FROM main.{table} WHERE rowid = ?"
    try:
        row = conn.execute(sql, [number]).fetchone()
    except sqlite3.DataError:  # a value is too long even to be looked at
        return True
    return bool(row and row[0])


def define(conn: sqlite3.Connection, checksums: Checksums, damage: Damage) -> None:
    """Give a connection the SQL functions ``checksum_TABLE`` and ``fits_TABLE``."""
    name = checksums.table.name

    def of(*cells: Any) -> int | None:
        try:
            return checksums.of(cells)
        except TypeError:
            return None  # the table will refuse the row, and say why

    def told(cells: Sequence[Any]) -> bool:
        damage.note(name, checksums.key_of(cells))
        return False

    functions: dict[str, Callable[..., int | None]] = {
        "checksum": of,
        "fits": checksums.test_or(told),
    }
    for prefix, function in functions.items():
        conn.create_function(f"{prefix}_{name}", -1, function, deterministic=True)


def _objects(checksums: Checksums, *, with_misfits: bool) -> Iterable[str]:
    name = checksums.table.name
    columns = ", ".join(column.name for column in checksums.columns)
    among = f"rowid IN (SELECT number FROM temp.misfits WHERE name = '{name}')"
    shown = f" WHERE NOT {among}" if with_misfits else ""
    yield f"CREATE TEMP VIEW shown_{name} AS SELECT {columns} FROM main.{name}{shown}"
    # The test stands in a subquery: beside `column = :value` SQLite would put the value in the
    # column's place in the test too, and each row of another value would pass for damaged.
    test = f"(SELECT {checksums.test()})"
    # First: a value that is too long cannot even be digested.
    test = f"CASE WHEN {among} THEN false ELSE {test} END" if with_misfits else test
    yield f"CREATE TEMP VIEW whole_{name} AS SELECT {columns} FROM main.{name} WHERE {test}"
    sealed = (
        f"UPDATE {name} SET checksum = checksum_{name}({checksums.arguments()})"
        f" WHERE rowid = new.rowid"
    )
    yield (
        f"CREATE TEMP TRIGGER {name}_checksum_insert AFTER INSERT ON main.{name}"
        f" BEGIN {sealed}; END"
    )
    # A change of one cell must not make a damaged row look whole.
    yield (
        f"CREATE TEMP TRIGGER {name}_checksum_update AFTER UPDATE OF {columns} ON main.{name}"
        f" WHEN {checksums.test('old')} BEGIN {sealed}; END"
    )
