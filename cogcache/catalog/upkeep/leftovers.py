"""What killed processes left in a cache: removed, or finished.

Each command that writes to a cache calls `tidy` first. Those that only read say what lies there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from cogcache.catalog.backup import with_room
from cogcache.catalog.catalog import Catalog
from cogcache.store import FeatureStore, remove_dead_claims
from cogcache.system import CachePaths, scratch

REMOVAL: Final = "removal"
"""Kind of the note of features that are being deleted for good, with their ``keys``."""


def tidy(store: FeatureStore) -> None:
    """Remove what dead processes left in a cache, and finish what they had begun to delete.

    Files of living processes stay.

    Raises:
        CacheError: the disk cannot be written.
        CatalogError: the catalog cannot be used.
    """
    remove_leftovers(store)
    for note, content in scratch.notes(store.root, REMOVAL, dead=True):
        remove_features(store, keys_of(content))
        note.unlink(missing_ok=True)


def tidy_beside(catalog: Path) -> None:
    """Do as `tidy` does for the cache that a catalog lies in, if it lies in one.

    Raises:
        CacheError: the disk cannot be written.
        CatalogError: the catalog cannot be used.
    """
    if CachePaths(catalog.parent).mark.is_file():
        tidy(FeatureStore.open(catalog.parent))


def remove_leftovers(store: FeatureStore) -> None:
    """Clear away what dead processes left, where the catalog cannot be used.

    Raises:
        CacheError: the disk cannot be written.
    """
    store.remove_unfinished()
    remove_dead_claims(store.root)
    paths = CachePaths(store.root)
    folders = [paths.published, paths.semantic]
    scratch.remove_dead(folder for folder in folders if folder.is_dir())
    scratch.sweep(store.root)


@contextmanager
def removing(store: FeatureStore, keys: list[str]) -> Iterator[None]:
    """Note, while a `with` block runs, that features are being deleted: it is ended by `tidy`."""
    with scratch.noted(store.root, REMOVAL, keys=keys):
        yield


def remove_features(store: FeatureStore, keys: list[str]) -> None:
    """Delete features for good, then their rows; captions stay.

    The files go first: on a disk that is full they make the room that the catalog needs.
    """
    for key in keys:
        if key in store:
            store.remove(key)
    path = CachePaths(store.root).catalog

    def forget() -> None:
        with Catalog(path) as catalog:
            catalog.clips.remove(keys)

    if keys and path.is_file():
        with_room(store.root, forget)


def being_removed(store: FeatureStore) -> set[str]:
    """Return the keys of features that a process which lives is deleting."""
    found = scratch.notes(store.root, REMOVAL, dead=False)
    return {key for _, content in found for key in keys_of(content)}


def keys_of(content: Mapping[str, Any]) -> list[str]:
    """Return the feature keys that a note names; other entries are ignored."""
    keys = content.get("keys", [])
    return [key for key in keys if isinstance(key, str) and len(key) == 64]
