"""Which files hold a video's bytes now.

A caption belongs to the bytes that it was made of. The catalog remembers under which names these
bytes were seen, and names move: files are renamed, exchanged and replaced. So each name that is
to be shown is looked at: a file whose size, time and inode are as remembered holds what it held,
any other is digested again. What is not covered: files that no command has seen yet, such as a
renamed folder before the next `extract`; a file that is changed after it was looked at.
"""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Final, Literal, TypeAlias
from urllib.parse import quote_from_bytes

from tqdm import tqdm

from cogcache.catalog import (
    CatalogFile,
    FileFacts,
    Stat,
    names_url,
    path_to_text,
    text_to_file,
    text_to_path,
)
from cogcache.errors import CatalogError, VideoError
from cogcache.system import Location, ObjectUrl, RemoteError, facts
from cogcache.video import file_digest

logger = logging.getLogger(__name__)

Missing: TypeAlias = Literal["skip", "keep", "error"]
"""What to do with captions whose video no file holds."""

GONE: Final = "no file is there any more; if it was moved, run `cogcache extract` where it is now"
REPLACED: Final = "another video is there now; run `cogcache extract` on it"
UNKNOWN: Final = "nobody knows which bytes it was made of: its features were deleted before"
CHANGED_IN_STORE: Final = "the store has other bytes now; run `cogcache extract` on it"
_THREADS: Final = 16
"""A network file system answers slowly, and many questions at once."""
_AT_A_TIME: Final = 64
"""Files that one thread looks at in a row; so few are looked at without a thread."""


@dataclass(frozen=True, slots=True)
class Look:
    """How the names of videos are checked before they are shown."""

    missing: Missing = "skip"
    """Captions whose bytes no file holds are left out, kept without a wrong name, or an error."""
    check: bool = True
    """Whether files are looked at; else what is remembered is believed."""


