"""A backup of the catalog as the last run left it that ended well."""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from cogcache.catalog.database import uri_of
from cogcache.system import CachePaths, sync_folder, temporary_name

logger = logging.getLogger(__name__)


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
        with (
            closing(sqlite3.connect(uri_of(catalog), uri=True)) as ours,
            closing(sqlite3.connect(partial)) as copy,
        ):
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
