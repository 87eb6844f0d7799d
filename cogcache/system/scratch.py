"""Temporary files and folders. Their names say who made them, so that others can remove them.

Every temporary name ends in the machine, the process and a number. What a process left that was
killed is removed by the next command that writes: beside the place that it was to take, in
``TMPDIR``, and, where it lies elsewhere, by a note in the cache's folder ``working/``. Of a
process of another machine, or of another container, a day of silence is the sign that it is dead.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from cogcache.system.cache_paths import CachePaths
from cogcache.system.host import machine

PARTIAL: Final = ".partial"
OLD: Final = ".old"
"""Of a folder that is about to be replaced, where it cannot be exchanged in one step."""
_NOTE: Final = ".note"
_FOLDER: Final = "cogcache-"
_MEMORY: Final = Path("/dev/shm")
_TEMPORARY_PLACES: Final = ("/tmp", "/var/tmp", "/usr/tmp")
"""Where Python looks if no variable names a folder."""
_ABANDONED_S: Final = 24 * 3600
"""Sealing takes seconds: what another machine has not touched for a day is dead."""
_LONGEST_BYTES: Final = 120
_EXCHANGE: Final = 2
"""``RENAME_EXCHANGE`` of renameat2(2)."""
_NOWHERE: Final = -100
"""``AT_FDCWD``: paths are as they are written."""
_CANNOT: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM})


def temporary_name(path: Path, suffix: str = PARTIAL) -> Path:
    """Return a temporary name beside a path; `is_dead` tells whether its maker lives."""
    return path.with_name(f"{_begin(path)}{_owner()}{suffix}")


def is_dead(path: Path) -> bool:
    """Say whether the process that made a temporary file or folder has ended."""
    try:
        touched_s = path.lstat().st_mtime
    except FileNotFoundError:  # renamed or removed since it was listed
        return False
    parts = path.name.removesuffix(path.suffix if path.suffix in _SUFFIXES else "").split(".")
    if len(parts) < 3:
        return time.time() - touched_s > _ABANDONED_S
    host, pid = parts[-3].removeprefix(_FOLDER), parts[-2]
    if host == machine() and pid.isdecimal():
        return not _was_running(int(pid), touched_s)
    return time.time() - touched_s > _ABANDONED_S


_SUFFIXES: Final = (PARTIAL, OLD, _NOTE)


def remove_dead(folders: Iterable[Path]) -> list[Path]:
    """Remove the temporary files in ``folders`` whose makers are dead; return their paths."""
    return [path for folder in folders for path in _removed(folder.glob(f".*{PARTIAL}"))]


def put_right(out: Path) -> None:
    """Clear away what dead processes left beside a file or folder that they were to make.

    A folder that one of them had moved aside for a new one is put back if no other took its place.
    """
    for old in [*out.parent.glob(f"{_pattern(out)}{OLD}")]:
        if is_dead(old) and not os.path.lexists(out):
            old.rename(out)
    for suffix in (OLD, PARTIAL):
        _removed(out.parent.glob(f"{_pattern(out)}{suffix}"))


def replace(partial: Path, out: Path) -> None:
    """Put a folder into the place of another, in one step where the system can do that.

    Where it cannot, a moment lies between two renames; `put_right` undoes the first one.

    Raises:
        OSError: it cannot be done; both are where they were.
    """
    if not os.path.lexists(out):
        partial.rename(out)
        return
    if _exchanged(partial, out):
        _remove(partial)
        return
    old = temporary_name(out, OLD)
    out.rename(old)
    try:
        partial.rename(out)
    except BaseException:
        old.rename(out)
        raise
    _remove(old)


class Scratch:
    """A new folder in ``TMPDIR``, there until it is closed; what dead processes left goes first.

    Args:
        cache: a cache in which the folder is noted, for commands with another ``TMPDIR``.
        in_memory: make it in memory, where the system has a folder for that.
    """

    def __init__(self, cache: Path | None = None, *, in_memory: bool = False) -> None:
        sweep_temporary()
        folder = _MEMORY if in_memory and _MEMORY.is_dir() else temporary_place()
        self.path = folder / f"{_FOLDER}{_owner()}"
        self._note = _write_note(cache, {"kind": "temporary", "paths": [str(self.path)]})
        self.path.mkdir(mode=0o700)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        _forget(self._note)


@contextmanager
def scratch_folder(cache: Path | None = None, *, in_memory: bool = False) -> Iterator[Path]:
    """Give a folder of a `with` block's own, see `Scratch`."""
    scratch = Scratch(cache, in_memory=in_memory)
    try:
        yield scratch.path
    finally:
        scratch.close()


@contextmanager
def noted(cache: Path | None, kind: str, **facts: Any) -> Iterator[None]:
    """Keep a note in a cache while a `with` block runs: after a kill, others find it.

    Args:
        cache: folder of the cache; None, or one that cannot be written, keeps no note.
        kind: ``temporary``, with ``paths`` that are to be removed, or ``folders`` whose temporary
            files are; or what another module finishes.
        facts: what is needed to finish it.
    """
    if cache is not None:
        sweep(cache)  # of one that was killed at the same
    note = _write_note(cache, {"kind": kind, **facts})
    try:
        yield
    finally:
        _forget(note)