class Holders:
    """The files that hold videos now; each file is looked at once in the life of one of these.

    Args:
        file: the catalog; digests that had to be taken again are remembered in it.
        check: whether to look at files; else what is remembered is believed.
        ask_stores: whether to ask object stores as well; else their objects count as unchanged.
    """

    def __init__(self, file: CatalogFile, *, check: bool = True, ask_stores: bool = False) -> None:
        self._file, self._check, self._ask_stores = file, check, ask_stores
        self._memory = FileFacts(file)
        self._names: dict[str, set[str]] = defaultdict(set)
        """By digest: names under which its bytes were seen."""
        self._asked: set[str] = set()
        """Digests whose names have been fetched from the catalog."""
        self._now: dict[str, str] = {}
        """By name: the digest of what is there now; "" for bytes that no video here has."""
        self._faults: dict[str, str] = {}
        """By name: why nothing is known to be there."""
        self._held: dict[str, set[str]] = defaultdict(set)
        """By digest: names that hold it now."""
        self._offsets_s: dict[str, float] = {}
        """By digest: the time that a player shows at the first frame, where it is not 0."""

    def look(self, videos: Iterable[tuple[str | None, str]]) -> None:
        """Look at the files of videos, all at once: one by one takes many times longer.

        Args:
            videos: digests, and a name under which each was seen; None: only the name is known.
        """
        digests = set()
        for digest, name in videos:
            if digest is not None:
                self._names[digest].add(name)
                digests.add(digest)
        wanted, new = frozenset(digests), digests - self._asked
        while new:
            self._asked |= new
            self._add_names(new)
            names = {name for digest in new for name in self._names[digest]}
            self._look_at(names)
            if all(self._held[digest] for digest in wanted):
                return
            # Names may have been exchanged: what took the place of a video that is not found has
            # a name of its own, under which the missing one may be; or the next one, in a ring.
            new = {self._now[name] for name in names if self._now.get(name)} - self._asked

    def look_in(self, folders: Iterable[Location]) -> None:
        """Look at all files in folders, or of these names, that the catalog knows."""
        for folder in folders:
            test, values = in_folder("path", folder, "folder")
            rows = self._file.query(f"SELECT path FROM whole_files WHERE {test}", values)
            self._look_at({row["path"] for row in rows})

    def names(self, digest: str | None) -> list[str]:
        """Return the names of the files that hold these bytes now, in order."""
        held = self._held[digest] if digest else ()
        return sorted(held) if len(held) > 1 else [*held]

    def holds(self, name: str, digest: str | None) -> bool:
        """Say whether a name that was looked at holds these bytes now."""
        return bool(digest) and self._now.get(name) == digest

    def offset_s(self, digest: str | None) -> float:
        """Return the time that a player shows at the first frame of a video that was looked at."""
        return self._offsets_s.get(digest or "", 0.0)

    def is_free(self, name: str) -> bool:
        """Say whether nothing is at a name, so that what was there may be called by it."""
        if name not in self._now and name not in self._faults:
            self._look_at({name})
        return self._faults.get(name) == GONE or not self._check

    def reason(self, digest: str | None, name: str) -> str:
        """Return why no file holds these bytes, to be told beside the name they were seen under."""
        if digest is None:
            return UNKNOWN
        if name in self._now:
            return REPLACED
        return self._faults.get(name, GONE)

    def _add_names(self, digests: Collection[str]) -> None:
        sql = """SELECT digest, path FROM whole_files
            WHERE digest IN (SELECT value FROM json_each(:some))
            UNION SELECT digest, path FROM whole_videos
            WHERE digest IN (SELECT value FROM json_each(:some))"""
        some = {"some": json.dumps([*digests])}
        for digest, path in self._file.query(sql, some):
            self._names[digest].add(path)
        late = """SELECT digest, offset_s FROM whole_videos
            WHERE offset_s > 0 AND digest IN (SELECT value FROM json_each(:some))"""
        self._offsets_s |= {row["digest"]: row["offset_s"] for row in self._file.query(late, some)}

    def _look_at(self, names: Collection[str]) -> None:
        new = [name for name in names if name not in self._now and name not in self._faults]
        believed = [name for name in new if not self._is_asked(name)]
        self._believe(believed)
        looked = [name for name in new if self._is_asked(name)]
        stats = _stats(looked)
        self._faults |= {name: stat for name, stat in stats.items() if isinstance(stat, str)}
        there = {name: stat for name, stat in stats.items() if not isinstance(stat, str)}
        known = self._memory.digests_by_name(there)
        known |= self._of_same_size({n: stat for n, stat in there.items() if stat.st_ino == ""})
        for name, digest in known.items():
            self._note(name, digest)
        self._read({name: stat for name, stat in there.items() if name not in known})

    def _of_same_size(self, unnamed: Mapping[str, Stat]) -> dict[str, str]:
        """Return the digests of what web servers give that name their bytes by nothing but size."""
        rows = self._file.select("files", among={"path": unnamed}) if unnamed else []
        same = (row for row in rows if row["size_bytes"] == unnamed[row["path"]].st_size)
        return {row["path"]: row["digest"] for row in same}

    def _is_asked(self, name: str) -> bool:
        return self._check and (self._ask_stores or not names_url(name))

    def _believe(self, names: Sequence[str]) -> None:
        """Take names to hold what they held when they were last seen."""
        rows = self._file.select("files", among={"path": names})
        known = {row["path"]: row["digest"] for row in rows}
        last = {name: digest for digest, some in self._names.items() for name in some}
        for name in names:
            self._note(name, known.get(name) or last.get(name, ""))

    def _read(self, changed: Mapping[str, Stat]) -> None:
        """Find out what files hold that are not as they were."""
        found: dict[str, str] = {}
        sizes = self._sizes if changed else set()
        # Of a size that no video of the catalog has, a file can be none of them.
        to_read = [name for name, stat in changed.items() if {stat.st_size, 0} & sizes]
        # A bar without anything to show takes as long as a listing of a small cache.
        bar = partial(tqdm, desc="reading changed videos", unit="file", disable=None, delay=2)
        for name in bar(to_read) if to_read else ():
            try:
                found[name] = _digest(text_to_path(name))
            except VideoError as error:
                self._faults[name] = error.problem
        for name in changed.keys() - self._faults.keys():
            self._note(name, found.get(name, ""))
        try:
            self._memory.remember_digests(
                (text_to_path(name), changed[name], digest) for name, digest in found.items()
            )
        except CatalogError as error:  # it may be read only: then they are read again next time
            logger.info("%s", error)

    @cached_property
    def _sizes(self) -> set[int]:
        """The sizes of all videos; 0 stands for one whose size nobody noted."""
        rows = self._file.query(
            "SELECT size_bytes FROM whole_files UNION SELECT size_bytes FROM whole_videos"
        )
        return {row["size_bytes"] for row in rows}

    def _note(self, name: str, digest: str) -> None:
        self._now[name] = digest
        self._held[digest].add(name)


