"""Full text search over the captions of a catalog.

What is not covered: stems of words but for a final -s ("run" does not find "running"; ``run*``
does).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import nlargest
from pathlib import Path
from typing import Any, Final, Self, cast

from cogcache.catalog.database import CatalogFile
from cogcache.catalog.holders import Holders, Look
from cogcache.catalog.placed import Absent, Placing
from cogcache.catalog.rows import CaptionRow
from cogcache.catalog.search.queries import SEPARATOR, Query, parse
from cogcache.catalog.search.selection import Selection
from cogcache.system import Location

MAX_RANKED: Final = 3000
"""Of more captions than these the newest are ranked: ranking all would take seconds."""
_SNIPPET_WORDS: Final = 24
_CACHE_KIB: Final = 64 * 1024
_IDS: Final = "(SELECT value FROM json_each(:ids))"
# The + keeps SQLite from asking the index for each number: bm25 would begin anew each time.
_AMONG: Final = f"rowid BETWEEN :first AND :last AND +rowid IN {_IDS}"


@dataclass(frozen=True, slots=True)
class Hit:
    """A caption that was found."""

    caption: CaptionRow
    score: float
    """How well it fits: bm25, the higher the better."""
    snippet: str
    """The part of the caption that fits, with the words found marked."""

    def row(self) -> dict[str, Any]:
        """Return the caption's row with score and snippet."""
        return {**self.caption, "score": round(self.score, 4), "snippet": self.snippet}


@dataclass(frozen=True, slots=True)
class Results:
    """A page of what was found, best first."""

    hits: list[Hit]
    num_ranked: int
    """How many captions were ranked, and can be paged through."""
    capped: bool
    """More captions fit than were ranked."""
    absent: list[Absent] = field(default_factory=list)
    """Of the page, what was left out as no file holds the bytes that it is of."""


