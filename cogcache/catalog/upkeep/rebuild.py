"""Makes a catalog anew from the feature files, and saves of the old one every row that is whole.

The old catalog is kept in the quarantine as it is. What is not covered: a run that starts while
the catalog is being replaced; those that are at work already are waited for by nobody, but refused.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from cogcache.catalog.backup import backup_of
from cogcache.catalog.catalog import Catalog
from cogcache.catalog.database import CatalogFile
from cogcache.catalog.file_uris import read_only_uri
from cogcache.catalog.foreign import bound
from cogcache.catalog.integrity import state_path
from cogcache.catalog.opening import VERSION
from cogcache.catalog.recovery import adopt, rows_of
from cogcache.catalog.reviews import settle
from cogcache.catalog.rows import ClipRow, VideoRow
from cogcache.catalog.salvage import Pages, Rows, salvage
from cogcache.catalog.upkeep.leftovers import remove_leftovers
from cogcache.catalog.values import misfits
from cogcache.catalog.whole_rows import TABLES, Checksums, stored_columns
from cogcache.errors import CacheError, CatalogError
from cogcache.store import FeatureStore, live_runs
from cogcache.system import CachePaths, extra_hint, scratch_folder, seal

logger = logging.getLogger(__name__)

CHECKSUMS_SINCE: Final = 8
"""Version of the catalog from which on rows bear checksums."""
_FROM_FILES: Final = "clips"
"""The table that is not saved: the feature files say what is in it."""
_ROWS_AT_A_TIME: Final = 1000
_IS_THERE: Final = "SELECT count(*) FROM sqlite_master WHERE name = '{}'"
_LOGS: Final = ("-wal", "-shm")


@dataclass
class Rebuilt:
    """What became of a catalog."""

    clips: int = 0
    left_out: int = 0
    """Feature files that are damaged; `cogcache verify --fix` moves them away."""
    saved: dict[str, int] = field(default_factory=dict)
    """Rows taken over, by table."""
    lost: dict[str, int] = field(default_factory=dict)
    """Rows that the old catalog had and that could not be read, by table."""
    uncounted: bool = False
    """Whether so little of the old catalog can be read that it is not known what it had."""
    old: Path | None = None
    """Where the old catalog is now."""
    backup: Path | None = None
    """A backup that may hold what was lost, and was not asked for."""

    @property
    def is_whole(self) -> bool:
        """Whether all that was there is there again."""
        return not (self.left_out or any(self.lost.values()) or self.uncounted)


def rebuild(cache: Path, *, from_backup: bool = False) -> Rebuilt:
    """Make the catalog of a cache anew.

    Args:
        cache: folder of the cache.
        from_backup: take the rows that the old catalog lacks from the backup of the last run that
            ended well.

    Raises:
        CacheError: the folder is no cache, cannot be written, or a run is at work on it;
            its catalog is of a newer version, or cannot be opened; there is no backup.
    """
    store, path = FeatureStore.open(cache), CachePaths(cache).catalog
    if any(row["state"] == "at work" for row in live_runs(cache)):
        raise CacheError("a run is at work on the cache", "wait for it: `cogcache status`")
    remove_leftovers(store)
    backup = backup_of(cache)
    if from_backup and backup is None:
        raise CacheError(f"{cache} has no backup of its catalog", "leave --from-backup out")
    result = Rebuilt()
    with scratch_folder(cache) as folder:
        fresh = folder / "new.sqlite"
        for old in (path, *([backup] if from_backup and backup else [])):
            if old.exists():
                _check_usable(old)
                _save(old, fresh, result)
        if path.exists():
            _count_lost(path, folder / "old.sqlite", result)
        with Catalog(fresh) as catalog:
            for rows in _batches(store, result):
                result.clips += adopt(catalog, rows)
        content = fresh.read_bytes()
    _replace(store, path, content, result)
    result.backup = backup if not result.is_whole and not from_backup else None
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
    """Copy the whole rows of an old catalog into a new one."""
    with closing(CatalogFile(fresh)) as into:
        with into.reading() as conn:
            tables = [Checksums(table, stored_columns(conn, table.name)) for table in TABLES]
        found = salvage(path, tables, with_checksums_since=CHECKSUMS_SINCE)
        for checksums in tables:
            name = checksums.table.name
            if name != _FROM_FILES:
                saved = _insert(into, checksums, found[name])
                result.saved[name] = result.saved.get(name, 0) + saved
        with into.transaction() as conn:
            result.saved["captions"] -= _leave_deleted_out(conn)
            settle(conn)


def _leave_deleted_out(conn: sqlite3.Connection) -> int:
    """Delete captions that `cogcache forget` deleted; return how many.

    The backup still has them, and so has a page of before that a disk wrote to another's place.
    """
    sql = """DELETE FROM captions WHERE EXISTS (SELECT 1 FROM whole_forgotten f
        WHERE f.caption_key = captions.caption_key AND f.id = captions.id
        AND f.created_at = captions.created_at)"""
    return conn.execute(sql).rowcount


def _insert(into: CatalogFile, checksums: Checksums, rows: Rows) -> int:
    """Add rows, those with the lowest number first; return how many are new."""
    number = checksums.table.number
    ordered = sorted(rows.values(), key=lambda row: row[number]) if number else [*rows.values()]
    ordered = [row for row in ordered if not misfits(checksums.table.name, row)]
    names = [column.name for column in checksums.columns]
    places = ", ".join(f":{name}" for name in names)
    sql = f"INSERT OR IGNORE INTO {checksums.table.name} ({', '.join(names)}) VALUES ({places})"
    with into.transaction() as conn:
        return sum(_insert_one(conn, sql, row) for row in ordered)


def _insert_one(conn: sqlite3.Connection, sql: str, row: dict[str, Any]) -> int:
    try:
        try:
            return conn.execute(sql, row).rowcount
        except sqlite3.IntegrityError:  # the run that it names could not be read
            return conn.execute(sql, {**row, "run": None}).rowcount
    except sqlite3.IntegrityError:
        return 0


def _count_lost(path: Path, copy: Path, result: Rebuilt) -> None:
    """Note how many rows the old catalog had that are not in the new one."""
    counts = _counts(path, copy)
    for name, saved in result.saved.items():
        if (had := counts.get(name)) is None:
            result.uncounted = True
        elif had > saved:
            result.lost[name] = had - saved


def _counts(path: Path, copy: Path) -> dict[str, int]:
    """Return how many rows the tables of a damaged catalog have, of those that tell."""
    for suffix in ("", "-wal"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            shutil.copyfile(part, copy.with_name(copy.name + suffix))
    with Pages(copy) as pages:
        whole_bytes = int.from_bytes(pages.page(1)[28:32], "big") * pages.size_bytes
    if pages.is_headed and copy.stat().st_size < whole_bytes < copy.stat().st_size * 1000:
        with copy.open("r+b") as file:  # SQLite reads no file that is shorter than it says
            file.truncate(whole_bytes)
    counts = {}
    with closing(sqlite3.connect(copy)) as conn:
        bound(conn, copy.stat().st_size)
        for table in TABLES:
            if table.since > 1 and _count(conn, _IS_THERE.format(table.name)) == 0:
                counts[table.name] = 0  # it is of an earlier version
                continue
            told = [_count(conn, sql) for sql in _ways_to_count(table.name)]
            if known := [number for number in told if number is not None]:
                counts[table.name] = max(known)
    return counts


def _ways_to_count(table: str) -> list[str]:
    """Return what counts the rows of a table: each reads other pages, some of which are whole."""
    ways = [f"SELECT count(*) FROM {table}", f"SELECT count(*) FROM {table} NOT INDEXED"]
    if table == "captions":
        ways.append("SELECT sum(captions) FROM caption_totals")
    return ways


def _count(conn: sqlite3.Connection, sql: str) -> int | None:
    try:
        return int(conn.execute(sql).fetchone()[0] or 0)
    except (sqlite3.DatabaseError, ValueError, UnicodeDecodeError):
        return None


def _check_usable(path: Path) -> None:
    """Refuse an old catalog that may be sound: it would be taken for a damaged one."""
    try:
        with Pages(path) as pages:
            version = pages.version or 0
    except OSError as error:
        hint = "see that its disk is writable, and that `ulimit -n` is ample (4096)"
        raise CatalogError(f"{path} cannot be opened: {error.strerror}", hint) from error
    is_one_bit_off = (version ^ VERSION).bit_count() == 1
    if version > VERSION and not (is_one_bit_off and not _has_unknown_steps(path)):
        problem = f"{path} is of version {version}; this cogcache knows {VERSION}"
        hint = f"update cogcache ({extra_hint()}), or move the file away"
        raise CatalogError(problem, hint)


def _has_unknown_steps(path: Path) -> bool:
    """Say whether a newer cogcache has changed the tables; else its version is a damaged number."""
    try:
        with closing(sqlite3.connect(read_only_uri(path), uri=True)) as conn:
            steps = conn.execute("SELECT name FROM _sqlite_migrations").fetchall()
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        return False
    return any(str(name)[:4].isdecimal() and int(str(name)[:4]) > VERSION for (name,) in steps)


def _replace(store: FeatureStore, path: Path, content: bytes, result: Rebuilt) -> None:
    """Put the new catalog into place, once the old one is safe in the quarantine."""
    for suffix in ("", *_LOGS):
        part = path.with_name(path.name + suffix)
        if part.exists():
            kept = store.keep_copy(part, "replaced by `cogcache rebuild`")
            result.old = result.old or kept
    logs = [path.with_name(path.name + suffix) for suffix in _LOGS]
    for part in (*logs, state_path(path)):
        # They would be replayed into the new file, to which they do not belong.
        part.unlink(missing_ok=True)
    seal(path, content)
