"""Opens one SQLite file that is a catalog: checked, brought up to date, and closed.

A file that is not as it was left may be a stranger's: its schema and the values of all of its rows
are looked at before anything of it is believed.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import RLock
from typing import Final

from cogcache.catalog import integrity
from cogcache.catalog.file_uris import BUSY_S, connected, make_as_asked, readable, uri_of
from cogcache.catalog.foreign import deadline, harden, misfit_rows
from cogcache.catalog.integrity import Noted
from cogcache.catalog.schema import check_schema
from cogcache.catalog.whole_rows import Damage, add_row_checks, is_whole
from cogcache.errors import CatalogError, DamagedCatalogError
from cogcache.system import extra_hint

VERSION: Final = 12
"""Number of the last step of `migrations`; a higher one is of a catalog of a newer cogcache."""
_APPLICATION_ID: Final = 0x636F6763  # "cogc": tells a catalog from any other SQLite file
_BUGS: Final = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError)
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_SAID_OF_DAMAGE: Final = ("vtable constructor failed", "malformed", "Could not decode", "'utf-8'")
NO_ROOM: Final = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL})
_TAKE_OUT: Final = "`cogcache verify` names them, and `cogcache verify --fix` takes them out"
_REBUILD: Final = "`cogcache rebuild` makes it anew, with the captions that can be read"


def _code(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF  # without the finer part


class OpenFile:
    """The connection to a catalog's file, for any number of threads.

    Args:
        path, checked, derived, cleansed: as `CatalogFile` takes them.

    Raises:
        CatalogError: it is no catalog, is of a newer version, or cannot be opened.
        DamagedCatalogError: it is damaged.
    """

    def __init__(self, path: Path, *, checked: bool, derived: bool, cleansed: bool) -> None:
        self.path = path
        self.damage = Damage()
        """The damaged rows that were met."""
        self.misfits: dict[str, list[int]] = {}
        """Numbers of the rows that no listing could show, by table."""
        self.num_refused = 0
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
        # Some builds of SQLite leave deleted rows in free pages, where damage brings them back.
        self._conn.execute("PRAGMA secure_delete = ON")
        version = self._version()
        # From here on the schema is ours, whose triggers write to the full text index.
        self._conn.execute("PRAGMA trusted_schema = ON")
        self._is_new = version == 0
        if version < VERSION:
            _write_ahead(self._conn)
            self._migrate()

    def _check(self, *, derived: bool) -> None:
        """Refuse a file that is damaged; note one that is sound."""
        known = Noted(True, True) if self._is_new else integrity.known(self.path)
        with deadline(self._conn, self.path.stat().st_size):
            if not known.is_sound:
                _refuse(self.path, integrity.faults(self._conn))
                self._leave_misfits_out()
                if not self.misfits:  # else they are made anew of what is left
                    _refuse(self.path, integrity.odd_sums(self._conn))
            if derived and not known.is_derived_sound:
                _refuse(self.path, integrity.derived_faults(self._conn))
        if not self.misfits:
            self._sound = True
            integrity.opened(self.path, Noted(True, known.is_derived_sound or derived))

    def _leave_misfits_out(self) -> None:
        """Find the rows that no listing could show, and name them."""
        for table, number, columns in misfit_rows(self._conn):
            self.misfits.setdefault(table, []).append(number)
            self.damage.note_misfit(table, number, columns)
        for table, numbers in self.misfits.items():
            self.num_refused += sum(is_whole(self._conn, table, number) for number in numbers)

    def _version(self) -> int:
        with _as_of_one_moment(self._conn):
            version, owner, tables = self._check_schema()
        if owner != _APPLICATION_ID and (owner or version or tables):
            problem = f"{self.path} is an SQLite file, but not a catalog of cogcache"
            raise CatalogError(problem, "move it away, or name another folder with --cache")
        if version > VERSION:
            problem = f"{self.path} is of version {version}; this cogcache knows {VERSION}"
            raise CatalogError(problem, f"update cogcache, {extra_hint()}")
        return version

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
            _refuse(self.path, integrity.faults(self._conn))
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
        if self.num_refused:
            problem = f"{self.path} has {self.num_refused} rows that no listing could show"
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
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give the connection to a `with` block alone."""
        with self._lock, self._errors():
            yield self._conn


def _refuse(path: Path, faults: list[str]) -> None:
    if faults:
        more = f" (and {len(faults) - 1} faults more)" if len(faults) > 1 else ""
        raise DamagedCatalogError(f"{path} is damaged: {faults[0]}{more}", _REBUILD)


def _write_ahead(conn: sqlite3.Connection) -> None:
    """Have a new file written to through a log.

    SQLite has no patience here: of processes that open it together one would be refused.
    """
    ends_s = time.monotonic() + BUSY_S
    while True:
        try:
            conn.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            busy = _code(error) == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > ends_s:
                raise
            time.sleep(0.01)
        else:
            return


@contextmanager
def _as_of_one_moment(conn: sqlite3.Connection) -> Iterator[None]:
    conn.execute("BEGIN")
    try:
        yield
    finally:
        conn.execute("ROLLBACK")