class CaptionSearch:
    """Searches one catalog; a context manager, for any number of threads.

    Args:
        catalog: the SQLite file.

    Raises:
        CatalogError: it is no catalog, is of a newer version, or cannot be opened.
    """

    def __init__(self, catalog: Path) -> None:
        self._file = CatalogFile(catalog, derived=True)
        self._file.query(f"PRAGMA cache_size = -{_CACHE_KIB}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the catalog."""
        self._file.close()

    def search(
        self,
        text: str,
        selection: Selection | None = None,
        *,
        limit: int = 20,
        offset: int = 0,
        marks: tuple[str, str] = ("[", "]"),
    ) -> Results:
        """Find captions.

        Args:
            text: what to find, as ``queries`` describes it.
            selection: filters that the captions have to pass.
            limit: how many hits to return.
            offset: how many of the best to leave out.
            marks: what stands before and after each word found, in the snippets.

        Raises:
            ConfigError: there is nothing to look for in ``text``, or it is too long.
        """
        queries = parse(text)
        scores, capped = self.rank(queries, selection or Selection())
        best = nlargest(limit + offset, scores, key=lambda id_: (scores[id_], id_))[offset:]
        return Results(self.hits(best, scores, queries, marks), len(scores), capped)

    def matching(self, text: str) -> list[int]:
        """Return the numbers of the captions that a search finds, of many the newest.

        Raises:
            ConfigError: there is nothing to look for in ``text``, or it is too long.
        """
        scores, _ = self.rank(parse(text), Selection())
        return sorted(scores)

    def placed(self, results: Results, look: Look, folders: Sequence[Location] = ()) -> Results:
        """Return what was found under the files that hold the videos now; only these are looked at.

        Args:
            results: of a search.
            look: how files are looked at.
            folders: of the selection; what has left them is left out.

        Raises:
            MissingVideosError: no file holds the bytes of one, and `look` says that is an error.
        """
        rows = {hit.caption["id"]: hit for hit in results.hits}
        placing = Placing(Holders(self._file, check=look.check), look, folders)
        found = placing.one([{**hit.caption} for hit in results.hits])
        hits = [replace(rows[row["id"]], caption=cast(CaptionRow, row)) for row in found.rows]
        return replace(results, hits=hits, absent=found.absent)

    def look_in(self, folders: Sequence[Location]) -> None:
        """Find out what files in folders hold by now, before captions are chosen by folder."""
        Holders(self._file).look_in(folders)

    def few(self, selection: Selection) -> list[int] | None:
        """Return the numbers of the captions that pass; None if they are many, or all."""
        where, values = selection.where()
        if not where:
            return None
        sql = f"SELECT c.id FROM whole_captions c WHERE {where} LIMIT {MAX_RANKED + 1}"
        ids = [row[0] for row in self._file.query(sql, values)]
        return ids if len(ids) <= MAX_RANKED else None

    def passing(self, ids: Sequence[int], selection: Selection) -> set[int]:
        """Return those captions that are there and pass."""
        where, values = selection.where()
        sql = f"SELECT c.id FROM whole_captions c WHERE c.id IN {_IDS} {where and f'AND {where}'}"
        return {row[0] for row in self._file.query(sql, {**values, "ids": json.dumps([*ids])})}

    def rank(self, queries: Sequence[Query], selection: Selection) -> tuple[dict[int, float], bool]:
        """Return the score of each caption by its number, and whether more would have fit."""
        where, values = selection.where()
        if (ids := self.few(selection)) is not None:
            where, values = _AMONG, _among(ids)
        scores: dict[int, float] = {}
        for query in queries:
            for row in self._file.query(_ranking(query, where), {**values, "match": query.match}):
                scores[row[0]] = max(scores.get(row[0], 0.0), -row[1])
        return scores, len(scores) > MAX_RANKED

    def hits(
        self,
        ids: Sequence[int],
        scores: Mapping[int, float],
        queries: Sequence[Query] = (),
        marks: tuple[str, str] = ("[", "]"),
    ) -> list[Hit]:
        """Return captions by their numbers, with the words of ``queries`` marked in snippets."""
        rows = self._file.select("captions", among={"id": [*ids]})  # type: ignore[list-item]
        captions = {row["id"]: cast(CaptionRow, row) for row in rows}
        snippets: dict[int, str] = {}
        for query in queries:
            snippets |= self._snippets(query, ids, marks)
        return [
            Hit(captions[i], scores[i], snippets.get(i) or _beginning(captions[i]))
            for i in ids
            if i in captions  # else it was deleted a moment ago
        ]

    def _snippets(self, query: Query, ids: Sequence[int], marks: tuple[str, str]) -> dict[int, str]:
        sql = (
            f"SELECT rowid, snippet({query.table}, 0, :before, :after, '…', {_SNIPPET_WORDS})"
            f" FROM {query.table} WHERE {query.table} MATCH :match AND rowid IN {_IDS}"
        )
        values = {"before": marks[0], "after": marks[1]}
        values |= {"match": query.match, "ids": json.dumps([*ids])}
        return {row[0]: row[1].replace(SEPARATOR, "") for row in self._file.query(sql, values)}


def _ranking(query: Query, where: str) -> str:
    table = query.table
    join = "" if where in {"", _AMONG} else f"JOIN whole_captions c ON c.id = {table}.rowid"
    return (
        f"SELECT {table}.rowid, bm25({table}) FROM {table} {join}"
        f" WHERE {table} MATCH :match {where and f'AND {where}'}"
        f" ORDER BY {table}.rowid DESC LIMIT {MAX_RANKED + 1}"
    )


def _beginning(row: CaptionRow) -> str:
    words = row["caption"].split()
    return " ".join(words[:_SNIPPET_WORDS]) + ("…" if len(words) > _SNIPPET_WORDS else "")


def _among(ids: list[int]) -> dict[str, object]:
    return {"ids": json.dumps(ids), "first": min(ids, default=0), "last": max(ids, default=0)}
