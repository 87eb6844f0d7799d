"""What SQLite calls a catalog's file, by what may be done with it."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from cogcache.system import scratch_folder

BUSY_S: Final = 30.0
"""A statement waits so long for another process to end its transaction."""


def uri_of(path: Path) -> str:
    """Return SQLite's own name for a catalog: for reading alone where it cannot be written."""
    if os.access(path.parent, os.W_OK) and (not path.exists() or os.access(path, os.W_OK)):
        return _uri(path)
    return read_only_uri(path)


def read_only_uri(path: Path) -> str:
    """Return SQLite's own name for a file that is read and left as it is.

    Without a log beside it nothing is at work on it, and its folder need not be writable.
    """
    log = path.with_name(f"{path.name}-wal")
    idle = not log.exists() or not log.stat().st_size
    return f"{_uri(path)}?mode=ro{'&immutable=1' if idle else ''}"


def connected(uri: str) -> sqlite3.Connection:
    """Return a connection for all threads; a lock has to keep them apart."""
    return sqlite3.connect(
        uri, timeout=BUSY_S, isolation_level=None, check_same_thread=False, uri=True
    )


@contextmanager
def readable(path: Path) -> Iterator[str]:
    """Yield SQLite's own name for a catalog that nobody writes to, for reading without any room.

    A log that is beside it is read with a copy of both, in memory where there is such a folder.

    Raises:
        OSError: there is no room for the copy either.
    """
    log = path.with_name(f"{path.name}-wal")
    if not log.exists() or not log.stat().st_size:
        yield f"{_uri(path)}?mode=ro&immutable=1"
        return
    with scratch_folder(in_memory=True) as folder:
        copy = folder / path.name
        for part in (path, log):
            shutil.copyfile(part, copy.with_name(part.name))
        yield _uri(copy)


def _uri(path: Path) -> str:
    return f"file:{quote(os.fsencode(path.absolute()))}"


def make_as_asked(path: Path) -> None:
    """Make an empty file for a new catalog: SQLite would let nobody but its owner write to it.

    Whom the umask lets in is who may write; SQLite gives its log and index the same rights.
    """
    with suppress(OSError):  # SQLite says what is wrong
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666))
