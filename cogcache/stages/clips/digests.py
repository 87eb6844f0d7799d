"""The digests of the videos of a run: remembered while a file has not changed, else read.

What has to be read is read while clips are made: a run need not have read all videos to begin.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Self, TypeVar

from cogcache.catalog import Catalog, Stat, path_to_text
from cogcache.errors import ClipError, MachineError, VideoError
from cogcache.settings import WorkShare
from cogcache.system import DiskWatch, Location, ObjectUrl, Spool, as_video_errors, facts
from cogcache.video import Seen, file_digest, unreadable

_THREADS: Final = 4
_READ_AHEAD: Final = 16
"""Videos that are read in advance at most."""
_FORGET_EVERY_S: Final = 5.0
"""It goes through all files that the catalog knows."""
_ASKING_THREADS: Final = 16
"""A store answers slowly, and many questions at once."""
Result = TypeVar("Result")
Unread = list[tuple[Location, ClipError]]


@dataclass(frozen=True, slots=True)
class Looked:
    """What is known of videos before any of them is read."""

    digests: dict[Location, str]
    """Of those of this run's share that have not changed since they were read."""
    unread: dict[Location, Stat]
    """Those whose bytes have to be read; their digests tell whether they are this run's."""
    failures: Unread
    """Those that cannot even be looked at."""
    seen: dict[Location, Seen]
    """What each file is now."""


def look_up(videos: Sequence[Location], catalog: Catalog, share: WorkShare) -> Looked:
    """Find out which videos are known, and which have to be read.

    Raises:
        MachineError: the disk is gone that they are on.
    """
    asking = _ASKING_THREADS if any(isinstance(video, ObjectUrl) for video in videos) else 1
    stats: dict[Location, Stat]
    stats, failures = _sort(videos, _each(_stat, videos, asking))
    known = catalog.files.digests_of(stats)
    catalog.failures.clear_void({path_to_text(v): digest for v, digest in known.items()}, ())
    return Looked(
        {v: known[v] for v in videos if v in known and share.has(known[v])},
        {video: stat for video, stat in stats.items() if video not in known},
        [(v, error) for v, error in failures if share.has_name(path_to_text(v))],
        {v: (stat.st_size, stat.st_mtime_ns) for v, stat in stats.items() if isinstance(v, Path)},
    )


class DigestReader(AbstractContextManager["DigestReader"]):
    """Reads new videos in threads, in the order given, a little ahead of those that are taken.

    Digests are in the catalog before they are handed out. Objects of stores are fetched into the
    spool, where they lie when they are decoded.

    Args:
        unread: videos to read, and what each file is.
        catalog: remembers digests; is spoken to in the caller's thread only.
        share: what of all videos is this run's.
        spool: for objects of stores.
    """

    def __init__(
        self, unread: Mapping[Location, Stat], catalog: Catalog, share: WorkShare, spool: Spool
    ) -> None:
        self._stats, self._catalog, self._share = unread, catalog, share
        self._waiting = deque(unread)
        self._reading: deque[tuple[Location, Future[str | ClipError]]] = deque()
        self._ending = threading.Event()
        self._task = partial(_tried, partial(_digest, spool, self._ending))
        self._new: set[str] = set()
        self._forgot_s = time.monotonic()

    @property
    def num_left(self) -> int:
        """Videos that are not taken yet."""
        return len(self._waiting) + len(self._reading)

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(_THREADS)
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._pool.shutdown(cancel_futures=True)
        self._forget_moved()

    def take(self, timeout_s: float) -> list[tuple[Location, str | ClipError]]:
        """Return what has been read, with its digest or why there is none, and read on.

        What is of another run's share is left out.

        Args:
            timeout_s: how long to wait for the first.

        Raises:
            MachineError: nothing more can be read, and that is no video's fault.
        """
        self._read_on()
        if self._reading:
            wait([self._reading[0][1]], timeout_s)
        done = []
        while self._reading and self._reading[0][1].done():
            video, future = self._reading.popleft()
            done.append((video, future.result()))
        self._remember({v: found for v, found in done if not isinstance(found, ClipError)})
        return [(video, found) for video, found in done if self._is_ours(video, found)]

    def _read_on(self) -> None:
        while self._waiting and len(self._reading) < _READ_AHEAD:
            video = self._waiting.popleft()
            self._reading.append((video, self._pool.submit(self._task, video)))

    def _is_ours(self, video: Location, found: str | ClipError) -> bool:
        if isinstance(found, ClipError):
            return self._share.has_name(path_to_text(video))
        return self._share.has(found)

    def _remember(self, digests: Mapping[Location, str]) -> None:
        if not digests:
            return
        self._catalog.files.remember_digests(
            (v, self._stats[v], each) for v, each in digests.items()
        )
        texts = {path_to_text(video): digest for video, digest in digests.items()}
        self._catalog.failures.clear_void(texts, texts.keys())
        self._new |= {*digests.values()}
        if time.monotonic() - self._forgot_s > _FORGET_EVERY_S:
            self._forget_moved()

    def _forget_moved(self) -> None:
        """Forget where files were that have been found elsewhere."""
        self._catalog.files.forget_gone(self._new)
        self._new, self._forgot_s = set(), time.monotonic()


def _each(
    task: Callable[[Location], Result], videos: Sequence[Location], threads: int
) -> Iterator[Result | ClipError]:
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(partial(_tried, task), videos)


def _tried(task: Callable[[Location], Result], video: Location) -> Result | ClipError:
    try:
        return task(video)
    except VideoError as error:
        return error


def _sort(
    videos: Sequence[Location], results: Iterable[Result | ClipError]
) -> tuple[dict[Location, Result], Unread]:
    """Tell those that can be read from those that cannot.

    Raises:
        MachineError: the disk is gone that they are on.
    """
    good: dict[Location, Result] = {}
    bad: Unread = []
    disk = DiskWatch()
    for video, result in zip(videos, results, strict=True):
        if not isinstance(result, ClipError):
            bad += disk.proven()
            good[video] = result
        elif not disk.holds(video, video, result):
            bad.append((video, result))
        elif disk.is_gone:
            raise MachineError(disk.told(), "no video is listed as failed for it")
    return good, bad + disk.proven()


def _stat(video: Location) -> Stat:
    if isinstance(video, ObjectUrl):
        with as_video_errors(video):
            return facts(video)
    try:
        return video.stat()
    except FileNotFoundError as error:
        problem = f"{video}: no such file"
        raise VideoError("missing", problem, "it may have been moved") from error
    except OSError as error:
        raise unreadable(video, error) from error


def _digest(spool: Spool, ending: threading.Event, video: Location) -> str:
    return (
        spool.digest(video, ending) if isinstance(video, ObjectUrl) else file_digest(video, ending)
    )
