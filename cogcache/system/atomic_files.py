"""Files that are whole or absent, and what is left of those that were never finished.

A file is written under a temporary name beside its place, closed, brought to the disk, checked,
and only then renamed. What is not covered: two writers of one name; the later rename wins.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final
from uuid import uuid4

from cogcache.errors import CacheError
from cogcache.system.host import machine

_SUFFIX: Final = ".partial"
_NAME_BYTES: Final = 255
"""What file systems take for a name."""
Part = bytes | memoryview
_ABANDONED_S: Final = 24 * 3600
"""Sealing takes seconds: what another machine has not touched for a day is dead."""


def seal(path: Path, content: bytes, check: Callable[[Path], None] | None = None) -> None:
    """Write ``content`` to ``path``: whoever looks finds the whole file or none.

    Args:
        path: the file to be; its folder is made if need be.
        content: all of its bytes.
        check: reads the temporary file back and raises unless it is as it should be.

    Raises:
        CacheError: the disk is full or cannot be written.
        CorruptFeaturesError: ``check`` says so.
    """
    seal_parts(path, [content], check)


def seal_parts(
    path: Path, parts: Iterable[Part], check: Callable[[Path], None] | None = None
) -> None:
    """Do as ``seal`` does with a content that comes in parts, so that it is never copied whole."""
    try:
        make_folder(path.parent)
        _write_checked(path, parts, check)
        sync_folder(path.parent)
    except OSError as error:
        problem = f"cannot write {path}: {error.strerror or error}"
        raise CacheError(problem, "mend it and run again: what is cached is kept") from error


def _write_checked(path: Path, parts: Iterable[Part], check: Callable[[Path], None] | None) -> None:
    partial = partial_name(path)
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


def partial_name(path: Path) -> Path:
    """Return a temporary name beside a path, of which `remove_dead` can tell whose it is."""
    return temporary_name(path, f"{machine()}.{os.getpid()}.{uuid4().hex}{_SUFFIX}")


def temporary_name(path: Path, end: str) -> Path:
    """Return a hidden name beside a path that ends in ``end``; of a long name it has the begin."""
    begin, room = path.name, _NAME_BYTES - len(os.fsencode(f"..{end}"))
    while len(os.fsencode(begin)) > room:
        begin = begin[:-1]
    return path.with_name(f".{begin}.{end}")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, each brought to the disk."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk; Windows does so unasked and has no call for it."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_dead(folders: Iterable[Path]) -> list[Path]:
    """Remove the temporary files in ``folders`` whose writers are dead; return their paths.

    Of a writer on another machine, or in another container, a day of silence is the sign.
    """
    dead = [p for folder in folders for p in folder.glob(f".*{_SUFFIX}") if _is_dead(p)]
    for partial in dead:
        partial.unlink(missing_ok=True)
    return dead


def remove_dead_folder(of: Path) -> None:
    """Remove what dead writers left of a folder that was to be ``of``."""
    for partial in of.parent.glob(f".{of.name}.*{_SUFFIX}"):
        if partial.is_dir() and _is_dead(partial):
            shutil.rmtree(partial, ignore_errors=True)


def _is_dead(partial: Path) -> bool:
    try:
        touched_s = partial.stat().st_mtime
    except FileNotFoundError:  # renamed or removed since it was listed
        return False
    host, pid = partial.name.removesuffix(_SUFFIX).split(".")[-3:-1]
    if host == machine() and pid.isdecimal():
        return not _was_running(int(pid), touched_s)
    return time.time() - touched_s > _ABANDONED_S


def _was_running(pid: int, at_s: float) -> bool:
    import psutil  # here: only sweeping needs it

    try:
        # A process that began later has merely been given the number again.
        return bool(psutil.Process(pid).create_time() <= at_s + 1)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
