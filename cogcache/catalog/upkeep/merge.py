"""Merges caches, or catalogs over one folder of features, into one cache.

What is taken is only ever added; sources are read and left as they are. Each file is whole or
absent and each catalog's rows are taken all or none, so that a merge can be broken off and begun
again. What is not covered: sources that are written to meanwhile; merge once more.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tqdm import tqdm

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.merge_rows import MergedRows, merge_rows, snapshot
from cogcache.catalog.published import publish, published
from cogcache.catalog.recovery import adopt, rows_of
from cogcache.catalog.upkeep.leftovers import tidy
from cogcache.errors import CacheError, ConfigError, CorruptFeaturesError
from cogcache.store import FeatureStore
from cogcache.system import CachePaths, Location

logger = logging.getLogger(__name__)

_ADOPT_AT_A_TIME: Final = 1000


@dataclass
class Merged(MergedRows):
    """What came of a merge, over all sources."""

    sources: int = 0
    files: int = 0
    """Feature files that were copied."""
    adopted: int = 0
    """Clips that no catalog listed, entered by what their files say."""
    left_out: int = 0
    """Clips that a catalog lists and whose features are not there."""
    damaged: list[Location] = field(default_factory=list)
    """Feature files that failed their check, and were not taken."""

    def add(self, rows: MergedRows) -> None:
        """Count what one source gave."""
        self.sources += 1
        for name in ("clips", "captions", "failures", "runs", "conflicts"):
            setattr(self, name, getattr(self, name) + getattr(rows, name))

    def lines(self) -> list[str]:
        """Return what was done as lines for a reader."""
        lines = [
            f"merged {self.sources} catalogs: {self.clips} clips, {self.captions} captions and "
            f"{self.runs} runs are new, {self.files} feature files were copied"
        ]
        if self.conflicts:
            lines.append(f"  {len(self.conflicts)} captions differed: the one made first is kept")
        if self.adopted:
            lines.append(f"  {self.adopted} clips were in no catalog: entered from their files")
        if self.left_out:
            lines.append(f"  {self.left_out} clips left out: their features are not here")
        if self.misfits:
            lines.append(f"  {self.misfits} rows left out: no listing could show their values")
        if self.damaged:
            lines.append(f"  {len(self.damaged)} damaged feature files were not taken")
        return lines


def merge(sources: Sequence[Path], into: Path) -> Merged:
    """Take all that other caches hold over into one.

    Args:
        sources: folders of caches, or catalog files whose features `into` holds; none: the
            catalogs that runs with a catalog of their own have left in `into`.
        into: folder of the cache; made if absent.

    Returns:
        What was taken, captions that differed among it.

    Raises:
        CogcacheError: a source is none, or a disk cannot be read or written.
    """
    sources = [*sources] or published(into)
    if not sources:
        raise ConfigError(f"{into} holds no catalogs to merge", "name caches or catalogs")
    stores = {source: _store_of(source, into) for source in sources}
    store = FeatureStore.create_or_open(into)
    tidy(store)
    path, merged = CachePaths(into).catalog, Merged()
    Catalog(path).close()
    for source in tqdm(sources, desc="merge", unit="catalog", disable=None):
        theirs = stores[source]
        if theirs is None:
            listed, catalog_path = store.present(), source
        else:
            listed = _take_files(theirs, store, path, merged)
            catalog_path = CachePaths(source).catalog
        misfits: Counter[str] = Counter()
        with snapshot(catalog_path, misfits) as copy:
            merged.misfits += misfits.total()
            merged.left_out += _num_others(copy, store.present())
            merged.add(merge_rows(copy, path, listed))
    with Catalog(path) as catalog:
        merged.adopted = _adopt_unlisted(store, catalog, merged)
    if published(into):
        publish(path, into, "merged")
    return merged


def _store_of(source: Path, into: Path) -> FeatureStore | None:
    """Return where a source has its features; None for a mere catalog.

    Raises:
        CacheError: it is neither a cache nor a catalog.
        ConfigError: it is the cache to merge into.
    """
    if source.resolve() in (into.resolve(), CachePaths(into).catalog.resolve()):
        raise ConfigError(f"{source} is the cache to merge into", "leave it out")
    if source.is_file():
        return None
    store = FeatureStore.open(source)
    if not CachePaths(source).catalog.is_file():
        raise CacheError(f"{source} has no catalog", "make one with `cogcache rebuild`")
    return store


def _take_files(theirs: FeatureStore, ours: FeatureStore, path: Path, merged: Merged) -> set[str]:
    """Copy the feature files that are missing; return the clips whose rows are to be taken."""
    there, taken = ours.present(), set()
    if theirs.features is not None and theirs.features == ours.features:
        return there
    missing = sorted(theirs.present() - there)
    for key in tqdm(missing, desc="copying features", unit="clip", disable=None):
        try:
            ours.take(key, theirs)
            taken.add(key)
        except CorruptFeaturesError as error:
            logger.warning("%s is left out: %s", theirs.path_of(key), error.problem)
            merged.damaged.append(theirs.path_of(key))
    merged.files += len(taken)
    with Catalog(path) as catalog:
        # Of a file that lay here unlisted, another's row may not be true: it is read itself.
        return taken | catalog.clips.known(there)


def _num_others(copy: Path, there: set[str]) -> int:
    with Catalog(copy) as catalog:
        return len({clip["feature_key"] for clip in catalog.clips.rows()} - there)


def _adopt_unlisted(store: FeatureStore, catalog: Catalog, merged: Merged) -> int:
    there = store.present()
    unlisted = sorted(there - catalog.clips.known(there))
    batch, adopted = [], 0
    for number, key in enumerate(unlisted, 1):
        try:
            batch.append(rows_of(store, key, 0))
        except CorruptFeaturesError as error:
            logger.warning("%s", error.problem)
            merged.damaged.append(store.path_of(key))
        if len(batch) == _ADOPT_AT_A_TIME or number == len(unlisted):
            adopted += adopt(catalog, batch)
            batch.clear()
    catalog.failures.clear_failed(unlisted)
    return adopted
