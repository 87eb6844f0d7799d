"""The state of a file on disk: readable, unchanged, its digest."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from pathlib import Path
from threading import Event
from typing import Any

from cogcache.errors import VideoError
from cogcache.system import DISK_ERROR, OF_DISKS, raise_if_exhausted

FileState = tuple[Path, int, int, int]
"""A file as it is now: one that grew or was replaced is another."""
Seen = tuple[int, int]
"""Size and time of change of a file, in bytes and ns, when its digest was taken."""


def check_readable(path: Path) -> None:
    """Read the begin of a file.

    Raises:
        VideoError: ``unreadable`` or ``disk_error``.
    """
    try:
        with path.open("rb") as file:
            file.read(1 << 16)
    except OSError as error:
        raise unreadable(path, error) from error


def state_of(path: Path) -> FileState:
    """Return size and time of change of a readable file: they differ once it is changed.

    Raises:
        VideoError: as `check_file`.
    """
    facts = check_file(path)
    return path, facts.st_size, facts.st_mtime_ns, facts.st_ino


def check_file(path: Path) -> os.stat_result:
    """Return what the system knows of a file that can be read.

    Raises:
        VideoError: it is ``missing``, ``unreadable`` (a folder that cannot be searched is, too),
            ``empty_file``, or a folder, a pipe or a device (``not_a_video``).
    """
    try:
        facts = path.stat()
        # A pipe would wait for a writer for ever.
        if stat.S_ISREG(facts.st_mode):
            path.open("rb").close()
        elif stat.S_ISDIR(facts.st_mode):
            os.scandir(path).close()
    except FileNotFoundError as error:
        raise VideoError("missing", f"{path}: no such file", "it may have been moved") from error
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(facts.st_mode):
        raise VideoError("not_a_video", f"{path} is not a regular file", "name a video file")
    if facts.st_size == 0:
        raise VideoError("empty_file", f"{path} has no bytes", "fetch it anew")
    return facts


def check_unchanged(path: Path, digest: str, seen: Seen) -> None:
    """See that a file still holds the bytes that its digest was taken of, perhaps hours ago.

    The bytes are read again only where size or time differ: another machine may tell another time.

    Raises:
        VideoError: it has changed (``changing``), or cannot be read any more.
    """
    facts = check_file(path)
    if (facts.st_size, facts.st_mtime_ns) != seen and file_digest(path) != digest:
        problem = f"{path} has changed since the run began"
        raise VideoError("changing", problem, "run again when it is complete")


def unreadable(path: Path, error: OSError) -> VideoError:
    """Return the error for a file that the system does not let us read.

    Raises:
        MachineError: it would let us read no other either.
    """
    raise_if_exhausted(error)
    if error.errno in OF_DISKS:
        hint = "check the disk that it is on, or the connection to it"
        return VideoError(DISK_ERROR, f"{path} cannot be read: {error.strerror}", hint)
    hint = "check its permissions and the disk that it is on"
    return VideoError("unreadable", f"{path} cannot be read: {error.strerror}", hint)


class _Endable(io.FileIO):
    """A file that stops being read when its reader is asked to end."""

    def __init__(self, path: Path, ending: Event | None) -> None:
        super().__init__(path)
        self._ending = ending

    def readinto(self, buffer: Any) -> int:
        if self._ending is not None and self._ending.is_set():
            raise VideoError("not_wanted", f"{self.name} was not read to its end", "run again")
        return super().readinto(buffer) or 0


def file_digest(path: Path, ending: Event | None = None) -> str:
    """Return the SHA-256 of the file's bytes, in hexadecimal.

    Args:
        path: of the file.
        ending: once it is set, the file is read no further.

    Raises:
        VideoError: the file is missing, unreadable, empty, no regular file, was written to
            meanwhile (``changing``), or not read to its end.
    """
    before = check_file(path)
    try:
        with _Endable(path, ending) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            after = os.fstat(file.fileno())
    except OSError as error:
        raise unreadable(path, error) from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise VideoError(
            "changing", f"{path} changed while it was read", "run again when it is complete"
        )
    return digest
