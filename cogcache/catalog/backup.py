"""A backup of the catalog, made by each run that ends without an error."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from cogcache.catalog.file_uris import make_as_asked, uri_of
from cogcache.catalog.opening import NO_ROOM
from cogcache.errors import CatalogError
from cogcache.system import CachePaths, sync_folder, temporary_name

logger = logging.getLogger(__name__)

T = TypeVar("T")


def backup_of(cache: Path) -> Path | None:
    """Return the backup of a cache's catalog, if there is one."""
    path = CachePaths(cache).catalog_backup
    return path if path.is_file() else None


def back_up(catalog: Path) -> None:
    """Copy a catalog that is sound beside it, in place of an earlier copy.

    SQLite's backup makes it, so that it is whole as of one moment. A run that did its work does
    not fail for want of room for the copy: then the earlier one stays, and a warning says so.
    """
    path = CachePaths(catalog.parent).catalog_backup
    partial = temporary_name(path)
    try:
        make_as_asked(partial)
        with (
            closing(sqlite3.connect(uri_of(catalog), uri=True)) as ours,
            closing(sqlite3.connect(partial)) as copy,
        ):
            # A log of its own would bear a name that nobody clears away after a kill.
            copy.execute("PRAGMA journal_mode = MEMORY")
            ours.backup(copy)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except (OSError, sqlite3.Error) as error:
        logger.warning("the catalog was not backed up to %s: %s", path, error)
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            partial.with_name(f"{partial.name}{suffix}").unlink(missing_ok=True)


def with_room(cache: Path, change: Callable[[], T]) -> T:
    """Make a small change to a catalog, on a full disk too: there the backup gives way to it.

    What deletes must be able to work where there is no room. SQLite takes some room for any change,
    and what is deleted may have been less than that.

    Args:
        cache: folder of the cache.
        change: opens the catalog and changes it, all or nothing; it is called again with more room.

    Raises:
        CatalogError: there is no room without the backup either, or it is not for want of room.
    """
    try:
        return change()
    except CatalogError as error:
        if not _lacks_room(error) or (backup := backup_of(cache)) is None:
            raise
        logger.info("%s gives way: %s", backup, error.problem)
        backup.unlink()
    try:
        return change()
    finally:
        back_up(CachePaths(cache).catalog)


def _lacks_room(error: CatalogError) -> bool:
    code = getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF
    return code in NO_ROOM or code == sqlite3.SQLITE_READONLY
