"""Search by meaning: captions near to a query, and both kinds of search in one ranking.

The vectors lie in ``CACHE/semantic``, a file a model. It can be deleted at any time and is made
anew. What is not covered: two processes that add to one file at a time; what the slower of them
overwrote is made again the next time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from heapq import nlargest
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.database import CatalogFile
from cogcache.catalog.search.embedding import Embedder
from cogcache.catalog.search.full_text import CaptionSearch, Results
from cogcache.catalog.search.queries import Query, parse
from cogcache.catalog.search.selection import Selection
from cogcache.errors import ConfigError
from cogcache.system import CachePaths, extra_hint, seal

AT_A_TIME: Final = 512
SAVE_EACH: Final = 50_000
NEAREST: Final = 200
"""How many of the nearest captions are ranked."""
_BEFORE_FILTERS: Final = 1000
_FLATNESS: Final = 60  # the usual constant of reciprocal rank fusion

Keys: TypeAlias = npt.NDArray[np.uint64]

log = logging.getLogger(__name__)


class SemanticIndex:
    """The vectors of a cache's captions, by one model.

    Args:
        cache: the cache's folder.
        embedder: the model.

    Raises:
        CatalogError: the catalog cannot be used.
        ConfigError: the extra is not installed.
    """

    def __init__(self, cache: Path, embedder: Embedder) -> None:
        self._catalog, self._embedder = CachePaths(cache).catalog, embedder
        with Catalog(self._catalog) as catalog:
            self.model = embedder.digest(catalog)
        self.path = CachePaths(cache).semantic / f"{self.model}.usearch"
        self._index = _load(self.path)

    def update(self, progress: Callable[[int, int], None] = lambda done, all_: None) -> int:
        """Add the captions that are new or changed; return how many.

        Args:
            progress: is told how many are done, of how many.

        Raises:
            CacheError: the index cannot be written.
        """
        with closing(CatalogFile(self._catalog)) as file:
            missing = self._missing(file)
            for first in range(0, len(missing), SAVE_EACH):
                some = missing[first : first + SAVE_EACH]
                for begin in range(0, len(some), AT_A_TIME):
                    self._add(file, some[begin : begin + AT_A_TIME])
                    progress(first + begin, len(missing))
                self._save(file, some)
        return len(missing)

    def near(
        self, text: str, ids: Sequence[int] | None = None, count: int = NEAREST
    ) -> list[tuple[int, float]]:
        """Return the captions nearest to ``text`` and how near (cosine), the nearest first.

        Args:
            text: what to look for.
            ids: look only among these; None: all.
            count: how many to return at most.
        """
        if self._index is None:
            return []
        query = self._embedder.encode([text])[0]
        if ids is None:
            found = self._index.search(query, count)
            pairs = zip(found.keys, found.distances, strict=True)
            return [(int(key), 1 - float(distance)) for key, distance in pairs]
        keys = _held(self._index, np.array(ids, np.uint64))
        if not len(keys):
            return []
        scores = np.asarray(self._index.get(keys), np.float32).reshape(len(keys), -1) @ query
        best = np.argsort(-scores, kind="stable")[:count]
        return [(int(keys[i]), float(scores[i])) for i in best]

    def _missing(self, file: CatalogFile) -> list[int]:
        listed = file.query("SELECT caption_id FROM embedded WHERE model = :m", {"m": self.model})
        # The file may have been deleted, or be older than the list.
        held = {row[0] for row in listed}
        held &= set() if self._index is None else {int(key) for key in self._index.keys}
        rows = file.query("SELECT id FROM whole_captions WHERE trim(caption) <> '' ORDER BY id")
        return [row[0] for row in rows if row[0] not in held]

    def _add(self, file: CatalogFile, ids: list[int]) -> None:
        captions = _captions(file, ids)
        vectors = self._embedder.encode([*captions.values()])
        if self._index is None:
            self._index = _new(vectors.shape[1])
        keys = np.array([*captions], np.uint64)
        if len(old := _held(self._index, keys)):
            self._index.remove(old)
        self._index.add(keys, vectors)

    def _save(self, file: CatalogFile, ids: list[int]) -> None:
        seal(self.path, bytes(self._index.save()))
        with file.transaction() as conn:
            rows = [(self.model, number) for number in ids]
            conn.executemany("INSERT OR IGNORE INTO embedded VALUES (?, ?)", rows)


def fused_search(
    index: SemanticIndex,
    search: CaptionSearch,
    text: str,
    selection: Selection | None = None,
    *,
    limit: int = 20,
    offset: int = 0,
) -> Results:
    """Find captions by words and by meaning, those first that are high in both rankings.

    Raises:
        ConfigError: ``text`` is empty.
    """
    selection = selection or Selection()
    if not text.strip():
        raise ConfigError("there is nothing to look for", "describe what is to be seen")
    queries = _queries(text)
    scores, capped = search.rank(queries, selection)
    by_words = nlargest(NEAREST, scores, key=lambda id_: (scores[id_], id_))
    count = NEAREST if selection == Selection() else _BEFORE_FILTERS
    near = [id_ for id_, _ in index.near(text, search.few(selection), count)]
    passing = search.passing(near, selection)
    by_meaning = [id_ for id_ in near if id_ in passing][:NEAREST]
    fused = _fuse([by_words, by_meaning])
    best = nlargest(limit + offset, fused, key=lambda id_: (fused[id_], id_))[offset:]
    return Results(search.hits(best, fused, queries), len(fused), capped)


def _queries(text: str) -> list[Query]:
    try:
        return parse(text)
    except ConfigError as error:  # what the words' index cannot look for may still mean something
        log.info("searched by meaning alone: %s", error.problem)
        return []


def _fuse(rankings: Iterable[Sequence[int]]) -> dict[int, float]:
    scores: dict[int, float] = {}
    for ranking in rankings:
        for place, id_ in enumerate(ranking, 1):
            scores[id_] = scores.get(id_, 0.0) + 1 / (_FLATNESS + place)
    return scores


def _captions(file: CatalogFile, ids: list[int]) -> dict[int, str]:
    sql = "SELECT id, caption FROM whole_captions WHERE id IN (SELECT value FROM json_each(:ids))"
    return {row[0]: row[1] for row in file.query(f"{sql} ORDER BY id", {"ids": json.dumps(ids)})}


def _load(path: Path) -> Any:
    """Return the index in a file; None if there is none, or it is damaged."""
    try:
        from usearch.index import Index
    except ImportError as error:
        hint = extra_hint("semantic")
        raise ConfigError("search by meaning needs usearch", hint) from error
    try:
        return Index.restore(str(path)) if path.is_file() else None
    except (ValueError, RuntimeError) as error:
        log.warning("%s is damaged and is made anew: %s", path, error)
        return None


def _new(num_dimensions: int) -> Any:
    from usearch.index import Index

    return Index(ndim=num_dimensions, metric="cos", dtype="f16")


def _held(index: Any, keys: Keys) -> Keys:
    """Return those of the keys that are in the index."""
    return keys[np.atleast_1d(index.contains(keys))] if len(keys) else keys
