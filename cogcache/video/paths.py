"""From what a user names to video files: folders, globs, lists; and the digest of a file."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from cogcache.errors import ConfigError
from cogcache.system import is_url, object_stores, path_of_url

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
