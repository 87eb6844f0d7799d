"""From what a user names to video files: folders, globs, lists; and the digest of a file."""

from __future__ import annotations

import glob
import hashlib
import io
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Any

from cogcache.errors import ConfigError, VideoError
from cogcache.system import object_stores
from cogcache.system.faults import DISK_ERROR, OF_DISKS, raise_if_exhausted
from cogcache.system.urls import is_url, path_of_url

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    {
        ".3g2", ".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4",
        ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
    }
)  # fmt: skip
"""What makes a file in a folder a video; a file that is named itself is always taken."""


def find_videos(arguments: Sequence[str]) -> list[Path]:
    """Return the files that ``arguments`` stand for, absolute, each file once.

    Args:
        arguments: files; folders, searched with all their subfolders in order of names, hidden
            ones left out; globs; URLs of objects, prefixes and patterns; and ``@list.txt``, which
            holds a path or URL a line, paths relative to the list's own folder, where empty lines
            and those that begin with ``#`` are passed over.

    Raises:
        ConfigError: an argument stands for nothing.
    """
    found: dict[str, Path] = {}
    real_folders: dict[str, str] = {}
    for argument in arguments:
        for path in _expand(argument):
            if is_url(path):
                found.setdefault(os.fspath(path), path)
                continue
            absolute = os.path.abspath(path)  # noqa: PTH100
            found.setdefault(_real(absolute, real_folders), Path(absolute))
    return list(found.values())


def _real(path: str, real_folders: dict[str, str]) -> str:
    """Return what `os.path.realpath` returns, following the links of each folder only once."""
    if os.path.islink(path):  # noqa: PTH114
        return os.path.realpath(path)
    folder, name = os.path.split(path)
    if folder not in real_folders:
        real_folders[folder] = os.path.realpath(folder)
    return os.path.join(real_folders[folder], name)  # noqa: PTH118


def _expand(argument: str) -> Iterator[Path]:
    path = Path(argument).expanduser()
    if is_url(argument):
        yield from _some(object_stores.find(argument, VIDEO_SUFFIXES), argument, "nothing is there")
    elif argument.startswith("@"):
        yield from _listed(Path(argument[1:]).expanduser())
    elif path.is_dir():
        yield from _some(_in_folder(path), argument, "the folder holds no video file")
    elif os.path.lexists(path):
        yield path
    elif glob.has_magic(argument):
        matches = (Path(name) for name in sorted(glob.glob(str(path), recursive=True)))  # noqa: PTH207
        yield from _some(_files(matches), argument, "no file matches it")
    else:
        raise ConfigError(f"{argument}: no such file or folder", "check how it is written")


def _some(paths: Iterable[Path], argument: str, problem: str) -> list[Path]:
    if found := list(paths):
        return found
    suffixes = " ".join(sorted(VIDEO_SUFFIXES))
    raise ConfigError(
        f"{argument}: {problem}", f"name files, or a folder with files that end in {suffixes}"
    )


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from _in_folder(path)
        else:
            yield path


def _in_folder(folder: Path) -> Iterator[Path]:
    """Yield the videos under ``folder``; links are followed, a folder is visited once."""
    visited: set[tuple[int, int]] = set()
    # Not a test for files: a broken link or a pipe that looks like a video is to become a
    # failure with a reason, not to pass unseen.
    closed: list[Path] = []
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_noting(closed)):
        here = os.stat(parent)  # noqa: PTH116
        if (here.st_dev, here.st_ino) in visited:
            folders.clear()
            continue
        visited.add((here.st_dev, here.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in VIDEO_SUFFIXES:
                yield Path(parent, name)
    yield from closed


def _noting(closed: list[Path]) -> Callable[[OSError], None]:
    """Return what is to be done with a folder that cannot be searched: it becomes a failure."""

    def note(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # gone meanwhile: nothing is missed in it
            closed.append(Path(error.filename))

    return note


def _listed(path: Path) -> list[Path]:
    try:
        # surrogateescape: a path is bytes, and need not be text.
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise ConfigError(f"@{path}: {error.strerror}", "name a text file of paths") from error
    lines = [line for line in text.split("\n") if line.strip() and not line.startswith("#")]
    return _some(_entries(lines, path.parent), f"@{path}", "the list names no file")


def _entries(lines: Iterable[str], folder: Path) -> Iterator[Path]:
    for line in lines:
        entry = line.rstrip("\r")
        if not is_url(entry):
            yield from _files([folder / Path(entry).expanduser()])
        elif entry.endswith("/") or glob.has_magic(entry):
            yield from object_stores.find(entry, VIDEO_SUFFIXES)
        else:
            object_stores.forget(path := path_of_url(entry))
            yield path


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


FileState = tuple[Path, int, int, int]
"""A file as it is now: one that grew or was replaced is another."""


def state_of(path: Path) -> FileState:
    """Return what tells a file that can be read from all others, and from what it will become.

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


Seen = tuple[int, int]
"""Size and time of change of a file, in bytes and ns, when its digest was taken."""


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
    """A file whose reading ends once nobody waits for it."""

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
