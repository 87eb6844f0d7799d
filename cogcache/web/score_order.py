"""The order of captions by a score, for pages that go from one to the next.

The order is read from the table itself, once in a while: a checksum for each of its rows would take
too long. What is shown is then held against the whole row.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple

from cogcache.web.browse import Browser, BrowseRow

_KEPT_S: Final = 30.0
"""Seconds for which an order is used, even if the catalog changes: each review changes it."""
_FIRST: Final = 8
_MOST: Final = 512
"""Scores whose captions are looked up together: few at first, more where none passes a filter."""


class Scored(NamedTuple):
    """A score of a caption, or of a clip: one of the keys is empty."""

    score: float
    caption_key: str
    feature_key: str


@dataclass(frozen=True, slots=True)
class ScoreOrder:
    """Scores of one name, the lowest first.

    Args:
        browser: the catalog.
        name: of the score.
        backwards: go from high to low.
    """

    browser: Browser
    name: str
    backwards: bool = False

    def place_of(self, row: Mapping[str, Any]) -> Scored | None:
        """Return the score of a caption, or else of its clip."""
        for key, other in (("caption_key", "feature_key"), ("feature_key", "caption_key")):
            sql = f"""SELECT score, caption_key, feature_key FROM whole_scores
                WHERE name = :name AND {key} = :key AND {other} = ''"""
            if found := self.browser.rows(sql, {"name": self.name, "key": row[key]}):
                return Scored(**found[0])
        return None

    def first(
        self, select: str, where: str, values: Mapping[str, Any], after: tuple[Scored, int] | None
    ) -> BrowseRow | None:
        """Return the first caption in this order that passes a filter.

        Args:
            select: SQL up to the condition, over ``whole_captions c``.
            where: the filter.
            values: of the filter.
            after: score and number of the caption before it; None for the first of all.
        """
        scores, size = self._from(after[0] if after else None), _FIRST
        while some := list(islice(scores, size)):
            passing = self._passing(some, select, where, values)
            for scored in some:
                for row in passing.get(scored, ()):
                    if after is None or scored != after[0] or self._follows(row["id"], after[1]):
                        return row
            size = min(8 * size, _MOST)
        return None

    def _follows(self, number: int, other: int) -> bool:
        return number < other if self.backwards else number > other

    def _from(self, place: Scored | None) -> Iterator[Scored]:
        """Yield the scores from one on, itself first."""
        order = self._order()
        if place is None:
            return reversed(order) if self.backwards else iter(order)
        if self.backwards:
            return reversed(order[: bisect_right(order, place)])
        return iter(order[bisect_left(order, place) :])

    def _passing(
        self, some: Sequence[Scored], select: str, where: str, values: Mapping[str, Any]
    ) -> dict[Scored, list[BrowseRow]]:
        """Return the captions that have these scores and pass a filter."""
        found: dict[Scored, list[BrowseRow]] = {}
        for key in ("caption_key", "feature_key"):
            keys = [getattr(each, key) for each in some if getattr(each, key)]
            if not keys:
                continue
            own = {"scored": json.dumps(keys), "scored_name": self.name}
            of_key = f"name = :scored_name AND {key} IN (SELECT value FROM json_each(:scored))"
            sql = f"SELECT score, caption_key, feature_key FROM whole_scores WHERE {of_key}"
            whole = {getattr(each, key): each for each in self._scores(sql, own)}
            sql = f"""{select} WHERE c.{key} IN (SELECT value FROM json_each(:scored)) AND {where}
                ORDER BY c.id {"DESC" if self.backwards else "ASC"}"""
            for row in self.browser.rows(sql, {**values, **own}):
                if (scored := whole.get(row[key])) is not None:
                    found.setdefault(scored, []).append(row)
        return found

    def _scores(self, sql: str, values: Mapping[str, Any]) -> list[Scored]:
        return [Scored(**row) for row in self.browser.rows(sql, values)]

    def _order(self) -> list[Scored]:
        sql = "SELECT score, caption_key, feature_key FROM shown_scores WHERE name = :name"

        def read(browser: Browser) -> list[Scored]:
            rows = browser.rows(sql, {"name": self.name})
            return sorted(Scored(**row) for row in rows)

        return self.browser.remembered(("order", self.name), read, kept_s=_KEPT_S)


def score_names(browser: Browser) -> list[str]:
    """Return the names of the scores that there are."""
    sql = """WITH RECURSIVE names (name) AS (
            SELECT min(name) FROM shown_scores
            UNION ALL SELECT (SELECT min(name) FROM shown_scores WHERE name > names.name)
            FROM names WHERE names.name IS NOT NULL
        ) SELECT name FROM names WHERE name IS NOT NULL"""
    return [str(row["name"]) for row in browser.rows(sql)]
