"""Feature files that no video needs any more, and deleting them."""

from __future__ import annotations

import logging
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.database import CatalogFile
from cogcache.catalog.rows import ClipRow, names_url, text_to_file
from cogcache.catalog.upkeep.forgotten import expire
from cogcache.catalog.upkeep.leftovers import remove_features, removing, tidy
from cogcache.errors import CatalogError, VideoError
from cogcache.store import FeatureStore
from cogcache.system import CachePaths, ObjectUrl, RemoteError, facts
from cogcache.video import file_digest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Unused:
    """Features of a video that no file holds any more."""

    feature_key: str
    video: str
    start_s: float
    end_s: float | None
    size_bytes: int
    removed: bool = False
    offset_s: float = 0.0
    """The time that a player showed at the video's first frame."""


def collect(cache: Path, *, remove: bool = False) -> list[Unused]:
    """List features that no current video refers to.

    A video is current while one of the files that were seen to hold it still does; files that
    have changed are read. A disk that is not mounted makes its videos look gone.

    Args:
        cache: folder of the cache.
        remove: delete them for good. Their captions stay; captions that were deleted more than
            thirty days ago are gone for good.

    Raises:
        CacheError: the folder is no cache.
    """
    store = FeatureStore.open(cache)
    if remove:
        tidy(store)
    with Catalog(CachePaths(cache).catalog) as catalog:
        current = _current_digests(catalog)
        rows = {row["feature_key"]: row for row in catalog.clips.rows()}
        gone = {key: row for key, row in rows.items() if row["video_digest"] not in current}
        offsets_s = catalog.files.offsets_s({row["video_digest"] for row in gone.values()})
        unused = [
            _unused(row, offsets_s.get(row["video_digest"], 0.0), remove)
            for row in sorted(gone.values(), key=lambda row: row["video"])
        ]
    if remove:
        keys = [each.feature_key for each in unused]
        with removing(store, keys):
            remove_features(store, keys)
        with suppress(CatalogError):  # there may be no room for that, and it can wait
            expire(CachePaths(cache).catalog)
    return unused


def _unused(row: ClipRow, offset_s: float, removed: bool) -> Unused:
    span = row["start_s"], row["end_s"]
    return Unused(
        row["feature_key"], row["video"], *span, row["size_bytes"], removed, offset_s=offset_s
    )


def _current_digests(catalog: Catalog) -> set[str]:
    """Return the digests of videos that some file still holds."""
    current = set()
    with closing(CatalogFile(catalog.path)) as file:
        rows = file.query(
            "SELECT path, digest FROM whole_files UNION SELECT path, digest FROM whole_videos"
        )
    for path, digest in rows:
        if names_url(path):
            # Nothing is fetched for this: what is there is taken to be what it was.
            current |= set() if _is_gone(ObjectUrl(path)) else {digest}
            continue
        try:
            current.add(_digest(catalog, text_to_file(path)))
        except (OSError, VideoError) as error:
            logger.info("%s: %s", path, error)
    return current


def _digest(catalog: Catalog, path: Path) -> str:
    try:
        return catalog.files.digest_of(path)
    except CatalogError:  # there is no room to remember it
        return file_digest(path)


def _is_gone(video: ObjectUrl) -> bool:
    """Say whether a store says that it does not have an object; no answer is none."""
    try:
        facts(video, anew=True)
    except RemoteError as error:
        logger.warning("%s: %s", video, error)
        return error.reason == "missing"
    return False
