"""The captions to review, one after another: chosen by filters, in a stable order.

A position is a caption's number (or its score and number), not a count of the captions before it:
a reviewed caption may no longer pass the filter, and the next one must not be skipped.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Final

from cogcache.catalog import EDITED, Selection
from cogcache.errors import ConfigError
from cogcache.system import location_of
from cogcache.web.browse import Browser, BrowseRow
from cogcache.web.score_order import ScoreOrder, score_names
from cogcache.web.site import Site

STATES: Final = ("unreviewed", "accepted", "rejected")
_COUNTED_FOR_S: Final = 10.0
_COLUMNS: Final = "c.id, c.caption_key, c.feature_key, c.prompt_name"


@dataclass(frozen=True, slots=True)
class QueueFilter:
    """The parts of an address that choose the captions of the queue; an empty text means all."""

    q: str = ""
    """Words to search for."""
    name: str = ""
    """Part of the video's name."""
    folder: str = ""
    prompt: str = ""
    model: str = ""
    flag: str = ""
    state: str = ""
    tag: str = ""
    min_score: str = ""
    """NAME=X."""
    min_duration: str = ""
    max_duration: str = ""
    sort: str = ""
    """Name of a score, the lowest first."""

    @classmethod
    def of(cls, given: Mapping[str, str]) -> QueueFilter:
        """Return the filter that an address, or a form, says."""
        return cls(**{each.name: given.get(each.name, "").strip() for each in fields(cls)})

    def values(self) -> dict[str, str]:
        """Return what is to be written into an address."""
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in named.items() if value}

    def selection(self) -> Selection:
        """Return the filters that other commands have, too.

        Raises:
            ConfigError: a number is none.
        """
        return Selection(
            folders=(location_of(self.folder),) if self.folder else (),
            prompts=(self.prompt,) if self.prompt else (),
            models=(self.model,) if self.model else (),
            flags=(self.flag,) if self.flag else (),
            states=(self.state,) if self.state in STATES else (),
            tags=(self.tag,) if self.tag else (),
            min_scores=(self._least(),) if self.min_score else (),
            min_duration_s=_number(self.min_duration),
            max_duration_s=_number(self.max_duration),
        )

    def _least(self) -> tuple[str, float]:
        name, _, value = self.min_score.partition("=")
        number = _number(value)
        if number is None:
            raise ConfigError(f"{self.min_score!r} is not NAME=X", "write it like grounding=0.5")
        return name.strip(), number


