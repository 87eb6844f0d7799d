"""The digests of the videos of a run: remembered while a file has not changed, else read now."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from tqdm import tqdm

from cogcache.catalog import Catalog, path_to_text
from cogcache.errors import ClipError, MachineError, VideoError
from cogcache.file_memory import Stat
from cogcache.inputs import Seen, file_digest, unreadable
from cogcache.machine_faults import DiskWatch
from cogcache.remote import as_video_errors, facts
from cogcache.shards import Shard
from cogcache.spool import Spool
from cogcache.urls import is_url

_THREADS: Final = 4
_REMEMBER_EVERY_S: Final = 5.0
_ASKING_THREADS: Final = 16
"""A store answers slowly, and many questions at once."""
Result = TypeVar("Result")
Unread = list[tuple[Path, ClipError]]


def read_digests(
    videos: Sequence[Path], catalog: Catalog, shard: Shard, spool: Spool
) -> tuple[dict[Path, str], Unread, dict[Path, Seen]]:
    """Return the digest of each video of the shard, in the order given, and what has none.

    The last of the three says what each file was when its digest was taken.

    Videos that another shard has are read as well: that they are its is decided by their digest.
    Objects of stores are fetched into the spool for it.
    """
    asking = _ASKING_THREADS if any(map(is_url, videos)) else 1
    stats: dict[Path, Stat]
    stats, unread = _sort(videos, _each(_stat, videos, asking))
    known = catalog.digests_of(stats)
    unknown = [video for video in stats if video not in known]
    results = _each(partial(_digest, spool), unknown, _THREADS)
    bar = tqdm(results, total=len(unknown), desc="new videos", unit="video", disable=None)
    with closing(remembered(unknown, bar, stats, catalog)) as fresh:
        found, bad = _sort(unknown, fresh)
    catalog.forget_gone(set(found.values()))
    digests = known | found
    catalog.clear_void_failures(
        *([path_to_text(video) for video in some] for some in (digests, found))
    )
    return (
        {v: digests[v] for v in videos if v in digests and shard.has(digests[v])},
        [(v, error) for v, error in unread + bad if shard.has_name(path_to_text(v))],
        {v: (stat.st_size, stat.st_mtime_ns) for v, stat in stats.items() if not is_url(v)},
    )


def _each(
    task: Callable[[Path], Result], videos: Sequence[Path], threads: int
) -> Iterator[Result | ClipError]:
    def tried(video: Path) -> Result | ClipError:
        try:
            return task(video)
        except VideoError as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(tried, videos)


def remembered(
    videos: Sequence[Path],
    digests: Iterable[str | ClipError],
    stats: Mapping[Path, Stat],
    catalog: Catalog,
) -> Generator[str | ClipError, None, None]:
    """Pass digests on, and remember them as they come: to read a night's videos takes an hour."""
    fresh: list[tuple[Path, Stat, str]] = []
    remembered_s = time.monotonic()
    try:
        for video, found in zip(videos, digests, strict=True):
            if not isinstance(found, ClipError):
                fresh.append((video, stats[video], found))
            if time.monotonic() - remembered_s > _REMEMBER_EVERY_S:
                catalog.remember_digests(fresh)
                fresh, remembered_s = [], time.monotonic()
            yield found
    finally:
        catalog.remember_digests(fresh)


def _sort(
    videos: Sequence[Path], results: Iterable[Result | ClipError]
) -> tuple[dict[Path, Result], Unread]:
    """Tell those that can be read from those that cannot.

    Raises:
        MachineError: the disk is gone that they are on.
    """
    good: dict[Path, Result] = {}
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


def _stat(video: Path) -> Stat:
    if is_url(video):
        with as_video_errors(video):
            return facts(video)
    try:
        return video.stat()
    except FileNotFoundError as error:
        problem = f"{video}: no such file"
        raise VideoError("missing", problem, "it may have been moved") from error
    except OSError as error:
        raise unreadable(video, error) from error


def _digest(spool: Spool, video: Path) -> str:
    return spool.digest(video) if is_url(video) else file_digest(video)
