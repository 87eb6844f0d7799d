"""Reads a catalog one page at a time; each query is quick even with 100,000 clips.

This module writes nothing. It cancels a query that runs longer than `DEADLINE_S`.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeVar, cast

from cogcache.catalog import EDITED, Absent, CatalogFile
from cogcache.errors import CatalogError
from cogcache.web.counting import Counting

BrowseRow = dict[str, Any]
T = TypeVar("T")

PAGE_SIZE: Final = 48
DEADLINE_S: Final = 2.0
_FEW: Final = 5000
"""Of more rows than these, whole tables are counted in a thread."""
SCANNED: Final = 500
"""How many captions of a set one page of differences compares."""
_COUNTED_TABLES: Final = ("captions", "clips", "scores", "edits")
_JSON_COLUMNS: Final = frozenset({"settings", "flags", "split", "counts", "report"})
_CLIP: Final = """feature_key = :feature_key
    OR video_digest = :video_digest AND start_s = :start_s AND end_s IS :end_s"""


class CaptionSet(NamedTuple):
    """The captions that one language half gave for one prompt."""

    prompt_name: str
    model: str
    quantization: str

    @property
    def name(self) -> str:
        """What a reader calls it."""
        return f"{self.prompt_name} · {self.model} · {self.quantization}"


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a longer list."""

    rows: list[BrowseRow]
    number: int
    total: int
    more: bool = False
    """Whether there are more rows than `total`, which were not counted."""
    size: int = PAGE_SIZE
    absent: Sequence[Absent] = ()
    """Rows of the page that are hidden because no file holds their video any more."""

    @property
    def num_pages(self) -> int:
        """How many pages there are, at least one."""
        return max(1, -(-self.total // self.size))


@dataclass(frozen=True, slots=True)
class Filter:
    """Which captions to show; an empty text means all."""

    prompt: str = ""
    model: str = ""
    flag: str = ""

    def __bool__(self) -> bool:
        return bool(self.prompt or self.model or self.flag)

    def where(self) -> tuple[str, dict[str, str]]:
        """Return a condition on captions, or on their totals, and its values."""
        tests = {
            "prompt": "prompt_name = :prompt",
            "model": "model = :model",
            # The first is what the partial index over flagged captions asks for.
            "flag": "flags <> '[]' AND flags LIKE '%\"' || :flag || '\"%'",
        }
        values = {name: getattr(self, name) for name in tests if getattr(self, name)}
        return " AND ".join(tests[name] for name in values) or "true", values


class Browser:
    """Reads a catalog for pages; a context manager, for any number of threads.

    Args:
        path: the catalog.
        deadline_s: seconds that a query may take.

    Raises:
        CatalogError: it is no catalog, is of a newer version, or cannot be opened.
    """

    def __init__(self, path: Path, deadline_s: float = DEADLINE_S) -> None:
        self.path, self._deadline_s = path, deadline_s
        self._ends_at = math.inf
        self._counting = Counting(self, lambda: Browser(path, math.inf))
        self._file = CatalogFile(path, derived=True)
        with self._file.reading() as conn:
            conn.execute("PRAGMA query_only = ON")
            conn.set_progress_handler(lambda: time.monotonic() > self._ends_at, 10_000)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the catalog; what is being counted is broken off."""
        self._counting.close()
        self._file.close()

    def interrupt(self) -> None:
        """Break off the query that runs, and all that come."""
        self._deadline_s, self._ends_at = -math.inf, -math.inf

    @property
    def num_damaged(self) -> int:
        """How many damaged rows were skipped."""
        return len(self._file.damage)

    def rows(self, sql: str, values: Mapping[str, object] | None = None) -> list[BrowseRow]:
        """Return what a query selects, JSON columns read.

        Raises:
            CatalogError: the catalog cannot be read, or the query takes too long.
        """
        with self._reading() as conn:
            return [_row(row) for row in conn.execute(sql, dict(values or {}))]

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._file.reading() as conn:
            self._ends_at = time.monotonic() + self._deadline_s
            try:
                yield conn
            except sqlite3.OperationalError as error:
                problem = f"the catalog {self.path} cannot be read: {error}"
                raise CatalogError(problem, "ask for less, or try again in a while") from error

    def value(self, sql: str, values: Mapping[str, object] | None = None) -> int:
        """Return the one number that a query selects; 0 for none."""
        row = self.rows(sql, values)[0]
        return int(next(iter(row.values())) or 0)

    def remembered(self, name: object, read: Callable[[Browser], T], *, kept_s: float = 0.0) -> T:
        """Return what `read` returns, or returned before the catalog changed; see `Counting`.

        Args:
            name: of what is read.
            read: reads it, with the browser that it is given.
            kept_s: seconds for which it is used even if the catalog has changed.

        Raises:
            StillCountingError: it takes long, and nothing is known yet.
        """
        with self._file.reading() as conn:
            version = conn.execute("PRAGMA data_version").fetchone()[0]
        large = _is_large(self)
        return cast(T, self._counting.of(name, version, read, kept_s=kept_s, is_long=large))

    def is_counting(self, name: object) -> bool:
        """Say whether something is being counted anew, so that what was returned is older."""
        return self._counting.is_counting(name)

    def page(
        self,
        total: int,
        number: int,
        sql: str,
        values: Mapping[str, object],
        size: int = PAGE_SIZE,
    ) -> Page:
        """Return one page of what `sql` selects; the last page if the number is too high."""
        number = min(max(1, number), max(1, -(-total // size)))
        places = {"limit": size, "offset": (number - 1) * size}
        return Page(self.rows(sql, {**values, **places}), number, total, size=size)

    # ---- clips ------------------------------------------------------------------------------

    def clips(self, number: int = 1) -> Page:
        """Return a page of all clips, each with the first of its captions.

        A clip whose features two models have made is one.
        """
        if self.value("SELECT count(DISTINCT model || ' ' || family) FROM shown_clip_totals") > 1:
            return _clips_of_several(self, number)
        sql = """SELECT clips.feature_key, clips.video, clips.video_digest, clips.start_s,
                clips.end_s, clips.model, caption, prompt_name, quantization, flags
            FROM (SELECT feature_key AS place FROM shown_clips
                ORDER BY video, start_s LIMIT :limit OFFSET :offset)
            JOIN whole_clips AS clips ON clips.feature_key = place
            LEFT JOIN whole_captions AS captions ON captions.id = (
                SELECT min(id) FROM shown_captions AS own WHERE own.feature_key = clips.feature_key)
                AND +captions.feature_key = clips.feature_key
            ORDER BY clips.video, clips.start_s"""
        return self.page(self.num_clips(), number, sql, {})

    def num_clips(self) -> int:
        """Return how many clips there are."""
        return self.value("SELECT sum(clips) FROM shown_clip_totals")

    def captions(self, wanted: Filter, number: int = 1) -> Page:
        """Return a page of the captions that pass a filter, oldest first."""
        where, values = wanted.where()
        total = self.value(f"SELECT sum(captions) FROM shown_caption_totals WHERE {where}", values)
        sets = f"SELECT DISTINCT model, quantization FROM shown_caption_totals WHERE {where}"
        if wanted.prompt and not wanted.flag and len(self.rows(sets, values)) > 1:
            return _clips_with(self, where, values, number)
        # Left to itself, SQLite walks the whole table for the sake of its order.
        few = wanted.flag and not self._file.misfits
        source = "main.captions INDEXED BY captions_flagged" if few else "shown_captions"
        sql = f"""SELECT feature_key, video, video_digest, start_s, end_s, model, caption,
                prompt_name, quantization, flags
            FROM whole_captions WHERE {where} AND id IN (
                SELECT id FROM {source} WHERE {where}
                ORDER BY id LIMIT :limit OFFSET :offset)
            ORDER BY id"""
        return self.page(total, number, sql, values)

    def clip(self, feature_key: str) -> BrowseRow | None:
        """Return a clip; if its features are gone, what its captions say about it."""
        values = {"key": feature_key}
        for table in ("clips", "captions"):
            sql = f"SELECT * FROM whole_{table} WHERE feature_key = :key LIMIT 1"
            if found := self.rows(sql, values):
                return found[0]
        return None

    def of_clip(self, table: str, clip: Mapping[str, Any]) -> list[BrowseRow]:
        """Return the rows of a clip in ``clips``, ``captions`` or ``failures``, of any model."""
        span = {name: clip[name] for name in ("feature_key", "video_digest", "start_s", "end_s")}
        order = {"clips": "created_at", "captions": "id", "failures": "first_at"}[table]
        return self.rows(f"SELECT * FROM whole_{table} WHERE {_CLIP} ORDER BY {order}", span)

    def video(self, digest: str) -> BrowseRow | None:
        """Return a video by the digest of its bytes."""
        found = self.rows("SELECT * FROM whole_videos WHERE digest = :digest", {"digest": digest})
        return found[0] if found else None

    # ---- caption sets -----------------------------------------------------------------------

    def sets(self) -> dict[CaptionSet, int]:
        """Return the sets of captions, each with how many it has."""
        sql = """SELECT prompt_name, model, quantization, sum(captions) AS captions
            FROM shown_caption_totals GROUP BY 1, 2, 3 HAVING sum(captions) > 0"""
        rows = self.rows(sql)
        return {CaptionSet(*list(row.values())[:3]): row["captions"] for row in rows}

    def differences(
        self, one: CaptionSet, other: CaptionSet, after: int = 0
    ) -> tuple[list[BrowseRow], int | None]:
        """Return clips for which two sets have different captions.

        Args:
            one: a set of captions.
            other: the set to compare it with.
            after: number of the last caption of the page before.

        Returns:
            Clips with ``caption`` and ``other``, and where the next page goes on, if it does.
            A page looks through `SCANNED` captions, and may find all of them equal.
        """
        sql = """SELECT one.id, one.feature_key, one.video, one.video_digest, one.start_s,
                one.end_s, one.caption, (SELECT other.caption FROM whole_captions AS other
                 WHERE other.video_digest = one.video_digest AND other.start_s = one.start_s
                    AND other.end_s IS one.end_s AND +other.prompt_name = :other_prompt
                    AND +other.model = :other_model AND +other.quantization = :other_quantization
                 ORDER BY other.id DESC LIMIT 1) AS other
            FROM whole_captions AS one WHERE prompt_name = :prompt AND model = :model
                AND quantization = :quantization AND id > :after ORDER BY id LIMIT :limit"""
        # The unary + keeps SQLite from the index over sets: a video has few captions, a set many.
        names = ("prompt", "model", "quantization")
        values = {**dict(zip(names, one, strict=True)), "after": after, "limit": SCANNED}
        values |= {f"other_{name}": value for name, value in zip(names, other, strict=True)}
        seen = self.rows(sql, values)
        found = [row for row in seen if row["other"] is not None and row["other"] != row["caption"]]
        rest, found = found[PAGE_SIZE:], found[:PAGE_SIZE]
        if rest:
            return found, int(found[-1]["id"])
        return found, int(seen[-1]["id"]) if len(seen) == SCANNED else None


def beside(browser: Browser, clip: Mapping[str, Any]) -> tuple[BrowseRow | None, BrowseRow | None]:
    """Return the clips before and after one in the order of all clips."""
    here = (clip["video"], clip["start_s"])
    values = {"video": here[0], "start_s": here[1]}
    sql = """SELECT feature_key, video, video_digest, start_s, end_s FROM whole_clips
        WHERE (video, start_s) {} (:video, :start_s) ORDER BY video {}, start_s {} LIMIT 1"""
    before, after = (
        browser.rows(sql.format(*words), values)
        for words in (("<", "DESC", "DESC"), (">", "ASC", "ASC"))
    )
    return (before[0] if before else None), (after[0] if after else None)


def _is_large(browser: Browser) -> bool:
    """Say whether counting takes long; the numbers of rows are taken from their ends."""
    rows = sum(browser.value(f"SELECT max(rowid) FROM {table}") for table in _COUNTED_TABLES)
    return rows > _FEW


def pictured(browser: Browser, feature_key: str) -> str:
    """Return the key of the clip whose picture stands for a caption's part of a video.

    A summary belongs to no clip; it uses the picture of the clip that starts at the same time.
    """
    sql = """SELECT clips.feature_key FROM whole_captions AS captions JOIN whole_clips AS clips
            ON clips.video_digest = json_extract(captions.settings, '$.video_digest')
        WHERE captions.feature_key = :key AND clips.start_s >= captions.start_s
        ORDER BY clips.start_s LIMIT 1"""
    found = browser.rows(sql, {"key": feature_key})
    return str(found[0]["feature_key"]) if found else feature_key


def _clips_of_several(browser: Browser, number: int) -> Page:
    sql = """SELECT min(feature_key) AS place FROM shown_clips
        GROUP BY video_digest, start_s, end_s ORDER BY min(video), start_s"""
    places = browser.remembered(sql, lambda own: [row["place"] for row in own.rows(sql)])
    sql = """SELECT clips.feature_key, clips.video, clips.video_digest, clips.start_s,
            clips.end_s, clips.model, caption, prompt_name, quantization, flags
        FROM whole_clips AS clips
        LEFT JOIN whole_captions AS captions ON captions.id = (
            SELECT min(id) FROM shown_captions AS own
            WHERE own.video_digest = clips.video_digest AND own.start_s = clips.start_s
            AND own.end_s IS clips.end_s)
        WHERE clips.feature_key IN (SELECT value FROM json_each(:places))
        ORDER BY clips.video, clips.start_s"""
    return _page_of(browser, places, number, sql)


def _clips_with(browser: Browser, where: str, values: Mapping[str, str], number: int) -> Page:
    """Return a page of the clips that have captions of several sets, a row each.

    What is shown of a clip is an edited caption where there is one, else the oldest.
    """
    shown = f"ifnull(min(iif(quantization = '{EDITED}', id, NULL)), min(id))"
    found = f"""SELECT {shown} AS place FROM shown_captions WHERE {where}
        GROUP BY video_digest, start_s, end_s, iif(video_digest IS NULL, feature_key, '')
        ORDER BY min(id)"""
    places = browser.remembered(
        (found, *values.values()), lambda own: [row["place"] for row in own.rows(found, values)]
    )
    sql = """SELECT feature_key, video, video_digest, start_s, end_s, model, caption,
            prompt_name, quantization, flags
        FROM whole_captions WHERE id IN (SELECT value FROM json_each(:places)) ORDER BY id"""
    return _page_of(browser, places, number, sql)


def _page_of(browser: Browser, places: Sequence[object], number: int, sql: str) -> Page:
    """Return one page of a list whose rows are known by their places."""
    number = min(max(1, number), max(1, -(-len(places) // PAGE_SIZE)))
    some = places[(number - 1) * PAGE_SIZE : number * PAGE_SIZE]
    return Page(browser.rows(sql, {"places": json.dumps(some)}), number, len(places))


def _row(row: sqlite3.Row) -> BrowseRow:
    columns = dict(zip(row.keys(), row, strict=True))
    read = {name: json.loads(columns[name] or "null") for name in _JSON_COLUMNS & columns.keys()}
    return columns | read
