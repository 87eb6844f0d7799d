"""A folder of bounded size on this machine's disk, for videos fetched from object stores.

The least recently used file is deleted first. A reader holds its own hard link, so that its file
stays until it has finished. What is not covered: files that readers hold come on top of the bound.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from stat import S_IMODE, S_ISDIR
from threading import Event
from typing import Any, Final, Generic, TypeVar

from cogcache.errors import MachineError, VideoError
from cogcache.system.object_stores import as_video_errors, facts, fetch
from cogcache.system.scratch import remove_dead, temporary_name, temporary_place
from cogcache.system.urls import Location, ObjectUrl
from cogcache.units import GIB, format_bytes

Result = TypeVar("Result")
_NAMES: Final = 32
"""Digits of the digest of a URL that begin the name of its file."""


@dataclass(frozen=True, slots=True)
class Spool:
    """The folder, and how many bytes it may hold."""

    folder: Path
    most_bytes: int

    @classmethod
    def of_this_machine(cls, most_gib: float) -> Spool:
        """Return the spool of this user; ``TMPDIR`` says on which disk."""
        user = os.getuid() if hasattr(os, "getuid") else "user"
        return cls(temporary_place() / f"cogcache-spool-{user}", int(most_gib * GIB))

    def digest(self, video: ObjectUrl, ending: Event | None = None) -> str:
        """Return the SHA-256 of an object's bytes, which are fetched and kept for a while.

        Args:
            video: the object.
            ending: once it is set, nothing more is fetched.

        Raises:
            VideoError: it cannot be had, or is larger than the spool.
        """
        return self._fetch(video, ending).stem.partition("-")[2]

    @contextmanager
    def local(self, video: ObjectUrl, digest: str = "") -> Iterator[Path]:
        """Yield a file of this machine with the bytes of an object.

        Args:
            video: the object.
            digest: SHA-256 that its bytes had; "" takes what is there now.

        Raises:
            VideoError: it cannot be had, or its bytes are others (``changing``).
        """
        held = self._held(video, digest)
        try:
            _prove(held, video)
            yield held.path
        finally:
            held.path.unlink(missing_ok=True)

    def _held(self, video: ObjectUrl, digest: str) -> _Held:
        self._make()
        pattern = f"{_begin(video)}-{digest or '*'}{video.suffix}"
        for path in self.folder.glob(pattern):
            with suppress(FileNotFoundError):
                return _link(path)
        path = self._fetch(video)
        if digest and path.stem.partition("-")[2] != digest:
            problem = f"{video} is not what it was when its digest was taken"
            raise VideoError("changing", problem, "run again when it is complete")
        return _link(path)

    def _fetch(self, video: ObjectUrl, ending: Event | None = None) -> Path:
        self._make()
        with as_video_errors(video):
            size_bytes = facts(video).st_size
            if not size_bytes:
                raise VideoError("empty_file", f"{video} has no bytes", "put it anew")
            self._make_room(video, max(0, size_bytes))
            partial = temporary_name(self.folder / f"fetching{video.suffix}")
            try:
                with partial.open("xb") as file:
                    digest = fetch(video, file, ending)
                path = self.folder / f"{_begin(video)}-{digest}{video.suffix}"
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        return path

    def _make(self) -> None:
        """Make the folder, or refuse one that another user has made or can write to.

        Its name can be guessed: who made it first could swap a video's bytes for others after
        their digest was taken.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            self.folder.mkdir(mode=0o700)
        about = self.folder.lstat()
        own = not hasattr(os, "getuid") or (
            about.st_uid == os.getuid() and not S_IMODE(about.st_mode) & 0o022
        )
        if not S_ISDIR(about.st_mode) or not own:
            problem = f"{self.folder} is no folder of this user alone"
            raise MachineError(problem, "remove it, or set TMPDIR to a folder of your own")

    def _make_room(self, video: ObjectUrl, size_bytes: int) -> None:
        if size_bytes > self.most_bytes:
            size, most = format_bytes(size_bytes), format_bytes(self.most_bytes)
            problem = f"{video} has {size}; the spool may hold {most}"
            raise VideoError("too_large", problem, "raise --spool-gib")
        remove_dead([self.folder])
        files = [(path.stat(), path) for path in self.folder.glob("[0-9a-f]*-*") if path.exists()]
        free = self.most_bytes - sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda each: max(each[0].st_mtime, each[0].st_atime)):
            if free >= size_bytes:
                return
            path.unlink(missing_ok=True)
            free += stat.st_size


def _begin(video: ObjectUrl) -> str:
    return hashlib.sha256(video.url.encode(errors="surrogateescape")).hexdigest()[:_NAMES]


@dataclass(frozen=True, slots=True)
class _Held:
    """A reader's own link to a file of the spool."""

    path: Path
    kept: Path
    """The file's name in the spool, which says what its bytes must be."""


def _link(path: Path) -> _Held:
    held = temporary_name(path)
    os.link(path, held)
    # The time of its bytes stays: it tells whether they are those that were proven.
    os.utime(held, ns=(time.time_ns(), held.stat().st_mtime_ns))
    return _Held(held, path)


_proven: dict[tuple[int, int, int, int], str] = {}
"""What this process has digested: by device, inode, size and time of the bytes."""


def _prove(held: _Held, video: ObjectUrl) -> None:
    """Digest the file that is about to be decoded, once a process: another may lie there by now.

    Raises:
        VideoError: its bytes are not those that were fetched; it is removed.
    """
    with held.path.open("rb") as file:
        about = os.fstat(file.fileno())
        state = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns)
        if state not in _proven:
            _proven[state] = hashlib.file_digest(file, "sha256").hexdigest()
    if _proven[state] != held.kept.stem.partition("-")[2]:
        held.kept.unlink(missing_ok=True)
        problem = f"{video} is not what was fetched: its file was changed in {held.kept}"
        raise VideoError("changing", problem, "see who writes there, and run again")


@dataclass(frozen=True)
class Fetching(Generic[Result]):
    """A task of a worker whose video may lie in an object store.

    Args:
        task: takes a path, or a dataclass whose ``video`` is one.
        spool: where to fetch it to. A ``digest`` of the dataclass is what its bytes must have.
    """

    task: Callable[[Any], Result]
    spool: Spool

    def __call__(self, job: Any) -> Result:
        """Do the task with a file of this machine."""
        is_bare = isinstance(job, Path | ObjectUrl)
        video: Location = job if is_bare else job.video
        if isinstance(video, Path):
            return self.task(job)
        with self.spool.local(video, getattr(job, "digest", "")) as path:
            local = path if is_bare else replace(job, video=path)
            try:
                return self.task(local)
            except VideoError as error:
                problem = error.problem.replace(str(path), video.url)
                raise VideoError(error.reason, problem, error.hint) from error
