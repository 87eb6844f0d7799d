"""The digests of the videos of a run: remembered while a file has not changed, else read now."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tqdm import tqdm

from cogcache.catalog import Catalog, path_to_text
from cogcache.errors import ClipError, VideoError
from cogcache.inputs import file_digest, unreadable
from cogcache.shards import Shard

_THREADS: Final = 4
Unread = list[tuple[Path, ClipError]]


def read_digests(
    videos: Sequence[Path], catalog: Catalog, shard: Shard
) -> tuple[dict[Path, str], Unread]:
    """Return the digest of each video of the shard, in the order given, and what has none.

    Videos that another shard has are read as well: that they are its is decided by their digest.
    """
    unread: Unread = []
    stats = {}
    for video in videos:
        try:
            stats[video] = video.stat()
        except FileNotFoundError:
            gone = VideoError("missing", f"{video}: no such file", "it may have been moved")
            unread.append((video, gone))
        except OSError as error:
            unread.append((video, unreadable(video, error)))
    known = catalog.digests_of(stats)
    found, bad = _read([video for video in stats if video not in known])
    catalog.remember_digests((video, stats[video], found[video]) for video in found)
    catalog.forget_gone(set(found.values()))
    digests = known | found
    catalog.clear_void_failures(
        *([path_to_text(video) for video in some] for some in (digests, found))
    )
    return (
        {v: digests[v] for v in videos if v in digests and shard.has(digests[v])},
        [(v, error) for v, error in unread + bad if shard.has_name(path_to_text(v))],
    )


def _read(videos: Sequence[Path]) -> tuple[dict[Path, str], Unread]:
    found, bad = {}, []
    with ThreadPoolExecutor(_THREADS) as pool:
        results = zip(videos, pool.map(_try, videos), strict=True)
        for video, result in tqdm(
            results, total=len(videos), desc="new videos", unit="video", disable=None
        ):
            if isinstance(result, ClipError):
                bad.append((video, result))
            else:
                found[video] = result
    return found, bad


def _try(video: Path) -> str | ClipError:
    try:
        return file_digest(video)
    except VideoError as error:
        return error
