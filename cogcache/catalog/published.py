"""A catalog of one machine's own, beside a folder of features that several machines share.

SQLite needs a disk of the machine it runs on. So each machine keeps a catalog there, and leaves a
copy in the shared folder, whole or not at all: every few minutes, and when a run ends.
`cogcache merge` puts the copies together. What is not covered: captions made since the last copy
when a machine is lost; they are made again.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

from cogcache.catalog.backup import back_up
from cogcache.catalog.catalog import Catalog
from cogcache.catalog.merge_rows import OWN, keep_shard, merge_rows, snapshot
from cogcache.errors import CogcacheError
from cogcache.settings import WorkShare
from cogcache.system import CachePaths, machine, make_folder, seal, temporary_name

logger = logging.getLogger(__name__)

PUBLISH_EVERY_S: Final = 300.0
_NAME: Final = f"{OWN}name"


@contextmanager
def open_catalog(cache: Path, own: Path | None, shard: str | None) -> Iterator[Catalog]:
    """Open the catalog that a run writes to.

    Args:
        cache: folder of the cache.
        own: catalog on a disk of this machine; None: that of the cache.
        shard: the run's share of the videos.

    Raises:
        CatalogError: it cannot be used.
        CacheError: its copy cannot be written.
    """
    if own is None:
        with Catalog(CachePaths(cache).catalog) as catalog:
            yield catalog
        back_up(catalog.path)  # not after an error: then what was made last may be wrong
        return
    if not own.exists():
        _begin(own, cache, WorkShare.parse(shard))
    with Catalog(own) as catalog, _publishing(own, cache, _name(catalog, WorkShare.parse(shard))):
        yield catalog


def published(cache: Path) -> list[Path]:
    """Return the copies of machines' own catalogs, by name."""
    return sorted(CachePaths(cache).published.glob("*.sqlite"))


def publish(own: Path, cache: Path, name: str) -> Path:
    """Leave a copy of a catalog in the shared folder, in place of an earlier one of this name.

    Raises:
        CacheError: the folder cannot be written.
        CatalogError: the catalog cannot be read.
    """
    target = CachePaths(cache).published / f"{name}.sqlite"
    with snapshot(own) as copy:
        seal(target, copy.read_bytes())
    return target


def _begin(own: Path, cache: Path, shard: WorkShare) -> None:
    """Make a catalog of what is known of the shard already, so that nothing is done again."""
    make_folder(own.parent)
    fresh = temporary_name(own)
    Catalog(fresh).close()
    for path in published(cache):
        if path.stem == "merged" or path.name.startswith(_prefix(shard)):
            with snapshot(path, Counter()) as copy:
                keep_shard(copy, shard)
                with Catalog(copy) as catalog:
                    keys = {clip["feature_key"] for clip in catalog.clips.rows()}
                merge_rows(copy, fresh, keys)
    fresh.replace(own)


def _prefix(shard: WorkShare) -> str:
    return f"{shard.number}-of-{shard.of}."


def _name(catalog: Catalog, shard: WorkShare) -> str:
    known = catalog.files.recall(_NAME)
    if known is None:
        known = {"name": f"{machine()}.{uuid4().hex[:8]}"}
        catalog.files.remember(_NAME, known)
    return f"{_prefix(shard)}{known['name']}"


@contextmanager
def _publishing(own: Path, cache: Path, name: str) -> Iterator[None]:
    stop = threading.Event()

    def keep_publishing() -> None:
        while not stop.wait(PUBLISH_EVERY_S):
            try:
                publish(own, cache, name)
            except (CogcacheError, OSError) as error:  # tried again, at the end once more
                logger.warning("%s", error)

    thread = threading.Thread(target=keep_publishing, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        publish(own, cache, name)
