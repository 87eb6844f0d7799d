"""Files that are whole or absent.

A file is written under a temporary name beside its place, closed, brought to the disk, checked,
and only then renamed. What is not covered: two writers of one name; the later rename wins.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from cogcache.errors import CacheError
from cogcache.system.scratch import noted, put_right, temporary_name

Part = bytes | memoryview


def seal(
    path: Path,
    content: bytes,
    check: Callable[[Path], None] | None = None,
    *,
    cache: Path | None = None,
) -> None:
    """Write ``content`` to ``path``: whoever looks finds the whole file or none.

    Args:
        path: the file to be; its folder is made if need be.
        content: all of its bytes.
        check: reads the temporary file back and raises unless it is as it should be.
        cache: of a file outside of any cache: the one that notes the temporary file, so that it is
            found after a kill. What an earlier kill left beside the path goes first.

    Raises:
        CacheError: the disk is full or cannot be written.
        CorruptFeaturesError: ``check`` says so.
    """
    seal_parts(path, [content], check, cache=cache)


def seal_parts(
    path: Path,
    parts: Iterable[Part],
    check: Callable[[Path], None] | None = None,
    *,
    cache: Path | None = None,
) -> None:
    """Write a file as ``seal`` does, from several parts: they are never joined in memory."""
    try:
        make_folder(path.parent)
        if cache is not None:
            put_right(path)
        partial = temporary_name(path)
        with noted(cache, "temporary", paths=[str(partial.absolute())]):
            _write_checked(path, partial, parts, check)
        sync_folder(path.parent)
    except OSError as error:
        problem = f"cannot write {path}: {error.strerror or error}"
        raise CacheError(problem, "mend it and run again: what is cached is kept") from error


def _write_checked(
    path: Path, partial: Path, parts: Iterable[Part], check: Callable[[Path], None] | None
) -> None:
    try:
        with partial.open("xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(partial)
        partial.replace(path)
    finally:  # not `except`: Ctrl-C must leave nothing behind either
        partial.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents; each is on the disk when this returns."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Write a folder's entries to the disk. On Windows this does nothing: it has no call for it."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
