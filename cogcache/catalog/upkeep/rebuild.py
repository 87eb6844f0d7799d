"""Makes a catalog anew from the feature files, and saves of the old one what can be read.

The old catalog is kept in the quarantine as it is. What is not covered: a run that starts while
the catalog is being replaced; those that are at work already are waited for by nobody, but refused.
"""

from __future__ import annotations

import logging
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.database import VERSION, CatalogFile
from cogcache.catalog.recovery import adopt, rows_of
from cogcache.catalog.rows import ClipRow, VideoRow
from cogcache.errors import CacheError, CatalogError
from cogcache.store import FeatureStore, live_runs
from cogcache.system import extra_hint, seal

logger = logging.getLogger(__name__)

_SAVED: Final = ("runs", "files", "memory", "videos", "failures", "captions")
"""Tables that are saved from the old catalog, those that others refer to first."""
_ROWS_AT_A_TIME: Final = 1000
_LOGS: Final = ("-wal", "-shm")


@dataclass
class Rebuilt:
    """What became of a catalog."""

    clips: int = 0
    left_out: int = 0
    """Feature files that are damaged; `cogcache verify --fix` moves them away."""
    saved: dict[str, int] = field(default_factory=dict)
    """Rows taken over, by table."""
    damaged: list[str] = field(default_factory=list)
    """Tables of the old catalog that could not be read to their end."""
    old: Path | None = None
    """Where the old catalog is now."""


def rebuild(cache: Path) -> Rebuilt:
    """Make the catalog of a cache anew.

    Args:
        cache: folder of the cache.

    Raises:
        CacheError: the folder is no cache, cannot be written, or a run is at work on it;
            its catalog is of a newer version, or cannot be opened.
    """
    store, path = FeatureStore.open(cache), cache / "catalog.sqlite"
    if any(row["state"] == "at work" for row in live_runs(cache)):
        raise CacheError("a run is at work on the cache", "wait for it: `cogcache status`")
    result = Rebuilt()
    with tempfile.TemporaryDirectory(prefix="cogcache-") as folder:
        fresh = Path(folder, "catalog.sqlite")
        if path.exists():
            _check_usable(path)
            _save(path, fresh, result)
        with Catalog(fresh) as catalog:
            for rows in _batches(store, result):
                result.clips += adopt(catalog, rows)
        content = fresh.read_bytes()
    _replace(store, path, content, result)
    return result


def _batches(store: FeatureStore, result: Rebuilt) -> Iterator[list[tuple[VideoRow, ClipRow]]]:
    batch: list[tuple[VideoRow, ClipRow]] = []
    for key in tqdm(store.keys(), desc="reading feature files", unit="clip", disable=None):
        try:
            video, clip = rows_of(store, key, 0)
        except (CacheError, KeyError) as error:
            logger.warning("%s is left out: %s", store.path_of(key), error)
            result.left_out += 1
            continue
        made_s = store.made_s(key)
        clip["created_at"] = datetime.fromtimestamp(made_s, UTC).isoformat(timespec="seconds")
        batch.append((video, clip))
        if len(batch) == _ROWS_AT_A_TIME:
            yield batch
            batch = []
    yield batch


def _save(path: Path, fresh: Path, result: Rebuilt) -> None:
    """Copy what can be read of an old catalog into a new one."""
    with closing(CatalogFile(fresh)) as into, closing(sqlite3.connect(path)) as old:
        for table in _SAVED:
            columns = _shared_columns(into, old, table)
            rows = _readable(old, table, columns, result)
            with into.transaction() as conn:
                result.saved[table] = sum(_insert(conn, table, columns, row) for row in rows)


def _check_usable(path: Path) -> None:
    """Refuse an old catalog that may be sound: it would be taken for a damaged one."""
    try:
        with closing(sqlite3.connect(path)) as old:
            (version,) = old.execute("PRAGMA user_version").fetchone()
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CANTOPEN:
            hint = "see that its disk is writable, and that `ulimit -n` is ample (4096)"
            raise CatalogError(f"{path} cannot be opened: {error}", hint) from error
        return
    if version > VERSION:
        problem = f"{path} is of version {version}; this cogcache knows {VERSION}"
        hint = f"update cogcache ({extra_hint()}), or move the file away"
        raise CatalogError(problem, hint)


def _shared_columns(into: CatalogFile, old: sqlite3.Connection, table: str) -> list[str]:
    """Return the columns of a table, without those that an old catalog can be seen to lack."""
    columns = [row["name"] for row in into.query(f"PRAGMA table_info({table})")]
    with suppress(sqlite3.DatabaseError):
        theirs = {row[1] for row in old.execute(f"PRAGMA table_info({table})")}
        return [name for name in columns if name in theirs] or columns
    return columns


def _readable(
    old: sqlite3.Connection, table: str, columns: Sequence[str], result: Rebuilt
) -> list[tuple[Any, ...]]:
    """Return the rows before the first damaged page and those after the last one."""
    found: dict[tuple[Any, ...], None] = {}
    for order in ("", "ORDER BY rowid DESC"):
        try:
            # Not all at once: what was read before the damage is kept.
            for row in old.execute(f"SELECT {', '.join(columns)} FROM {table} {order}"):
                found[row] = None
            break
        except sqlite3.DatabaseError as error:
            logger.warning("the old catalog's %s are damaged: %s", table, error)
            if table not in result.damaged:
                result.damaged.append(table)
    return list(found)


def _insert(
    conn: sqlite3.Connection, table: str, columns: Sequence[str], row: tuple[Any, ...]
) -> int:
    places = ", ".join("?" * len(columns))
    sql = f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({places})"
    values = dict(zip(columns, row, strict=True))
    try:
        try:
            return conn.execute(sql, row).rowcount
        except sqlite3.IntegrityError:  # the run that it names could not be read
            return conn.execute(sql, [*{**values, "run": None}.values()]).rowcount
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        return 0


def _replace(store: FeatureStore, path: Path, content: bytes, result: Rebuilt) -> None:
    """Put the new catalog into place, once the old one is safe in the quarantine."""
    for suffix in ("", *_LOGS):
        part = path.with_name(path.name + suffix)
        if part.exists():
            kept = store.keep_copy(part, "replaced by `cogcache rebuild`")
            result.old = result.old or kept
    for suffix in _LOGS:
        # They would be replayed into the new file, to which they do not belong.
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    seal(path, content)