def _number(text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise ConfigError(f"{text!r} is no number", "write it like 0.5") from None


@dataclass(frozen=True)
class Queue:
    """The captions that pass a filter, in order.

    Args:
        site: the cache.
        wanted: the filter.
    """

    site: Site
    wanted: QueueFilter

    def at(self, number: int) -> BrowseRow | None:
        """Return the caption with a number, even if it no longer passes the filter."""
        sql = f"SELECT {_COLUMNS} FROM whole_captions c WHERE c.id = :id"
        return next(iter(self._browser.rows(sql, {"id": number})), None)

    def after(self, number: int) -> BrowseRow | None:
        """Return the caption after a number; 0 for the first caption."""
        return self._beside(number, ">", "ASC")

    def before(self, number: int) -> BrowseRow | None:
        """Return the caption before a number."""
        return self._beside(number, "<", "DESC")

    def all(self) -> list[BrowseRow]:
        """Return all captions of the queue, by number."""
        where, values = self._where
        sql = f"SELECT {_COLUMNS} FROM whole_captions c WHERE {where} ORDER BY c.id"
        return self._browser.rows(sql, values)

    def count(self, number: int | None = None) -> int:
        """Return how many captions there are, or are up to that of a number.

        It may be a few seconds old: each review changes the catalog.
        """
        numbers = self._numbers()
        is_part = number is not None and not self.wanted.sort
        return bisect_right(numbers, number) if is_part and number else len(numbers)

    def _numbers(self) -> list[int]:
        where, values = self._where
        # Only counted: a checksum for each score would take too long.
        where = where.replace("whole_scores", "shown_scores")
        sql = f"SELECT json_group_array(c.id) AS numbers FROM shown_captions c WHERE {where}"

        def read(browser: Browser) -> list[int]:
            return sorted(json.loads(browser.rows(sql, values)[0]["numbers"]))

        return self._browser.remembered((sql, *values.values()), read, kept_s=_COUNTED_FOR_S)

    @property
    def _browser(self) -> Browser:
        return self.site.browser

    def _beside(self, number: int, sign: str, order: str) -> BrowseRow | None:
        where, values = self._where
        values = {**values, "here": number}
        if not self.wanted.sort:
            sql = f"""SELECT {_COLUMNS} FROM whole_captions c WHERE {where} AND c.id {sign} :here
                ORDER BY c.id {order} LIMIT 1"""
            return next(iter(self._browser.rows(sql, values)), None)
        return self._sorted(number, sign, where, values)

    def _sorted(
        self, number: int, sign: str, where: str, values: Mapping[str, Any]
    ) -> BrowseRow | None:
        """Return the caption after or before one in the order of a score."""
        order = ScoreOrder(self._browser, self.wanted.sort, backwards=sign == "<")
        after = None
        if number:
            here = self.at(number)
            if here is None or (place := order.place_of(here)) is None:
                return None
            after = place, number
        return order.first(f"SELECT {_COLUMNS} FROM whole_captions c", where, values, after)

    @cached_property
    def _where(self) -> tuple[str, dict[str, Any]]:
        where, values = self.wanted.selection().where()
        # An edited caption is shown in the place of the one that it was edited from.
        tests = [f"c.quantization <> '{EDITED}'", *([where] if where else [])]
        if self.wanted.name:
            letters = self.wanted.name.replace("!", "!!").replace("%", "!%").replace("_", "!_")
            tests.append("c.video LIKE :video_name ESCAPE '!'")
            values["video_name"] = f"%{letters}%"
        if self.wanted.q:
            ids = self.site.search.matching(self.wanted.q)
            tests.append("c.id IN (SELECT value FROM json_each(:found))")
            values["found"] = json.dumps(ids)
        return " AND ".join(tests), values


def progress(browser: Browser, set_name: str) -> dict[str, int]:
    """Return how many captions were accepted, rejected and edited, and how many there are."""
    sql = """SELECT state, text IS NOT NULL AS edited, count(*) AS number FROM (
            SELECT caption_key, state, text, max(created_at) FROM whole_edits
            WHERE set_name = :set_name GROUP BY caption_key)
        GROUP BY state, edited"""
    found = {"accepted": 0, "rejected": 0, "edited": 0}
    for row in browser.rows(sql, {"set_name": set_name}):
        if row["state"]:
            found[row["state"]] += row["number"]
        found["edited"] += row["number"] * row["edited"]
    return found


def shown_scores(
    browser: Browser, caption_keys: Sequence[str], feature_key: str
) -> list[BrowseRow]:
    """Return the scores of a caption, and of its clip, by name."""
    names = score_names(browser)
    values = {
        "keys": json.dumps([key for key in caption_keys if key]),
        "feature_key": feature_key,
        "names": json.dumps(names),
    }
    # Each half by an index of its own: with OR all rows would be read.
    sql = """SELECT name, score, caption_key, details FROM whole_scores
            WHERE caption_key IN (SELECT value FROM json_each(:keys))
        UNION ALL SELECT name, score, caption_key, details FROM whole_scores
            WHERE name IN (SELECT value FROM json_each(:names))
            AND feature_key = :feature_key AND caption_key = '' ORDER BY name"""
    rows = browser.rows(sql, values)
    return [{**row, "details": json.loads(row["details"])} for row in rows]
