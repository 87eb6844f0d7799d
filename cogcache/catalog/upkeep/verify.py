"""Care of a cache: prove it, mend it, clear it out.

What is not covered: a damaged caption. SQLite's own checks find most of them, not a letter changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.database import CatalogFile
from cogcache.catalog.readings import READER, LookAt, looked_at, read_otherwise, readings
from cogcache.catalog.recovery import adopt, rows_of
from cogcache.catalog.rows import ClipRow, VideoRow
from cogcache.errors import CacheError, CorruptFeaturesError, DamagedCatalogError
from cogcache.keys import canonical_bytes
from cogcache.keys import digest as digest_of
from cogcache.store import FeatureStore, live_runs

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in a cache that is not as it should be."""

    problem: str
    """``corrupt``, ``wrong_key``, ``not_in_catalog``, ``row_differs``, ``file_missing``,
    ``other_reading``, ``catalog_damaged`` or ``stranger``."""
    feature_key: str | None
    path: Path
    message: str
    fixed: bool = False


def verify(cache: Path, *, fix: bool = False, look: LookAt | None = None) -> list[Finding]:
    """Hold every feature file against its checksum, and files and catalog against each other.

    Args:
        cache: folder of the cache.
        fix: move damaged files to the quarantine, so that the next `extract` makes them anew,
            and correct the catalog's rows. Captions are left as they are.
        look: looks at the videos of which it is not known whether their features are of the frames
            that are shown; None leaves those alone.

    Returns:
        What was found; empty if all is well.

    Raises:
        CacheError: the folder is no cache, or its disk cannot be read.
    """
    store, path = FeatureStore.open(cache), cache / "catalog.sqlite"
    try:
        faults = faults_of(path)
    except DamagedCatalogError as error:
        faults = [error.problem]
    if faults:
        hint = "run `cogcache rebuild`, then verify again"
        return [Finding("catalog_damaged", None, path, f"{fault}; {hint}") for fault in faults]
    with Catalog(path) as catalog:
        found = [*_Verification(store, catalog, fix).run()]
        return found + _of_another_reading(store, catalog, look)


def _of_another_reading(
    store: FeatureStore, catalog: Catalog, look: LookAt | None
) -> list[Finding]:
    """Return the features that an earlier reader made of other frames than are shown."""
    rows = {row["feature_key"]: row for row in catalog.clips.rows()}
    digests = {row["video_digest"] for row in rows.values()}
    if look is None:
        known = readings(catalog.files, digests)
    else:
        known = looked_at(catalog.files, digests, look)
    hint = "`cogcache extract` makes them anew beside these, which nothing uses any more"
    return [
        Finding("other_reading", key, store.path_of(key), f"{row['video']}: {reason}; {hint}")
        for key, row in rows.items()
        if (reason := read_otherwise(row, known)) and not _is_made_anew(row, rows.keys())
    ]


def _is_made_anew(clip: ClipRow, keys: Collection[str]) -> bool:
    """Say whether the same clip has features of the frames that are shown beside the old ones."""
    fields = {**clip["settings"]}
    sampling = fields.get("sampling")
    if not isinstance(sampling, Mapping):
        return False
    return digest_of({**fields, "sampling": {**sampling, "reader": READER}}) in keys


def faults_of(path: Path) -> list[str]:
    """Return what SQLite finds wrong with a catalog.

    Raises:
        CatalogError: it cannot even be opened.
    """
    with closing(CatalogFile(path)) as file:
        return [row[0] for row in file.query("PRAGMA integrity_check") if row[0] != "ok"]


@dataclass(frozen=True)
class _Verification:
    store: FeatureStore
    catalog: Catalog
    fix: bool

    def run(self) -> Iterator[Finding]:
        if self.fix:
            self.store.sweep()
        keys = [*self.store]  # before the rows: of a run at work, a file comes first
        rows = {row["feature_key"]: row for row in self.catalog.clips.rows()}
        for key in tqdm(keys, desc="verify", unit="clip", disable=None):
            if found := self._file(key, rows.get(key)):
                yield found
        for key in rows.keys() - set(keys):
            if key in self.store:  # sealed since the files were listed
                continue
            message = f"the catalog has it, of {rows[key]['video']}, and there is no file"
            yield self._found("file_missing", key, message, self._forget)
        for path in self.store.strangers():
            yield Finding("stranger", None, path, "it is no feature file; move it away")

    def _file(self, key: str, row: ClipRow | None) -> Finding | None:
        try:
            self.store.prove(key)
            video, clip = rows_of(self.store, key, 0)
        except (CorruptFeaturesError, KeyError) as error:
            problem = getattr(error, "problem", f"it does not say its {error}")
            return self._found("corrupt", key, problem, self._quarantine(problem))
        except CacheError as error:
            if key in self.store:  # its disk cannot be read: no fault of the file
                raise
            # Removed meanwhile by another, or a folder is in its place.
            return self._found("file_missing", key, error.problem, self._forget)
        if digest_of(clip["settings"]) != key:
            problem = "what it says it was made from has another key"
            return self._found("wrong_key", key, problem, self._quarantine(problem))
        if row is None:
            return self._unlisted(key, video, clip)
        if differing := [name for name in _HELD if not _same(row[name], clip[name])]:  # type: ignore[literal-required]
            message = f"the catalog says otherwise of: {', '.join(differing)}"
            return self._found("row_differs", key, message, self._adopt(video, clip))
        return None

    def _unlisted(self, key: str, video: VideoRow, clip: ClipRow) -> Finding | None:
        if self._is_in_hand(key):
            return None
        message = f"the catalog does not have it; of {clip['video']}"
        return self._found("not_in_catalog", key, message, self._adopt(video, clip))

    def _is_in_hand(self, key: str) -> bool:
        """Say whether the row of a file has come meanwhile, or is to come from a run at work."""
        if self.catalog.clips.known([key]):
            return True
        made_s = self.store.made_s(key)
        return any(
            run["state"] == "at work"
            and datetime.fromisoformat(run["started_at"]).timestamp() <= made_s
            for run in live_runs(self.store.root)
        )

    def _found(
        self, problem: str, key: str, message: str, mend: Callable[[str], object]
    ) -> Finding:
        if self.fix:
            mend(key)
        return Finding(problem, key, self.store.path_of(key), message, self.fix)

    def _quarantine(self, problem: str) -> Callable[[str], object]:
        def move(key: str) -> None:
            self.store.quarantine(key, problem)
            self._forget(key)

        return move

    def _forget(self, key: str) -> None:
        self.catalog.clips.remove([key])

    def _adopt(self, video: VideoRow, clip: ClipRow) -> Callable[[str], object]:
        def add(_: str) -> None:
            adopt(self.catalog, [(video, clip)])

        return add


_HELD = ("video_digest", "start_s", "end_s", "family", "num_frames", "size_bytes", "settings")
"""What a clip's row and its file must both say."""


def _same(one: Any, other: Any) -> bool:
    return canonical_bytes({"": one}) == canonical_bytes({"": other})