def _stat(name: str) -> Stat | str:
    """Return what a file system or a store says of a file, or why nothing is known of it."""
    try:
        if names_url(name):
            return facts(ObjectUrl(name), anew=True)
        # A path object a file would take longer than the look at it.
        return os.stat(text_to_file(name) if name.startswith("file:") else name)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a NUL is in no name
        return GONE
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except RemoteError as error:
        return GONE if error.reason == "missing" else f"the store does not tell: {error}"


def _stats(names: Sequence[str]) -> dict[str, Stat | str]:
    some = [names[first : first + _AT_A_TIME] for first in range(0, len(names), _AT_A_TIME)]
    if len(some) < 2:
        return {name: _stat(name) for name in names}
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda each: [_stat(name) for name in each], some)
        return dict(zip(names, chain.from_iterable(found), strict=True))


def _digest(path: Location) -> str:
    """Return the digest of a file that is not as it was.

    Raises:
        VideoError: it cannot be read, or lies in a store and would have to be fetched.
    """
    if isinstance(path, ObjectUrl):
        raise VideoError("changing", CHANGED_IN_STORE)
    return file_digest(path)


def in_folder(column: str, folder: Location, label: str) -> tuple[str, dict[str, str]]:
    """Return an SQL test of whether a column names a folder or what lies in it, and its values.

    Args:
        column: holds paths as `path_to_text` writes them.
        folder: the folder, or one file.
        label: begins the names of the values, to tell several tests apart.
    """
    tests: list[str] = []
    values: dict[str, str] = {}
    for way, text in enumerate(sorted(_names_of(folder))):
        name, inside = f"{label}_{way}", text.rstrip("/") + "/"
        values |= {name: text, f"{name}_from": inside, f"{name}_to": inside[:-1] + "0"}
        tests.append(f"{column} = :{name}")
        tests.append(f"({column} >= :{name}_from AND {column} < :{name}_to)")
    return f"({' OR '.join(tests)})", values


def folder_names(folders: Iterable[Location]) -> list[str]:
    """Return folders, or files, as the catalog would name them."""
    return [text for folder in folders for text in sorted(_names_of(folder))]


def is_in(name: str, folders: Sequence[str]) -> bool:
    """Say whether a name is one of `folder_names`, or lies in one; in no folder: in all."""
    inside = (name == f or name.startswith(f"{f.rstrip('/')}/") for f in folders)
    return not folders or any(inside)


def _names_of(folder: Location) -> set[str]:
    if isinstance(folder, ObjectUrl):
        return {folder.url}
    whole = Path(os.path.abspath(folder))  # noqa: PTH100  # resolve() would follow links
    # A video whose own name is odd has its whole path written in the other way.
    return {path_to_text(whole), "file:" + quote_from_bytes(os.fsencode(whole))}
