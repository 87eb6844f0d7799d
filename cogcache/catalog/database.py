"""One SQLite file that is a catalog: opened, brought up to date, read and written.

Every transaction is on the disk when it returns. ``catalog`` says what the tables mean.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import RLock
from typing import Any, Final, TypeAlias

from cogcache.catalog import integrity
from cogcache.catalog.file_uris import BUSY_S, connected, make_as_asked, readable, uri_of
from cogcache.catalog.foreign import deadline, harden, misfit_rows
from cogcache.catalog.integrity import Noted
from cogcache.catalog.rows import NEXT_NUMBERS
from cogcache.catalog.schema import check_schema
from cogcache.catalog.values import json_text
from cogcache.catalog.whole_rows import Damage, add_row_checks, has_row_checks, is_whole
from cogcache.errors import CatalogError, DamagedCatalogError
from cogcache.system import extra_hint

VERSION: Final = 11
"""Number of the last step of `migrations`; a higher one is of a catalog of a newer cogcache."""
Row: TypeAlias = Mapping[str, object]

_APPLICATION_ID: Final = 0x636F6763  # "cogc": tells a catalog from any other SQLite file
_BUGS: Final = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError)
_JSON_COLUMNS: Final = frozenset(
    {"settings", "flags", "split", "counts", "report", "value", "tags", "details"}
)
_PARSE: Final = json.JSONDecoder().raw_decode
_LIST: Final = "(SELECT value FROM json_each(:{0}))"  # any number of values for one parameter
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_SAID_OF_DAMAGE: Final = ("vtable constructor failed", "malformed", "Could not decode", "'utf-8'")
NO_ROOM: Final = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL})
_TAKE_OUT: Final = "`cogcache verify` names them, and `cogcache verify --fix` takes them out"
_REBUILD: Final = "`cogcache rebuild` makes it anew, with the captions that can be read"


def _code(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF  # without the finer part


class CatalogFile:
    """An open catalog file; a context manager, for any number of threads and processes.

    Read rows from the views ``whole_captions``, ``whole_clips``, …, which leave damaged rows out;
    ``damage`` has those that were met. Write to the tables. See `whole_rows`. A file that is not
    as it was left may be a stranger's: then its schema and the values of all of its rows are looked
    at first. Rows that no listing could show are left out of all that is read, and as long as there
    are any, nothing is written.

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
        self.damage = Damage()
        self.misfits: dict[str, list[int]] = {}
        """Numbers of the rows that no listing could show, by table."""
        self._refused_rows = 0
        """How many of them are as they were written, and not damaged."""
        self._is_cleansed = cleansed
        self._lock = RLock()
        if not path.exists():
            make_as_asked(path)
        self._copy: ExitStack = ExitStack()
        self._sound = False
        self._no_room: sqlite3.OperationalError | None = None
        with self._errors(), ExitStack() as opening:
            opening.callback(self.close)
            self._open()
            if checked:
                self._check(derived=derived)
            add_row_checks(self._conn, self.damage, self.misfits)
            opening.pop_all()

    def _open(self) -> None:
        try:
            self._conn = connected(uri_of(self.path))
            self._prepare()
        except sqlite3.OperationalError as error:
            self._close_connection()
            if _code(error) not in NO_ROOM or not self.path.is_file():
                raise
            # A log and its index take room, which a full disk has not; reading needs neither.
            try:
                self._conn = connected(self._copy.enter_context(readable(self.path)))
                self._prepare()
                self._no_room = error  # a copy is nobody's to write to
            except (OSError, sqlite3.OperationalError):
                raise error from None

    def _close_connection(self) -> None:
        if hasattr(self, "_conn"):
            self._conn.close()

    def close(self) -> None:
        """Close the file; what was written is on the disk already."""
        with self._lock:
            wrote = self._sound and self._conn.total_changes > 0
            self._close_connection()
            self._copy.close()
            if self._sound:
                self._sound = False
                integrity.closed(self.path, wrote=wrote)

    def _prepare(self) -> None:
        self._is_new = False
        harden(self._conn)
        self._conn.row_factory = sqlite3.Row
        self._conn.execute("PRAGMA foreign_keys = ON")
        self._conn.execute("PRAGMA synchronous = FULL")
        version = self._version()
        # From here on the schema is ours, whose triggers write to the full text index.
        self._conn.execute("PRAGMA trusted_schema = ON")
        self._is_new = version == 0
        if version < VERSION:
            self._write_ahead()
            self._migrate()

    def _check(self, *, derived: bool) -> None:
        """Refuse a file that is damaged; note one that is sound."""
        known = Noted(True, True) if self._is_new else integrity.known(self.path)
        with deadline(self._conn, self.path.stat().st_size):
            if not known.is_sound:
                self._refuse(integrity.faults(self._conn))
                self._leave_misfits_out()
                if not self.misfits:  # else they are made anew of what is left
                    self._refuse(integrity.odd_sums(self._conn))
            if derived and not known.is_derived_sound:
                self._refuse(integrity.derived_faults(self._conn))
        if not self.misfits:
            self._sound = True
            integrity.opened(self.path, Noted(True, known.is_derived_sound or derived))

    def _leave_misfits_out(self) -> None:
        """Find the rows that no listing could show, and name them."""
        for table, number, columns in misfit_rows(self._conn):
            self.misfits.setdefault(table, []).append(number)
            self.damage.note_misfit(table, number, columns)
        for table, numbers in self.misfits.items():
            self._refused_rows += sum(is_whole(self._conn, table, number) for number in numbers)

    def _refuse(self, faults: list[str]) -> None:
        if faults:
            more = f" (and {len(faults) - 1} faults more)" if len(faults) > 1 else ""
            raise DamagedCatalogError(f"{self.path} is damaged: {faults[0]}{more}", _REBUILD)

    def _write_ahead(self) -> None:
        """Have a new file written to through a log.

        SQLite has no patience here: of processes that open it together one would be refused.
        """
        ends_s = time.monotonic() + BUSY_S
        while True:
            try:
                self._conn.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                busy = _code(error) == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() > ends_s:
                    raise
                time.sleep(0.01)
            else:
                return

    def _version(self) -> int:
        with self._as_of_one_moment():
            version, owner, tables = self._check_schema()
        if owner != _APPLICATION_ID and (owner or version or tables):
            problem = f"{self.path} is an SQLite file, but not a catalog of cogcache"
            raise CatalogError(problem, "move it away, or name another folder with --cache")
        if version > VERSION:
            problem = f"{self.path} is of version {version}; this cogcache knows {VERSION}"
            raise CatalogError(problem, f"update cogcache, {extra_hint()}")
        return version

    @contextmanager
    def _as_of_one_moment(self) -> Iterator[None]:
        self._conn.execute("BEGIN")
        try:
            yield
        finally:
            self._conn.execute("ROLLBACK")

    def _check_schema(self) -> tuple[int, int, int]:
        """Return version, owner and number of tables; refuse what is not made as ours is."""
        version, owner = (
            int(self._conn.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("user_version", "application_id")
        )
        tables = self._conn.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        is_known = self._is_cleansed or integrity.known(self.path).is_sound
        if owner == _APPLICATION_ID and not is_known:
            check_schema(self._conn, self.path, version)
        return version, owner, tables

    def _migrate(self) -> None:
        from cogcache.catalog import migrations

        if self._version():  # what is damaged must not get checksums that fit
            self._refuse(integrity.faults(self._conn))
        # Of processes that get here together, the second has nothing to do.
        with self.transaction():
            migrations.apply(self._conn)
            if not (self._is_new or self._is_cleansed):  # it said which steps it has had
                check_schema(self._conn, self.path, VERSION)
            self._conn.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            self._conn.execute(f"PRAGMA user_version = {VERSION}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if isinstance(error, _BUGS):
                raise
            problem = f"the catalog {self.path} cannot be used: {error}"
            if _code(error) in _DAMAGED or str(error).startswith(_SAID_OF_DAMAGE):
                raise DamagedCatalogError(problem, _REBUILD) from error
            # SQLite does not say which it was: it gives no error number of the system.
            hint = "see that its disk, and that of TMPDIR, is writable and has space, and that "
            raise CatalogError(problem, f"{hint}`ulimit -n` is ample (4096)") from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Do all that is inside, or nothing; it is on the disk afterwards.

        Raises:
            DamagedCatalogError: the catalog has rows that no listing could show.
        """
        if self._refused_rows:
            problem = f"{self.path} has {self._refused_rows} rows that no listing could show"
            raise DamagedCatalogError(problem, _TAKE_OUT)
        with self._lock, self._errors():
            if self._no_room is not None:
                raise self._no_room
            self._conn.execute("BEGIN IMMEDIATE")
            try:
                yield self._conn
                self._conn.execute("COMMIT")
            except BaseException:
                if self._conn.in_transaction:
                    self._conn.execute("ROLLBACK")
                raise

    @contextmanager
    def attached(self, path: Path, name: str) -> Iterator[None]:
        """Have another catalog's tables at hand as ``name.table`` while a `with` block runs."""
        with self._lock, self._errors():
            self._conn.execute(f"ATTACH ? AS {name}", (str(path),))
            try:
                yield
            finally:
                self._conn.execute(f"DETACH {name}")

    @property
    def can_write(self) -> bool:
        """Whether the file can be written, and not only read."""
        return not self._refused_rows and "mode=ro" not in uri_of(self.path)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give the connection to a `with` block alone, to read from the views of whole rows."""
        with self._lock, self._errors():
            yield self._conn

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
        with self._lock, self._errors():
            source = f"whole_{table}" if has_row_checks(table) else table
            rows = self._conn.execute(f"SELECT * FROM {source} {where} ORDER BY {order}", cells)
            return _read(rows)

    def query(self, sql: str, values: Row | None = None) -> list[sqlite3.Row]:
        """Return the rows of any query; JSON columns as they lie there."""
        with self._lock, self._errors():
            return self._conn.execute(sql, cells_of(values or {})).fetchall()

    def known(self, table: str, column: str, values: Collection[str]) -> set[str]:
        """Return those of ``values`` that are in ``column``."""
        sql = f"SELECT {column} FROM whole_{table} WHERE {column} IN {_LIST.format(column)}"
        with self._lock, self._errors():
            rows = self._conn.execute(sql, {column: json.dumps([*values])})
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
