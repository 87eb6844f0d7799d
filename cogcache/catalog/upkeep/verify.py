"""Proves a cache: feature files by their checksums, rows by theirs, and both against each other."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from cogcache.catalog import integrity
from cogcache.catalog.catalog import Catalog
from cogcache.catalog.database import CatalogFile
from cogcache.catalog.foreign import DANGLING, ForeignCatalog
from cogcache.catalog.readings import READER, LookAt, looked_at, read_otherwise, readings
from cogcache.catalog.recovery import adopt, rows_of
from cogcache.catalog.rows import ClipRow, VideoRow
from cogcache.catalog.upkeep.leftovers import being_removed, tidy
from cogcache.catalog.whole_rows import TABLES, is_whole, key_fits
from cogcache.errors import CacheError, CatalogError, CorruptFeaturesError, DamagedCatalogError
from cogcache.keys import canonical_bytes
from cogcache.keys import digest as digest_of
from cogcache.store import FeatureStore, live_runs
from cogcache.system import CachePaths, Location, scratch

logger = logging.getLogger(__name__)

_REBUILD: Final = "run `cogcache rebuild`, then verify again"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in a cache that is not as it should be."""

    problem: str
    """``corrupt``, ``wrong_key``, ``not_in_catalog``, ``row_differs``, ``file_missing``,
    ``other_reading``, ``catalog_damaged``, ``row_damaged``, ``row_misfit``,
    ``caption_key_differs`` or ``stranger``."""
    feature_key: str | None
    path: Location
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
    store, path = FeatureStore.open(cache), CachePaths(cache).catalog
    try:
        faults = faults_of(path)
    except DamagedCatalogError as error:
        faults = [error.problem]
    if faults:
        return [Finding("catalog_damaged", None, path, f"{fault}; {_REBUILD}") for fault in faults]
    if (misfits := misfits_of(store, path, fix=fix)) and not fix:
        return [*misfits, *_damaged_rows(path)]
    if fix:
        tidy(store)
    for left in [] if fix else scratch.left_behind(cache):
        hint = "the next command that writes removes it"
        logger.warning("%s was left by a process that is dead; %s", left, hint)
    with Catalog(path) as catalog:
        found = [*misfits, *_damaged_rows(path), *_Verification(store, catalog, fix).run()]
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


def misfits_of(store: FeatureStore, path: Path, *, fix: bool) -> list[Finding]:
    """Return what a catalog holds that no listing can show, whoever wrote it there.

    Args:
        store: whose quarantine a copy of the catalog goes to before it is mended.
        path: the catalog.
        fix: take such rows out.
    """
    if not path.is_file():
        return []
    try:
        with closing(ForeignCatalog(path)) as catalog:
            found = [*catalog.misfits()]
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        return []  # SQLite's own check says what is wrong with the file
    except CatalogError as error:
        return [Finding("catalog_damaged", None, path, f"{error.problem}; {_REBUILD}")]
    with closing(CatalogFile(path, checked=False)) as file:
        with file.reading() as conn:  # what is damaged is told as that
            found = [each for each in found if is_whole(conn, each[0], each[1])]
        if fix and found:
            store.keep_copy(path, "rows that no listing could show were taken out of it")
            _take_out(file, [(table, number) for table, number, _ in found])
    return [
        Finding(
            "row_misfit", None, path,
            f"row {number} of {table}: its {', '.join(columns)} cannot be shown", fix,
        )
        for table, number, columns in found
    ]  # fmt: skip


def _take_out(file: CatalogFile, rows: Collection[tuple[str, int]]) -> None:
    """Delete rows, and make anew what is made from them; clips come back from their files."""
    with file.reading() as conn:
        conn.execute("PRAGMA foreign_keys = OFF")
    with file.transaction() as conn:
        integrity.index_words_anew(conn)  # as what is deleted from it would not be in it
        for table in TABLES:
            sql = f"DELETE FROM {table.name} WHERE rowid = ?"
            conn.executemany(sql, _numbers(rows, table.name))
        for statement in DANGLING:
            conn.execute(statement)
        integrity.make_sums_anew(conn)


def _numbers(rows: Collection[tuple[str, int]], of: str) -> list[tuple[int]]:
    return [(number,) for table, number in rows if table == of]


def faults_of(path: Path) -> list[str]:
    """Return what SQLite finds wrong with a catalog.

    Raises:
        CatalogError: it cannot even be opened.
    """
    with closing(CatalogFile(path, checked=False)) as file, file.reading() as conn:
        return integrity.faults(conn) or integrity.derived_faults(conn)


def _damaged_rows(path: Path) -> list[Finding]:
    """Hold every row against its checksum, and captions' keys against what they are made from."""
    with closing(CatalogFile(path)) as file:
        for table in TABLES:
            file.query(f"SELECT count(*) FROM whole_{table.name}")
        captions = file.query("SELECT caption_key, settings FROM whole_captions")
        found = [
            Finding("row_damaged", None, path, f"the row {key!r} of {table}; {_REBUILD}")
            for table, key in file.damage.rows
        ]
    return found + [
        Finding("caption_key_differs", None, path, f"{key} is not the digest of its settings")
        for key, settings in captions
        if not key_fits(key, settings)
    ]


@dataclass(frozen=True)
class _Verification:
    store: FeatureStore
    catalog: Catalog
    fix: bool

    def run(self) -> Iterator[Finding]:
        keys = [*self.store]  # before the rows: of a run at work, a file comes first
        rows = {row["feature_key"]: row for row in self.catalog.clips.rows()}
        for key in tqdm(keys, desc="verify", unit="clip", disable=None):
            if found := self._file(key, rows.get(key)):
                yield found
        for key in self._lost(rows.keys() - set(keys)):
            if key in self.store:  # sealed since the files were listed
                continue
            message = f"the catalog has it, of {rows[key]['video']}, and there is no file"
            yield self._found("file_missing", key, message, self._forget)
        for path in self.store.strangers():
            yield Finding("stranger", None, path, "it is no feature file; move it away")

    def _lost(self, keys: set[str]) -> set[str]:
        """Return those of the keys whose files nobody is deleting just now, with their rows."""
        keys = keys - being_removed(self.store)
        return self.catalog.clips.known(keys)

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
            lost = bool(self._lost({key}))
            return self._found("file_missing", key, error.problem, self._forget) if lost else None
        if digest_of(clip["settings"]) != key:
            problem = "what it says it was made from has another key"
            return self._found("wrong_key", key, problem, self._quarantine(problem))
        return self._row(key, row, video, clip)

    def _row(self, key: str, row: ClipRow | None, video: VideoRow, clip: ClipRow) -> Finding | None:
        """Hold a clip's row against what its file says."""
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
            self._forget(clip["feature_key"])  # its row may be damaged, which an update keeps
            adopt(self.catalog, [(video, clip)])

        return add


_HELD = ("video_digest", "start_s", "end_s", "family", "num_frames", "size_bytes", "settings")
"""What a clip's row and its file must both say."""


def _same(one: Any, other: Any) -> bool:
    return canonical_bytes({"": one}) == canonical_bytes({"": other})
