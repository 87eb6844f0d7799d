"""Turns what a user names into video files: folders, globs, lists, URLs."""

from __future__ import annotations

import codecs
import glob
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from cogcache.errors import ConfigError
from cogcache.system import Location, ObjectUrl, is_url, object_stores, refuse_secrets

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    {
        ".3g2", ".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4",
        ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
    }
)  # fmt: skip
"""What makes a file in a folder a video; a file that is named itself is always taken."""

_MARKS: Final = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins as the mark of UTF-16 does
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""What a text begins with that says how it is encoded."""


LIST_SUFFIXES = (".txt", ".lst", ".list")
"""Of files that are more likely lists of videos than videos."""


def find_videos(arguments: Sequence[str]) -> list[Location]:
    """Return the files that ``arguments`` stand for, absolute, each file once.

    Args:
        arguments: files; folders, searched with all their subfolders in order of names, hidden
            ones left out; globs; URLs of objects, prefixes and patterns; and ``@list.txt``, which
            holds a path or URL a line, paths relative to the list's own folder, where empty lines
            and those that begin with ``#`` are passed over. A list may be in UTF-8, with or
            without a mark at its begin, in UTF-16 or UTF-32, or separated by NUL as
            ``find -print0`` writes it. ``~`` is a home folder unless a file has such a name.

    Raises:
        ConfigError: an argument stands for nothing, or is empty.
    """
    found: dict[str, Location] = {}
    real_folders: dict[str, str] = {}
    for argument in arguments:
        for path in _expand(argument):
            if isinstance(path, ObjectUrl):
                found.setdefault(path.url, path)
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


def check_named(argument: str) -> None:
    """Refuse an argument that names nothing: as a path, an empty text is the working folder.

    Raises:
        ConfigError: it is empty, or holds a NUL, which no path does.
    """
    if not argument or argument == "@":
        hint = "name a file or a folder; a variable that is not set may have left it empty"
        raise ConfigError("an argument is empty" if not argument else "@ names no list", hint)
    if "\0" in argument:
        raise ConfigError(f"{argument!r} holds a NUL, which no path does", "name a file")


def from_home(name: str, folder: Path = Path()) -> Path:
    """Return a path in which ``~`` stands for a home folder, unless a file has such a name."""
    path = folder / name
    if not name.startswith("~") or os.path.lexists(path):
        return path
    try:
        return Path(name).expanduser()
    except RuntimeError:  # there is no such user
        return path


def _expand(argument: str) -> Iterator[Location]:
    check_named(argument)
    path = from_home(argument)
    is_list = argument.startswith("@") and (
        not os.path.lexists(argument) or os.path.lexists(from_home(argument[1:]))
    )
    if is_url(argument):
        yield from _some(object_stores.find(argument, VIDEO_SUFFIXES), argument, "nothing is there")
    elif is_list:
        yield from _listed(from_home(argument[1:]))
    elif _is_folder(path):
        yield from _some(_in_folder(path), argument, "the folder holds no video file")
    elif path.suffix.lower() in LIST_SUFFIXES and path.is_file():
        raise ConfigError(f"{argument} is no video", f"did you mean @{argument}, a list of them?")
    elif os.path.lexists(path):
        yield path
    elif glob.has_magic(argument):
        matches = (Path(name) for name in sorted(glob.glob(str(path), recursive=True)))  # noqa: PTH207
        yield from _some(_files(matches), argument, "no file matches it")
    else:
        raise ConfigError(f"{argument}: no such file or folder", "check how it is written")


def _is_folder(path: Path) -> bool:
    # Unlike `Path.is_dir`, it says no of what cannot be looked at: that becomes a failure.
    return os.path.isdir(path)  # noqa: PTH112


def _some(paths: Iterable[Location], argument: str, problem: str) -> list[Location]:
    if found := list(paths):
        return found
    suffixes = " ".join(sorted(VIDEO_SUFFIXES))
    raise ConfigError(
        f"{argument}: {problem}", f"name files, or a folder with files that end in {suffixes}"
    )


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if _is_folder(path):
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


def _listed(path: Path) -> list[Location]:
    try:
        text = _text_of(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"@{path}: {error.strerror}", "name a text file of paths") from error
    except UnicodeDecodeError as error:
        problem = f"@{path} begins as {error.encoding.upper()} and is not: {error.reason}"
        raise ConfigError(problem, "save it as UTF-8") from error
    # `find -print0` ends names with NUL, as they may hold all else.
    separator = "\n" if "\n" in text else "\0"
    lines = [line.rstrip("\0") for line in text.split(separator)]
    named = [line for line in lines if line.strip() and not line.startswith("#")]
    return _some(_entries(named, path), f"@{path}", "the list names no file")


def _text_of(data: bytes) -> str:
    """Return the text of a list, its ends of lines as line feeds.

    Raises:
        UnicodeDecodeError: it is not in the encoding that its begin tells.
    """
    # surrogateescape: a path is bytes, and need not be text.
    encoding, errors = _encoding_of(data), "surrogateescape"
    text = data.decode(encoding, errors if encoding == "utf-8-sig" else "strict")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _encoding_of(data: bytes) -> str:
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            return encoding
    # Without a mark, UTF-16 shows in that every other byte of plain letters is NUL.
    even, odd = data[::2], data[1::2]
    if odd and not any(odd) and all(even):
        return "utf-16-le"
    return "utf-16-be" if even and not any(even) and all(odd) else "utf-8-sig"


def _entries(lines: Iterable[str], of: Path) -> Iterator[Location]:
    for entry in lines:
        if "\0" in entry:
            logger.warning("@%s: %r holds a NUL, which no path does", of, entry)
            # It names no file: as any such line, it becomes a failure, and the rest is done.
            yield of.parent / entry.replace("\0", "\\0")
        elif not is_url(entry):
            yield from _files([from_home(entry, of.parent)])
        elif entry.endswith("/") or object_stores.is_pattern(entry):
            yield from object_stores.find(entry, VIDEO_SUFFIXES)
        else:
            refuse_secrets(entry)  # it would be stored as a failure
            try:
                location = ObjectUrl.of(entry)
            except ConfigError as error:
                logger.warning("@%s: %s", of, error.problem)
                yield of.parent / entry
                continue
            object_stores.forget(location)
            yield location