def notes(cache: Path, kind: str, *, dead: bool) -> list[tuple[Path, Mapping[str, Any]]]:
    """Return the notes of one kind, of dead or of living processes."""
    found = []
    for path in sorted(CachePaths(cache).working.glob(f"*{_NOTE}")):
        with suppress(AttributeError, OSError, RecursionError, ValueError):
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.get("kind") == kind and is_dead(path) == dead:
                found.append((path, content))
    return found


def sweep(cache: Path) -> list[Path]:
    """Remove what dead processes noted in a cache as temporary; return the paths of it."""
    removed = []
    for note, content in notes(cache, "temporary", dead=True):
        # A note may lie: nothing but temporary names is touched.
        ours = [path for path in _listed(content, "paths") if _is_temporary(path)]
        removed += [path for path in ours if os.path.lexists(path) and _remove(path)]
        removed += remove_dead(_listed(content, "folders"))
        _forget(note)
    for note in CachePaths(cache).working.glob(f"*{_NOTE}"):
        with suppress(FileNotFoundError):  # another command sweeps, too
            if is_dead(note) and not note.stat().st_size:  # its writer died at it
                _forget(note)
    sweep_temporary()
    return removed


def _listed(content: Mapping[str, Any], name: str) -> list[Path]:
    """Return the paths that a note lists; what is none is passed by."""
    listed = content.get(name)
    texts = listed if isinstance(listed, list) else []
    return [Path(text) for text in texts if isinstance(text, str) and "\0" not in text]


def temporary_place() -> Path:
    """Return the folder for temporary files: ``TMPDIR``, or what Python would take in its place.

    Python's own function writes a file there to see whether it can: a kill would leave that.
    """
    if tempfile.tempdir is None:
        named = (os.environ.get(name, "") for name in ("TMPDIR", "TEMP", "TMP"))
        for place in (*named, *_TEMPORARY_PLACES):
            if place and Path(place).is_dir() and os.access(place, os.W_OK | os.X_OK):
                return Path(place).absolute()
    return Path(tempfile.gettempdir())


def settle_temporary_place() -> None:
    """Have Python and libraries use `temporary_place` without a trial: torch asks at its import."""
    tempfile.tempdir = str(temporary_place())


def sweep_temporary() -> None:
    """Remove the folders in ``TMPDIR`` of processes that have ended."""
    for place in {temporary_place(), _MEMORY}:
        folders = place.glob(f"{_FOLDER}*.*.*")
        _removed(folder for folder in folders if not folder.is_symlink())


def left_behind(cache: Path) -> list[Path]:
    """Return what dead processes left: notes, and what they name."""
    found = [path for path in sorted(CachePaths(cache).working.glob(f"*{_NOTE}")) if is_dead(path)]
    dead = [content for _, content in notes(cache, "temporary", dead=True)]
    found += [path for content in dead for path in _listed(content, "paths")]
    noted_folders = [folder for content in dead for folder in _listed(content, "folders")]
    paths = CachePaths(cache)
    folders = (cache, paths.quarantine, *paths.features.glob("??"), *noted_folders)
    found += [path for folder in folders for path in folder.glob(f".*{PARTIAL}") if is_dead(path)]
    return [path for path in found if os.path.lexists(path)]


def _owner() -> str:
    return f"{machine()}.{os.getpid()}.{uuid4().hex}"


def _begin(path: Path) -> str:
    name = os.fsencode(path.name)
    if len(name) > _LONGEST_BYTES:  # with the suffix, too long for file systems
        return f".{hashlib.sha256(name).hexdigest()[:32]}."
    return f".{path.name}."


def _pattern(path: Path) -> str:
    begin = _begin(path)
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in begin) + "*"


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(_FOLDER) or path.suffix in (PARTIAL, OLD)


def _removed(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if is_dead(path) and _remove(path)]


def _remove(path: Path) -> bool:
    """Remove a file or folder; return whether it is gone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
    return not os.path.lexists(path)


def _write_note(cache: Path | None, content: Mapping[str, Any]) -> Path | None:
    if cache is None or not cache.is_dir():
        return None
    note = CachePaths(cache).working / f"{_owner()}{_NOTE}"
    try:
        note.parent.mkdir(exist_ok=True)
        note.write_text(json.dumps(content), encoding="utf-8")
    except OSError:  # a full or read-only disk: it has no temporary files of ours either
        _forget(note)
        return None
    return note


def _forget(note: Path | None) -> None:
    if note is not None:
        with suppress(OSError):
            note.unlink(missing_ok=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; return whether the system can do that."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    paths = os.fsencode(one), os.fsencode(other)
    if libc.renameat2(_NOWHERE, paths[0], _NOWHERE, paths[1], _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _was_running(pid: int, at_s: float) -> bool:
    import psutil  # here: only sweeping needs it

    try:
        process = psutil.Process(pid)
        # A process that began later has merely been given the number again.
        began_s = process.create_time()
        return bool(began_s <= at_s + 1 and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
